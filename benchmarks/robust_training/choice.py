"""The rule by which settings are chosen, on validation images alone (see PROTOCOL.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.robust_training.methods import METHODS, REFERENCE, Setting
from benchmarks.robust_training.problems import Problem

__all__ = ["PLAIN_LOSS", "chosen_setting"]

# Validation accuracy that 7-step adversarial training may lack against plain training.
PLAIN_LOSS = 0.01

Attempt = Mapping[str, Any]
Tuning = Mapping[str, Sequence[Attempt]]


def chosen_setting(tuning: Tuning, key: str, problem: Problem) -> Setting | None:
    """The most robust setting among those whose accuracy is high enough.

    That is within `PLAIN_LOSS` of plain training's for 7-step adversarial training, and within
    ``problem.allowed_loss`` of the chosen 7-step adversarial training's for all others. Where no
    setting is accurate enough, the most accurate one.

    Args:
        tuning: For each method the settings tried: "setting", "accuracy" and "robust", the last
            the fraction of validation images that hold at the aimed-at radius.
        key: The method.
        problem: Has the methods' grids and the allowed loss.

    Returns:
        None as long as a trial that the choice depends on is missing.
    """
    attempt = _chosen(tuning, key, problem)
    return None if attempt is None else attempt["setting"]


def _chosen(tuning: Tuning, key: str, problem: Problem) -> Attempt | None:
    grid = METHODS[key].grid(problem)
    tried = [attempt for attempt in tuning.get(key, ()) if attempt["setting"] in grid]
    if len(tried) < len(grid):
        return None
    if len(grid) == 1:
        return tried[0]
    against, allowed = (
        ("plain", PLAIN_LOSS) if key == REFERENCE else (REFERENCE, problem.allowed_loss)
    )
    reference = _chosen(tuning, against, problem)
    if reference is None:
        return None
    least = reference["accuracy"] - allowed
    kept = [attempt for attempt in tried if attempt["accuracy"] >= least]
    if not kept:
        return max(tried, key=lambda attempt: float(attempt["accuracy"]))
    return max(kept, key=lambda attempt: float(attempt["robust"]))
