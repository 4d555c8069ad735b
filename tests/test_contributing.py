"""CONTRIBUTING.md says which files a change touches; here the code is asked."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import margin_ext
from margin_ext import AverageMarginLoss
from margin_ext.data import load_data

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^## (Add .*?)$\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
PATH = re.compile(r"`((?:margin_ext|csrc)/[\w/.]+)`")

# An existing member of each kind, by the word that its code cannot do without. A word that also
# means something else is looked for in the part of the tree where it is that member.
MEMBERS = {
    "Add a norm": (r"\bkMax\b", ("csrc",)),
    "Add a regularizer": (r"\bkSoftplus\b|['\"]softplus['\"]: ", ("csrc", "margin_ext")),
    "Add a gradient mode": (r"gradient_modes\.secant import|^class Secant\b", ("margin_ext",)),
    "Add a kind of label": (r"\bSoftLabels\b", ("margin_ext",)),
    "Add a kernel variant": (r"\bVariant::kReread\b|\bkReread = ", ("csrc",)),
    "Add an attack": (r"^class Nearest\b|import Nearest\b", ("margin_ext/attacks",)),
    "Add a bound": (r"^class Sampled\b|import Sampled\b", ("margin_ext/bounds",)),
    "Add a data source": (r"\bDigits\b|sources import digits", ("margin_ext",)),
    # AdversarialTraining has a field of the same name.
    "Add an option of the loss": (r"(?<!self)\.warmup\b", ("margin_ext",)),
}


def files_with(pattern: str, folders: tuple[str, ...]) -> set[str]:
    word = re.compile(pattern, re.MULTILINE)
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".h", ".cpp", ".cu"} and word.search(path.read_text())
    }


def test_every_section_is_checked() -> None:
    assert set(SECTIONS) == set(MEMBERS)


@pytest.mark.parametrize("title", MEMBERS)
def test_the_listed_files_are_there(title: str) -> None:
    listed = PATH.findall(SECTIONS[title])
    assert listed
    assert [path for path in listed if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("title", MEMBERS)
def test_no_other_file_knows_a_member(title: str) -> None:
    pattern, folders = MEMBERS[title]
    found = files_with(pattern, folders)
    assert found, "the member has another name now"
    assert found <= set(PATH.findall(SECTIONS[title]))


def test_an_option_of_the_kernels_is_in_the_listed_files() -> None:
    listed = set(PATH.findall(SECTIONS["Add an option of the loss"]))
    readers = files_with(r"\blabel_smoothing\b", ("csrc/core", "csrc/torch"))
    assert readers
    assert readers <= listed


TOYS = {
    "regularizer": """
from margin_ext.regularizers import register_regularizer

register_regularizer("toy", lambda t, tau: (tau - t).clamp_min(0) ** 2)
""",
    "mode": """
from margin_ext.gradient_modes import Detached, register_gradient_mode


class Toy(Detached):
    pass


register_gradient_mode("toy", Toy)
""",
    "bound": """
from margin_ext.bounds import BoundResult, register_bound


@register_bound
class Toy:
    name, title, kind = "toy", "toy (lower bound)", "lower"

    def check(self, threat):
        pass

    def settings(self):
        return {}

    def __call__(self, model, inputs, label, *, threat, indices):
        return BoundResult(inputs.new_zeros(len(inputs)))
""",
    "source": """
import torch

from margin_ext.data import DataSource, register_data_source
from margin_ext.data.image_data import ImageData


@register_data_source
class Toy(DataSource):
    name, summary = "toy", "three images"

    def load(self, place):
        part = torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0])
        return ImageData("toy", part, part, part, classes=2)
""",
}


@pytest.fixture
def toys(tmp_path: Path) -> None:
    """Each in one file, through nothing but public registries."""
    for name, source in TOYS.items():
        path = tmp_path / f"toy_{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)


def test_toys_of_one_file_each_are_taken_everywhere(toys: None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    inputs, target = load_data("toy").train
    out = AverageMarginLoss(regularizer="toy", gradient="toy", tau=2.0).run(model, inputs, target)
    expected = nn.functional.cross_entropy(model(inputs), target)
    expected = expected + (2.0 - out.margin).clamp_min(0).square().mean()
    torch.testing.assert_close(out.loss, expected)
    report = margin_ext.measure(model, (inputs, target), bounds=["toy"], progress=False)
    assert "toy (lower bound)" in str(report)
    assert report.summary(quantity="toy").average == 0
