"""``resume`` serves only what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from margin_ext import measure
from margin_ext.bounds import Sampled
from margin_ext.output.exclusive import InUseError, exclusive

DIMS, CLASSES = 4, 3


class Net(nn.Module):
    def __init__(self, scale: float = 1.0, backward: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.backward = backward
        self.register_buffer("shift", torch.zeros(DIMS).double(), persistent=False)
        torch.manual_seed(0)
        self.layer = nn.Linear(DIMS, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        x = x / self.scale - self.shift
        # The same values, with another gradient.
        z: Tensor = self.layer(self.backward * x + ((1 - self.backward) * x).detach())
        return z


def data(count: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, DIMS, generator=torch.Generator().manual_seed(seed)).double()
    return x, torch.arange(count) % CLASSES


def changed_weight(net: Net) -> None:
    with torch.no_grad():
        net.layer.weight[0, 0] += 1e-3


def changed_attribute(net: Net) -> None:
    net.scale = 1.01


def changed_buffer(net: Net) -> None:
    net.shift += 0.1


def changed_code(net: Net) -> None:
    net.forward = lambda x: net.layer(x.abs())  # type: ignore[method-assign]


def changed_gradient(net: Net) -> None:
    net.backward = 0.5


def hooked(net: Net) -> None:
    net.layer.register_forward_hook(lambda module, inputs, output: output.tanh())


CHANGES = [
    changed_weight, changed_attribute, changed_buffer, changed_code, changed_gradient, hooked,
]  # fmt: skip


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_results_of_another_model_are_refused(
    tmp_path: Path, change: Callable[[Net], None], around: bool
) -> None:
    net = Net()
    file = tmp_path / "partial.npz"

    def function(x: Tensor) -> Tensor:
        z: Tensor = net(x)
        return z

    model = function if around else net
    first = measure(model, data(), resume=file)
    assert (measure(model, data(), resume=file).margin == first.margin).all()
    kept = file.read_bytes()
    change(net)
    with pytest.raises(ValueError, match=r"other model|another model"):
        measure(model, data(), resume=file)
    assert file.read_bytes() == kept


def test_another_batch_size_or_machine_precision_is_no_other_model(tmp_path: Path) -> None:
    net = Net()
    file = tmp_path / "partial.npz"
    first = measure(net, data(), resume=file, batch_size=30)
    for size in (1, 7, 20):
        again = measure(net, data(), resume=file, batch_size=size)
        assert (again.margin == first.margin).all()


def test_other_logits_of_the_same_module_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "partial.npz"
    measure(Net(), data(), resume=file)
    with pytest.raises(ValueError, match="another model: logits"):
        measure(Net(), data(), resume=file, logits_fn=torch.tanh)


def test_other_first_samples_are_told_as_other_data(tmp_path: Path) -> None:
    file = tmp_path / "partial.npz"
    measure(Net(), data(), resume=file)
    with pytest.raises(ValueError, match="other data"):
        measure(Net(), data(seed=1), resume=file)


def test_a_second_run_on_the_same_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "partial.npz"
    with exclusive(file), pytest.raises(InUseError, match="another run is writing to"):
        measure(Net(), data(), resume=file)
    script = f"""
import sys, time
from pathlib import Path
from margin_ext.output.exclusive import exclusive
with exclusive(Path({str(file)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InUseError):
            measure(Net(), data(), resume=file)
        other.kill()
    assert len(measure(Net(), data(), resume=file)) == 30


def _without(file: Path, name: str) -> None:
    with np.load(file) as arrays:
        kept = {key: arrays[key] for key in arrays if key != name}
    np.savez(file, **kept)


def _header(file: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    with np.load(file) as arrays:
        kept = {key: arrays[key] for key in arrays}
    values = json.loads(str(kept["header_json"]))
    change(values)
    np.savez(file, **{**kept, "header_json": np.array(json.dumps(values))})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: _without(f, "header_json"), "no partial results: it has no header"),
        (lambda f: _header(f, lambda h: h.pop("count")), "header is damaged .KeyError: 'count'"),
        (lambda f: _header(f, lambda h: h.update(count=7)), "must have 7 values, got"),
        (lambda f: _header(f, lambda h: h.update(count="many")), "invalid literal"),
        (lambda f: _header(f, lambda h: h.update(format=1)), "another version of margin_ext"),
        (lambda f: _header(f, lambda h: h.update(settings=3)), "no partial results"),
        (lambda f: np.savez(f, x=np.zeros(3)), "no partial results"),
        (lambda f: f.write_bytes(f.read_bytes()[:-30]), "no whole npz file"),
        (lambda f: f.write_text("{}"), "no whole npz file"),
        (lambda f: (f.unlink(), f.mkdir()), "partial.npz"),
    ],
)
def test_what_is_no_file_of_results_is_told(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    file = tmp_path / "partial.npz"
    measure(Net(), data(), resume=file)
    damage(file)
    with pytest.raises((ValueError, OSError), match=message) as told:
        measure(Net(), data(), resume=file)
    assert "partial.npz" in str(told.value)
    assert "\n" not in str(told.value)


KILLED = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from margin_ext import measure
from margin_ext.bounds import Sampled
from margin_ext.bounds import Sampled
from measurement.test_resume import Net, data

draw = random.Random(0)
killed = 0
for _ in range(30):
    process = os.fork()
    if process == 0:
        bounds = [Sampled(points=3), "minimum_distance"]
        measure(Net(), data(60), resume="partial.npz", save_every=0.0, batch_size=2, bounds=bounds)
        os._exit(0)
    time.sleep(draw.uniform(0.01, 0.12))
    os.kill(process, signal.SIGKILL)
    killed += os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
print(killed)
"""


def test_a_run_that_is_killed_thirty_times_ends_like_one_that_is_not(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED],
        cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert int(done.stdout) > 3
    bounds = [Sampled(points=3), "minimum_distance"]
    whole = measure(Net(), data(60), bounds=bounds, batch_size=2)
    file = tmp_path / "partial.npz"
    resumed = measure(Net(), data(60), resume=file, bounds=bounds, batch_size=2)
    for name, column in whole.columns().items():
        assert (resumed.columns()[name] == column).all(), name
    assert not list(tmp_path.glob(".*.tmp"))
