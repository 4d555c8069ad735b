"""Fixtures of all tests: the backends that serve the ops, fixed seeds, hypothesis settings."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch
from _pytest.mark import ParameterSet
from backends import BACKENDS, EMULATOR, REFERENCE, Backend

# Examples are bounded, so the suite's time is; a machine that is shared makes deadlines flaky.
hypothesis.settings.register_profile("default", deadline=None, max_examples=60)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def _parameters(backends: tuple[Backend, ...]) -> list[ParameterSet]:
    return [
        pytest.param(b, id=b.name, marks=[pytest.mark.cuda] if b.device == "cuda" else [])
        for b in backends
    ]


def _chosen(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    if (reason := chosen.missing()) is not None:
        pytest.skip(reason)
    return chosen


@pytest.fixture(params=_parameters(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each implementation of the ops that this machine can run."""
    return _chosen(request)


@pytest.fixture(params=_parameters(tuple(b for b in BACKENDS if b is not REFERENCE)))
def compiled(request: pytest.FixtureRequest) -> Backend:
    """The backends that are judged by the reference."""
    return _chosen(request)


@pytest.fixture(params=_parameters((*BACKENDS, EMULATOR)))
def backend_or_emulator(request: pytest.FixtureRequest) -> Backend:
    """For values that no random problem reaches: the CUDA kernels too, where there is no GPU."""
    return _chosen(request)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Torch's threads cost small tests more than they give, tenfold where cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """For tests of what threads share: rows split into chunks, samples in groups."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
