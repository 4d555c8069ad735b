"""Without the compiled libraries the package gives the same numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import margin_ext
from margin_ext._extension import cpu_library

# Prints what a training step and the measuring functions compute, as JSON.
STEP = """
import json, math, sys, warnings
warnings.simplefilter("ignore")
import torch, margin_ext
from margin_ext._extension import cpu_library

torch.manual_seed(0)
torch.set_num_threads(1)
inputs = torch.randn(6, 3, 5, 5, dtype=torch.float64)
target = torch.tensor([0, 1, 2, 3, -100, 1])
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(36, 4)
).double()
found = {"library": cpu_library.loaded}
for p in (1, 2, math.inf, 3):
    for gradient in ("double_backward", "detached"):
        for reduction in ("mean", "none"):
            criterion = margin_ext.AverageMarginLoss(
                p=p, gradient=gradient, classes=2, reduction=reduction, tau=2.0,
                regularizer="softplus", label_smoothing=0.1, input_std=[0.5, 1.0, 2.0],
                weight=torch.tensor([1.0, 2.0, 0.5, 1.0]).double(),
            )
            out = criterion.run(model, inputs, target)
            gradients = torch.autograd.grad(out.loss.sum(), list(model.parameters()))
            found[f"{p} {gradient} {reduction}"] = [
                out.loss.flatten().tolist(), out.margin.tolist(), out.norm.tolist(),
                out.statistics.values_tensor.tolist(), *(g.flatten().tolist() for g in gradients),
            ]
    gap, _ = margin_ext.logit_gap(model(inputs).detach(), target)
    found[f"{p} margin"] = margin_ext.first_order_margin(gap, inputs, p=p).margin.tolist()
    found[f"{p} step"] = margin_ext.dual_direction(inputs, gap.nan_to_num(), p=p).tolist()
json.dump(found, sys.stdout)
"""


def flat(value) -> list[float]:
    if isinstance(value, list):
        return [x for inner in value for x in flat(inner)]
    return [value]


def run(folder: Path | None) -> dict[str, list]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if folder is not None:
        environment["PYTHONPATH"] = str(folder)
    done = subprocess.run(
        [sys.executable, "-c", STEP],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not cpu_library.loaded, reason="there is no library to do without")
def test_the_same_numbers_without_libraries(tmp_path):
    package = Path(margin_ext.__file__).parent
    ignored = shutil.ignore_patterns("lib", "__pycache__")
    shutil.copytree(package, tmp_path / "margin_ext", ignore=ignored)
    without, with_library = run(tmp_path), run(None)
    assert without.pop("library") is False
    assert with_library.pop("library") is True
    assert without.keys() == with_library.keys()
    for name, value in with_library.items():
        ours, theirs = (torch.tensor(flat(v), dtype=torch.float64) for v in (value, without[name]))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13, equal_nan=True, msg=name)
