from __future__ import annotations

import subprocess
import sys

import pytest

import margin_ext.integrations


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("torchmetrics", "torchmetrics", "torchmetrics"),
        ("lightning", "lightning", "lightning"),
        ("transformers", "transformers", "transformers"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(module, library, extra):
    code = f"import sys; sys.modules[{library!r}] = None; import margin_ext.integrations.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"pip install 'margin_ext[{extra}]'" in done.stderr


def test_the_package_names_every_module():
    folder = margin_ext.integrations.__path__[0]
    code = (
        "import sys, margin_ext.integrations as i; print([m for m in sys.modules if 'torchm' in m])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder + "/../..",
    )
    assert done.stdout.strip() == "[]"
    for name in ("torchmetrics", "lightning", "transformers", "foolbox", "model_card"):
        assert f"``{name}``" in margin_ext.integrations.__doc__
