"""Two processes give the gradients of one on the joined batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch_distributed = pytest.importorskip("torch.distributed")
if not torch_distributed.is_available() or not torch_distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

MODES = (
    "double_backward",
    "finite_difference",
    "detached",
    "auto",
    "secant",
    "distance",
    "envelope",
    "additive",
)
PEERS = ("adversarial", "adversarial clean", "own length")
SCENARIOS = (
    "ddp plain",
    "ddp find_unused_parameters",
    "ddp gradient_as_bucket_view",
    "ddp uneven",
    "ddp in a module",
    "ddp compiled",
    "ddp of parts",
    "ddp accumulated",
    "ddp batchnorm",
    "fsdp",
    "fsdp behind a function",
)


# These need a normalizer, or (BatchNorm) are compared with one process in another way.
NEED_A_NORMALIZER = ("ddp uneven", "ddp accumulated", "ddp batchnorm")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("ranks") / "found.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    here = Path(__file__).parent
    command += ["--nproc-per-node", "2", str(here / "leave_at_once.py")]
    command += [str(here / "worker.py"), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(path.read_text())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_gradients_are_those_of_the_joined_batch(found, scenario, mode):
    assert found[f"{scenario} {mode}"] < 1e-9


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize(
    "scenario",
    [each for each in SCENARIOS if each not in NEED_A_NORMALIZER] + ["ddp static"],
)
def test_adversarial_training_has_the_gradients_of_the_joined_batch(found, scenario, name):
    assert found[f"{scenario} {name}"] < 1e-9


@pytest.mark.parametrize(
    "what",
    [f"inside, {name}" for name in PEERS]
    + [f"behind a function, {name}" for name in MODES + PEERS],
)
def test_static_graph_is_refused_further_inside(found, what):
    assert "every rank would train alone, without an error" in found[f"static graph {what}"]


@pytest.mark.parametrize("settings", ["plain", "find_unused_parameters", "gradient_as_bucket_view"])
def test_passes_made_in_the_backward_are_reduced_too(found, settings):
    assert found[f"deferred, ddp {settings}"] < 1e-12


@pytest.mark.parametrize("where", ["run", "forward", "check"])
def test_static_graph_is_refused(found, where):
    told = found[f"static graph, {where}"]
    assert "every rank would train alone, without an error" in told
    assert "find_unused_parameters=True is fine" in told


@pytest.mark.parametrize("where", ["run double_backward", "run secant", "forward"])
def test_fsdp1_is_refused_by_name(found, where):
    told = found[f"fsdp1, {where}"]
    assert "FullyShardedDataParallel (FSDP1)" in told
    assert "fully_shard (FSDP2)" in told


def test_fsdp1_serves_logit_gaps(found):
    assert found["fsdp1, logit_gap"] > 0


def test_check_refuses_what_it_cannot_copy(found):
    assert "split by fully_shard" in found["fsdp, check"]


def test_statistics_are_those_of_the_joined_batch(found):
    errors = {name: value for name, value in found.items() if name.startswith("statistics")}
    assert len(errors) == 9
    assert max(errors.values()) < 1e-9, errors
