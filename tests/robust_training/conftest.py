"""A tiny comparison, and where the benchmarks are found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Behind everything else, so that an installed package is not hidden by the one in the checkout.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.robust_training import epoch_timing
from benchmarks.robust_training.evaluate_network import Suite
from benchmarks.robust_training.problems import PROBLEMS, Problem
from margin_ext.bounds import MinimumDistance
from margin_ext.data import DataSource, data_source, register_data_source
from margin_ext.data.image_data import ImageData
from robust_training.tiny_problem import CLASSES, TINY, images


@pytest.fixture
def problem() -> Problem:
    return TINY


@pytest.fixture
def tiny(monkeypatch, problem):
    """Everything of the comparison on sixteen pixels, without the attack library."""

    class Tiny(DataSource):
        name, summary, place = "tiny", "sixteen pixels", "FOLDER"

        def load(self, place: str) -> ImageData:
            return ImageData("tiny", images(60, 0), images(30, 1), images(30, 2), CLASSES)

    monkeypatch.setattr(data_source, "_REGISTERED", dict(data_source.data_sources()))
    register_data_source(Tiny)
    monkeypatch.setitem(PROBLEMS, "tiny", problem)
    monkeypatch.setattr(epoch_timing, "ROUNDS", 2)
    search = MinimumDistance(steps=4, restarts=0, targets=0)
    return Suite(targets=0, count=12, last=(), steps=3, choice_steps=3, distance=search)
