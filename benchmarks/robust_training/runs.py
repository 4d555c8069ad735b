"""Choosing settings, training and attacking: every result is kept, and none is made twice."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.robust_training.choice import chosen_setting
from benchmarks.robust_training.epoch_timing import TIMED_AGAIN, over_plain, time_epochs
from benchmarks.robust_training.evaluate_network import Suite, accuracy
from benchmarks.robust_training.methods import METHODS, Setting
from benchmarks.robust_training.problems import PROBLEMS, Problem
from benchmarks.robust_training.samples import bits
from margin_ext.data.image_data import ImageData
from margin_ext.output.atomic_write import write_atomically
from margin_ext.output.finite_json import finite_json
from margin_ext.training import DivergedError, RunOptions, TrainingLoop

__all__ = ["Comparison"]

Piece = Callable[[], str]


class Comparison:
    """All methods on one problem, in one JSON file.

    Attributes:
        results: What the file holds: "problem", "environment", "tuning", "runs" and "timing".
    """

    def __init__(
        self, name: str, folder: Path, out: Path, work: Path, suite: Suite | None = None
    ) -> None:
        """Read what is there.

        Args:
            name: Of the problem.
            folder: The data.
            out: Folder of the JSON file.
            work: Folder of the checkpoints.
            suite: The attacks; None: those of the protocol.
        """
        self.problem: Problem = PROBLEMS[name]
        self.data: ImageData = self.problem.load(folder)
        self.suite = suite or Suite(self.problem.targets)
        self.path = out / f"{name}.json"
        self.work = work / name
        self.results: dict[str, Any] = {"tuning": {}, "runs": {}, "timing": []}
        if self.path.exists():
            self.results = json.loads(self.path.read_text())

    def run(
        self,
        methods: Sequence[str],
        seeds: Sequence[int],
        tell: Callable[[str], Any],
        *,
        timing: bool = True,
        seconds: float | None = None,
    ) -> bool:
        """Choose each method's setting, then train and attack it with each seed, then time all.

        Args:
            methods: Keys of `METHODS`.
            seeds: The first is the one that settings are chosen with.
            tell: Gets a line after each piece of work.
            timing: Measure the training times of methods that were attacked and have none.
            seconds: Begin no further piece after so much time, but one at least; None: do all.

        Returns:
            Whether everything that was asked for is there now.
        """
        start = time.monotonic()
        for count, piece in enumerate(self._missing(methods, seeds, timing)):
            if count and seconds is not None and time.monotonic() - start >= seconds:
                return False
            line = piece()
            self._save()
            tell(line)
        return True

    def _missing(
        self, methods: Sequence[str], seeds: Sequence[int], timing: bool
    ) -> Iterator[Piece]:
        for key in methods:
            yield from self._missing_trials(key)
        for seed in seeds:
            for key in methods:
                yield from self._missing_test(key, seed)
        if timing:
            attacked = [key for key in METHODS if f"{key} {seeds[0]}" in self.results["runs"]]
            wanted = {key: self.results["runs"][f"{key} {seeds[0]}"]["setting"] for key in attacked}
            sessions = self.results["timing"]
            new = [key for key in attacked if not over_plain(sessions, key, wanted[key])]
            if "plain" in wanted and new:
                together = [key for key in attacked if key in (*new, *TIMED_AGAIN)]
                yield partial(self._time, {key: wanted[key] for key in together})

    def _missing_trials(self, key: str) -> Iterator[Piece]:
        tried = self.results["tuning"].setdefault(key, [])
        for setting in METHODS[key].grid(self.problem):
            if not any(attempt["setting"] == setting for attempt in tried):
                yield partial(self._tune, key, setting)

    def _missing_test(self, key: str, seed: int) -> Iterator[Piece]:
        setting = chosen_setting(self.results["tuning"], key, self.problem)
        if setting is None:
            raise ValueError(
                f"the setting of {key} cannot be chosen yet: plain and 7-step adversarial training "
                "must be tried first, so name them too"
            )
        done = self.results["runs"].get(f"{key} {seed}")
        if done is None or done["setting"] != setting:
            yield partial(self._test, key, seed, setting)

    def _tune(self, key: str, setting: Setting) -> str:
        attempt: dict[str, Any] = {"setting": setting}
        try:
            model, seconds = self._trained(key, setting, seed=0)
        except DivergedError as error:
            attempt |= {"accuracy": 0.0, "robust": 0.0, "diverged": str(error).split(":")[0]}
        else:
            robust = self.suite.choose_by(model, self.data.validation, self.problem.aim)
            attempt |= {
                "accuracy": accuracy(model, *self.data.validation),
                "robust": float(robust.mean()),
                "held": bits(robust),
                "cpu_seconds": round(seconds, 2),
            }
        self.results["tuning"][key].append(attempt)
        return (
            f"tried {key} {setting}: validation accuracy {attempt['accuracy']:.4f}, "
            f"robust {attempt['robust']:.3f}"
        )

    def _test(self, key: str, seed: int, setting: Setting) -> str:
        model, seconds = self._trained(key, setting, seed=seed)
        start = time.process_time()
        found = self.suite.evaluate(model, self.data.test, self.problem.eps)
        machine = environment.describe("cpu")
        self.results["runs"][f"{key} {seed}"] = {
            "setting": setting,
            "cpu_seconds": round(seconds, 2),
            "cpu_seconds_of_attacks": round(time.process_time() - start, 1),
            "commit": machine["commit"],
            "processor": machine["processor"],
            **found,
        }
        worst = [text.count("1") / len(text) for text in found["samples"]["worst"]]
        return f"attacked {key} {seed} {setting}: accuracy {found['accuracy']:.4f}, worst {worst}"

    def _time(self, settings: dict[str, Setting]) -> str:
        processor = environment.describe("cpu")["processor"]
        timed = time_epochs(self.problem, self.data, settings)
        self.results["timing"].append({"processor": processor, **timed})
        median = self.results["timing"][-1]["median"]
        return "time over plain: " + ", ".join(
            f"{key} {seconds / median['plain']:.1f}" for key, seconds in median.items()
        )

    def _trained(self, key: str, setting: Setting, *, seed: int) -> tuple[Any, float]:
        """A trained network, and its CPU seconds; one that was trained before is read."""
        recipe = dataclasses.replace(self.problem.recipe, seed=seed)
        words = [key, *(f"{name}={value:g}" for name, value in setting.items()), f"seed={seed}"]
        folder = self.work / "_".join(words)
        training = TrainingLoop(
            self.problem.model(seed),
            self.data.train,
            METHODS[key].objective(self.problem.aim, setting),
            recipe,
            checkpoint=folder / "checkpoint.pt",
            options=RunOptions(
                settings={"images": len(self.data.train[1])},
                augment=self.problem.augmentation or None,
            ),
        )
        begun, start = training.epoch, time.process_time()
        for _ in training.epochs():
            pass
        seconds = time.process_time() - start
        kept = folder / "cpu_seconds.json"
        if begun == 0:
            kept.write_text(json.dumps(seconds))
        elif kept.exists():
            seconds = json.loads(kept.read_text())
        else:  # continued after an interruption: what was seen stands for the rest
            seconds *= recipe.epochs / max(recipe.epochs - begun, 1)
        return training.result, seconds

    def _save(self) -> None:
        problem = self.problem
        self.results["problem"] = {
            "title": problem.title,
            "recipe": dataclasses.asdict(problem.recipe),
            "augmentation": dataclasses.asdict(problem.augmentation),
            "training_images": len(self.data.train[1]),
            "validation_images": len(self.data.validation[1]),
            "test_images": len(self.data.test[1]),
            "attacked_images": self.suite.count,
            "eps": problem.eps,
            "aim": problem.aim,
            "allowed_loss": problem.allowed_loss,
            "targets": self.suite.targets,
            "radii": problem.radii,
        }
        self.results["environment"] = environment.describe("cpu")
        text = json.dumps(finite_json(self.results), indent=1) + "\n"
        write_atomically(self.path, lambda file: file.write(text.encode()))
