"""Trials, which train a model for its margin and can be continued, and reports of trials.

Names are imported when they are used, so that ``margin-ext train --help`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from margin_ext.training.adversarial_training import AdversarialTraining
    from margin_ext.training.evaluation import Evaluation
    from margin_ext.training.recipe import Recipe
    from margin_ext.training.run_options import RunOptions
    from margin_ext.training.training_loop import DivergedError, TrainingLoop
    from margin_ext.training.training_objective import Objective, TrainingObjective
    from margin_ext.training.training_state import OtherSettingsError
    from margin_ext.training.trial import Trial
    from margin_ext.training.trial_settings import RunExistsError, trial_from_settings
    from margin_ext.training.trials_report import TrialsReport

_MODULES = {
    "AdversarialTraining": "adversarial_training",
    "DivergedError": "training_loop",
    "Evaluation": "evaluation",
    "Objective": "training_objective",
    "OtherSettingsError": "training_state",
    "Recipe": "recipe",
    "RunExistsError": "trial_settings",
    "RunOptions": "run_options",
    "TrainingLoop": "training_loop",
    "TrainingObjective": "training_objective",
    "Trial": "trial",
    "TrialsReport": "trials_report",
    "trial_from_settings": "trial_settings",
}

__all__ = [
    "AdversarialTraining",
    "DivergedError",
    "Evaluation",
    "Objective",
    "OtherSettingsError",
    "Recipe",
    "RunExistsError",
    "RunOptions",
    "TrainingLoop",
    "TrainingObjective",
    "Trial",
    "TrialsReport",
    "trial_from_settings",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
