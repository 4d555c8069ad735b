"""Training time of the methods, measured in turn in one process."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.robust_training.methods import METHODS, REFERENCE, Setting
from benchmarks.robust_training.problems import Problem
from margin_ext.data.image_data import ImageData
from margin_ext.training import RunOptions, TrainingLoop

__all__ = ["TIMED_AGAIN", "over_plain", "time_epochs"]

IMAGES, ROUNDS = 4000, 5
# In every session, so that what is timed later can be compared.
TIMED_AGAIN = ("plain", "adversarial_2", REFERENCE)


def time_epochs(
    problem: Problem, data: ImageData, settings: Mapping[str, Setting]
) -> dict[str, Any]:
    """CPU seconds of an epoch of the first images, for each method with its chosen setting.

    The methods take turns, an epoch each, so that a slower or faster machine meets all of them
    alike. The first round is not counted.
    """
    images, labels = data.train[0][:IMAGES], data.train[1][:IMAGES]
    recipe = dataclasses.replace(problem.recipe, epochs=ROUNDS + 1, seed=0)
    seconds: dict[str, list[float]] = {key: [] for key in settings}
    with tempfile.TemporaryDirectory() as folder:
        loops = {
            key: TrainingLoop(
                problem.model(0),
                (images, labels),
                METHODS[key].objective(problem.aim, setting),
                recipe,
                checkpoint=Path(folder) / f"{key}.pt",
                options=RunOptions(augment=problem.augmentation or None),
            ).epochs()
            for key, setting in settings.items()
        }
        for _ in range(ROUNDS + 1):
            for key, epochs in loops.items():
                start = time.process_time()
                next(epochs)
                seconds[key].append(time.process_time() - start)
    return {
        "images": len(labels),
        "settings": dict(settings),
        "cpu_seconds": {key: counted[1:] for key, counted in seconds.items()},
        "median": {key: statistics.median(counted[1:]) for key, counted in seconds.items()},
    }


def over_plain(
    sessions: Sequence[Mapping[str, Any]], key: str, setting: Setting
) -> dict[int, float]:
    """A method's time over plain training's in each session with this setting, by its number."""
    return {
        number: session["median"][key] / session["median"]["plain"]
        for number, session in enumerate(sessions)
        if session["settings"].get(key) == setting
    }
