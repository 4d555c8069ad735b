"""Every page is in the site, its snippets run, and the reference names what exists."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
SNIPPETS = ["index.md", *(page for page in PAGES if page.startswith("tasks/"))]
# What a page may import that is not among the package's own dependencies.
LIBRARIES = {
    "accelerate": "transformers",
    "cleanlab": "cleanlab",
    "foolbox": "attacks",
    "lightning": "lightning",
    "peft": "integrations",
    "pyautoattack": "attacks",
    "sklearn": "demo",
    "torchmetrics": "torchmetrics",
    "transformers": "transformers",
}

pytestmark = pytest.mark.skipif(
    not (DOCS.parent / "mkdocs.yml").is_file(), reason="needs the source folder of the package"
)


def blocks(page: str) -> list[tuple[str, str]]:
    """The Python blocks of a page, with their titles."""
    found = re.findall(
        r'^```python(?: title="([^"]+)")?\n(.*?)^```$', (DOCS / page).read_text(), re.M | re.S
    )
    assert found or not page.startswith("tasks/"), f"{page} has no snippet"
    return found


def missing_library(code: str) -> str | None:
    """Why the code cannot run here, if a library is missing."""
    words = set(re.findall(r"^(?:import|from) (\w+)", code, re.M))
    words |= set(re.findall(r"^from margin_ext\.integrations\.(\w+)", code, re.M))
    if "transformers" in words:
        words.add("accelerate")
    for name in sorted(words & LIBRARIES.keys()):
        if importlib.util.find_spec(name) is None:
            return f"needs {name}: extra {LIBRARIES[name]}"
    return None


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch", "ignore::FutureWarning:lightning")
@pytest.mark.parametrize("page", SNIPPETS)
def test_snippets_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    """Each page stands for itself: nothing is there but what it makes."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    skipped = ""
    threads = torch.get_num_threads()
    for title, code in blocks(page):
        why = missing_library(code)
        if why:
            skipped = why
        elif title:
            run_on_two_ranks(tmp_path / title, code)
        else:
            exec(compile(code, page, "exec"), names)
    torch.set_num_threads(threads)
    if skipped:
        pytest.skip(skipped)


def run_on_two_ranks(path: Path, code: str) -> None:
    """Run a script as its page says, once plain and once with SHARD=1."""
    path.write_text(code)
    root = str(DOCS.parent)
    for shard in ("", "1"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        leave = DOCS.parent / "tests" / "distributed" / "leave_at_once.py"
        command += ["--nproc-per-node", "2", str(leave), str(path)]
        done = subprocess.run(
            command,
            env={**os.environ, "SHARD": shard, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(done.stdout.splitlines()) == 2


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": ([\w/-]+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == PAGES


def test_the_first_page_leads_to_every_task():
    text = (DOCS / "index.md").read_text()
    for page in SNIPPETS[1:]:
        assert f"({page})" in text, page


def test_the_reference_names_functions_and_classes():
    for page in PAGES:
        for name in re.findall(r"^::: ([\w.]+)$", (DOCS / page).read_text(), re.M):
            module, _, attribute = name.rpartition(".")
            library = re.match(r"margin_ext\.integrations\.(\w+)", module)
            if library and importlib.util.find_spec(library[1]) is None and library[1] in LIBRARIES:
                continue
            found = getattr(importlib.import_module(module), attribute)
            assert callable(found), f"{page}: {name} is {type(found).__name__}"
            assert found.__doc__, f"{page}: {name} has no docstring"
