"""A trial by the settings of a command line or a settings file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from margin_ext.data.augmentation import Augmentation
from margin_ext.data.data_source import load_data
from margin_ext.data.image_data import data_digest
from margin_ext.gradient_modes import Additive, Auto, Distance, FiniteDifference, Secant
from margin_ext.loss import AverageMarginLoss
from margin_ext.ranks import ALONE
from margin_ext.threat import ThreatModel
from margin_ext.training.adversarial_training import AdversarialTraining
from margin_ext.training.evaluation import Evaluation
from margin_ext.training.image_model import image_model
from margin_ext.training.recipe import Recipe
from margin_ext.training.run_options import RunOptions
from margin_ext.training.setting_table import (
    ADDITIVE,
    ADVERSARIAL,
    DIFFERENCE,
    DISTANCE,
    OPTIONS,
    SECANT,
    loss_options,
    options_with,
)
from margin_ext.training.settings_file import SettingsError, complete_settings, settings_text
from margin_ext.training.training_objective import Objective
from margin_ext.training.trial import CHECKPOINT, SETTINGS, Trial

if TYPE_CHECKING:
    from margin_ext.ranks import Ranks
    from margin_ext.training.training_objective import TrainingObjective

# The margins that are objects, and the prefix of their fields.
_MARGINS: Final[Mapping[str, tuple[Any, str]]] = {
    "additive": (Additive, ADDITIVE),
    "distance": (Distance, DISTANCE),
    "secant": (Secant, SECANT),
}

__all__ = ["RunExistsError", "trial_from_settings"]


class RunExistsError(Exception):
    """The folder holds a run, and nobody said what is to become of it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "settings.toml").write_text("epochs = 2")
        ...     trial_from_settings({"data": "digits"}, folder, resume=False)
        Traceback (most recent call last):
            ...
        margin_ext.training.trial_settings.RunExistsError: ... holds a run (settings.toml): ...
    """


def trial_from_settings(
    settings: Mapping[str, Any],
    folder: str | Path,
    ranks: Ranks = ALONE,
    *,
    resume: bool = True,
    fresh: bool = False,
) -> Trial:
    """Read the data, build the model, and take up what the folder holds.

    Args:
        settings: Those that differ from their defaults, by the names of ``margin-ext train --help``
            with underscores.
        folder: Where everything is written.
        ranks: The processes that train together; rank 0 measures and writes.
        resume: Whether to go on with a run in the folder.
        fresh: Remove the run in the folder, once it is known that this one can begin.

    Raises:
        DataError: The data are missing or damaged.
        OtherSettingsError: The folder holds a run with other settings.
        RunExistsError: It holds a run that is neither to be continued nor to be removed.
        SettingsError, ValueError: Settings, model and data do not fit together.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trial = trial_from_settings({"data": "digits", "limit": 50, "epochs": 2}, folder)
    >>> trial.title, trial.loop.epoch, len(trial.train[1])
    ('first-order margin, mu 1, tau 3', 0, 50)
    """
    folder = Path(folder)
    _require_free(folder, ranks, resume or fresh)
    full = complete_settings(settings)
    _prepare_torch(full)
    device = _usable(ranks.device(full["device"]))
    recipe = Recipe(**{name: full[name] for name in Recipe.__dataclass_fields__})
    evaluation = _evaluation(full)
    low, high = full["data_range"]
    data = load_data(full["data"], full["data_dir"], (low, high))
    data = data.limited(train=full["limit"], held_out=None)
    full = _with_a_rise_that_ends(full, settings, len(data.train[1]))
    objective = _objective(full, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(full["seed"])
        model = image_model(full["model"], data)
    augmentation = Augmentation(full["crop"], full["flip"])
    for name in ("distance_margin_memory", "adversarial_memory"):
        if full[name] and (augmentation or ranks.size > 1):
            raise SettingsError(
                f"{name} is for images that stay as they are (no crop, no flip) and for one process"
            )
    options = RunOptions(
        augment=augmentation if augmentation else None,
        settings={
            **{name: value for name, value in full.items() if not OPTIONS[name].resumable},
            "images": data_digest(data.train),
            "processes": ranks.size,
        },
        ranks=ranks,
        save_every=full["save_every"],
    )
    head = (
        "The settings of this run. To repeat it:\n"
        f"margin-ext train --config {folder / SETTINGS} --out FOLDER"
    )
    return Trial(
        model,
        data,
        objective,
        recipe,
        evaluation,
        folder,
        options,
        title=_title(full),
        monitor_limit=full["monitor_limit"] if full["monitor"] else None,
        report=full["report"],
        settings_toml=settings_text(full, head),
        run_settings=full,
        device=device,
        fresh=fresh,
    )


def _with_a_rise_that_ends(
    full: dict[str, Any], given: Mapping[str, Any], samples: int
) -> dict[str, Any]:
    """Half of the training for a recipe's rise that is longer than it; a given one is refused.

    Otherwise the loss that was asked for would never be trained.
    """
    name = f"{ADVERSARIAL}warmup" if full["loss"] == "adversarial" else "warmup"
    steps = full["epochs"] * math.ceil(samples / full["batch_size"])
    if full["loss"] == "cross_entropy" or full[name] < steps:
        return full
    if name not in given:
        return {**full, name: steps // 2}
    raise SettingsError(
        f"{name} must be less than the {steps} steps of the training ({full['epochs']} epochs of "
        f"{samples} samples), got {full[name]}"
    )


def _require_free(folder: Path, ranks: Ranks, agreed: bool) -> None:
    """See that no run is lost by mistake, before anything is read or written."""
    found = [name for name in (CHECKPOINT, SETTINGS) if (folder / name).exists()]
    # Other ranks may look when rank 0 already writes.
    found = ranks.broadcast_from_rank0(found)
    if found and not agreed:
        raise RunExistsError(
            f"{folder} holds a run ({found[0]}): add --resume to go on with it or --fresh to start "
            "over, or choose another --out"
        )


def _prepare_torch(settings: Mapping[str, Any]) -> None:
    torch.set_num_threads(settings["threads"])
    if settings["deterministic"] and torch.device(settings["device"]).type == "cuda":
        # cuBLAS reads it at its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def _usable(device: torch.device) -> torch.device:
    try:
        torch.empty(0, device=device)
    # torch asserts that it was compiled for the device.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingsError(f"device {device} cannot be used: {reason}") from error
    return device


def _title(settings: Mapping[str, Any]) -> str:
    if settings["loss"] == "cross_entropy":
        title = "cross-entropy"
    elif settings["loss"] == "adversarial":
        title = f"adversarial, eps {settings['adversarial_eps']:g}"
        title += f", steps {settings['adversarial_steps']}"
    else:
        # The hyphen is that of an adjective: first-order margin.
        margin = settings["margin"].replace("first_order", "first-order").replace("_", " ")
        margin += " margin" * (settings["margin"] != "logit_gap")
        title = f"{margin}, mu {settings['mu']:g}, tau {settings['tau']:g}"
    return title + (f", beta {settings['beta']:g}" if settings["beta"] else "")


def _objective(settings: Mapping[str, Any], device: torch.device) -> TrainingObjective:
    if settings["loss"] == "adversarial":
        return _adversarial(settings)
    if settings["loss"] == "cross_entropy":
        criterion: nn.Module = nn.CrossEntropyLoss(label_smoothing=settings["label_smoothing"])
    else:
        criterion = _margin_loss(settings)
    return Objective(criterion.to(device), settings["beta"])


def _adversarial(settings: Mapping[str, Any]) -> AdversarialTraining:
    given = {field: settings[name] for name, field in options_with(ADVERSARIAL).items()}
    if given["eps"] is None:
        raise SettingsError("loss adversarial needs adversarial_eps, the radius of the ball")
    if settings["beta"]:
        raise SettingsError("beta has no effect with loss adversarial: leave it out")
    low, high = settings["data_range"]
    threat = ThreatModel(
        p=float(settings["p"]), data_range=(low, high), input_std=settings["input_std"]
    )
    return AdversarialTraining(**given, label_smoothing=settings["label_smoothing"], threat=threat)


def _margin_loss(settings: Mapping[str, Any]) -> AverageMarginLoss:
    margin = settings["margin"]
    exact = margin == "first_order" and settings["gradient"] == "double_backward"
    if settings["compile"] not in ("off", "eager") and (exact or margin == "additive"):
        other = "gradient finite_difference, detached or auto" if exact else "another margin"
        raise SettingsError(f"compile needs {other}: torch.compile has no double backward")
    options = {name: settings[name] for name in loss_options()}
    if margin in _MARGINS:
        kind, prefix = _MARGINS[margin]
        fields = {field: settings[name] for name, field in options_with(prefix).items()}
        low, high = settings["data_range"]
        options["margin"] = kind(data_range=(low, high), **fields)
    difference = {field: settings[name] for name, field in options_with(DIFFERENCE).items()}
    if difference["data_range"] is not None:
        difference["data_range"] = tuple(difference["data_range"])
    if options["gradient"] == "finite_difference":
        options["gradient"] = FiniteDifference(**difference)
    elif options["gradient"] == "auto":
        options["gradient"] = Auto(FiniteDifference(**difference))
    return AverageMarginLoss(**options)


def _evaluation(settings: Mapping[str, Any]) -> Evaluation:
    std = settings["input_std"]
    low, high = settings["data_range"]
    fields = {name: settings[name] for name in Evaluation.__dataclass_fields__}
    return Evaluation(
        **{
            **fields,
            "eps_attack": tuple(settings["eps_attack"]),
            "measure_p": float(settings["measure_p"]),
            "data_range": (low, high),
            "input_std": tuple(std) if isinstance(std, list) else std,
        }
    )
