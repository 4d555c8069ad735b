"""Choosing settings and training: every result is kept as it comes, and none is made twice."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.robust_training.evaluate_network import accuracy, evaluate, robust_at
from benchmarks.robust_training.methods import METHODS, Setting
from benchmarks.robust_training.problems import PROBLEMS, Problem
from margin_ext.data.image_data import ImageData
from margin_ext.output.atomic_write import write_atomically
from margin_ext.output.finite_json import finite_json
from margin_ext.training import Recipe, TrainingLoop

__all__ = ["Comparison", "chosen_setting"]

# Of the validation images, by which settings are chosen.
JUDGED = 500
# Clean accuracy that a method may give up for robustness.
ALLOWED_LOSS = 0.005


class Comparison:
    """All methods on one problem, in one JSON file.

    Attributes:
        results: What the file holds: "setting", "environment", "tuning" and "runs".
    """

    def __init__(self, name: str, folder: Path, out: Path, work: Path) -> None:
        """Read what is there.

        Args:
            name: Of the problem.
            folder: The data.
            out: Folder of the JSON file.
            work: Folder of the checkpoints.
        """
        self.problem: Problem = PROBLEMS[name]
        self.name = name
        self.data: ImageData = self.problem.load(folder)
        self.path = out / f"{name}.json"
        self.work = work / name
        self.results: dict[str, Any] = {"tuning": {}, "runs": {}}
        if self.path.exists():
            self.results = json.loads(self.path.read_text())

    def run(self, methods: Sequence[str], seeds: Sequence[int], tell: Callable[[str], Any]) -> None:
        """Choose each method's setting, then train and evaluate it with each seed."""
        for key in methods:
            for setting in self._grid(key):
                self._tune(key, setting, tell)
        for seed in seeds:
            for key in methods:
                if seed == seeds[0] or METHODS[key].headline:
                    self._train(key, seed, tell)

    def _grid(self, key: str) -> tuple[Setting, ...]:
        return self.problem.narrowed.get(key, METHODS[key].grid)

    def _save(self) -> None:
        problem = self.problem
        self.results["problem"] = {
            "title": problem.title,
            "recipe": dataclasses.asdict(problem.recipe),
            "training_images": len(self.data.train[1]),
            "tuning": dataclasses.asdict(problem.tuning),
            "eps": problem.eps,
            "aim": problem.aim,
            "linf_eps": problem.linf_eps,
        }
        self.results["environment"] = environment.describe("cpu")
        text = json.dumps(finite_json(self.results), indent=1) + "\n"
        write_atomically(self.path, lambda file: file.write(text.encode()))

    def _tune(self, key: str, setting: Setting, tell: Callable[[str], Any]) -> None:
        tried = self.results["tuning"].setdefault(key, [])
        method = METHODS[key]
        if len(self._grid(key)) == 1 and key != "plain":
            return
        if any(attempt["setting"] == setting for attempt in tried):
            return
        tuning = self.problem.tuning
        data = self.data.limited(train=tuning.images, held_out=None)
        recipe = dataclasses.replace(
            self.problem.recipe, epochs=round(tuning.epochs * method.longer), seed=0
        )
        training, _ = self._trained(key, setting, data, recipe)
        robust = robust_at(
            training.model,
            data.validation,
            (self.problem.aim,),
            count=JUDGED,
            restarts=1,
            diagnose=False,
        )
        attempt = {
            "setting": setting,
            "accuracy": accuracy(training.model, *data.validation),
            "robust": robust["robust_accuracy"]["worst"][0],
        }
        tried.append(attempt)
        self._save()
        tell(
            f"tuning {key} {setting}: accuracy {attempt['accuracy']:.4f}, "
            f"robust {attempt['robust']:.3f}"
        )

    def _train(self, key: str, seed: int, tell: Callable[[str], Any]) -> None:
        name = f"{key} {seed}"
        if name in self.results["runs"]:
            return
        method = METHODS[key]
        setting = chosen_setting(self.results, key, self._grid(key))
        recipe = dataclasses.replace(
            self.problem.recipe,
            epochs=round(self.problem.recipe.epochs * method.longer),
            seed=seed,
        )
        training, seconds = self._trained(key, setting, self.data, recipe)
        found = evaluate(training.model, self.data.test, self.problem.eps, self.problem.linf_eps)
        self.results["runs"][name] = {
            "setting": setting,
            "epochs": recipe.epochs,
            "cpu_seconds_per_epoch": seconds / recipe.epochs,
            **found,
        }
        self._save()
        tell(
            f"{name} {setting}: accuracy {found['accuracy']:.4f}, {found['l2']['robust_accuracy']}"
        )

    def _trained(
        self, key: str, setting: Setting, data: ImageData, recipe: Recipe
    ) -> tuple[TrainingLoop, float]:
        """A finished training, and its CPU seconds.

        Where settings are chosen by trainings of the whole length, the first seed's is there.
        """
        words = [key, *(f"{name}={value:g}" for name, value in setting.items())]
        words += [f"images={len(data.train[1])}", f"epochs={recipe.epochs}", f"seed={recipe.seed}"]
        folder = self.work / "_".join(words)
        training = TrainingLoop(
            self.problem.model(recipe.seed),
            data.train,
            METHODS[key].objective(self.problem.aim, setting),
            recipe,
            checkpoint=folder / "checkpoint.pt",
            settings={"images": len(data.train[1])},
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
        return training, seconds


def chosen_setting(results: dict[str, Any], key: str, grid: tuple[Setting, ...]) -> Setting:
    """The setting with the best robust accuracy at the aim among those that keep the accuracy.

    Kept means: at most half a point below plain training's. Where none keeps it, the most accurate.
    """
    if len(grid) == 1:
        return grid[0]
    tried = [a for a in results["tuning"][key] if a["setting"] in grid]
    floor = results["tuning"]["plain"][0]["accuracy"] - ALLOWED_LOSS
    kept = [attempt for attempt in tried if attempt["accuracy"] >= floor]
    if not kept:
        return max(tried, key=lambda attempt: attempt["accuracy"])["setting"]
    return max(kept, key=lambda attempt: attempt["robust"])["setting"]
