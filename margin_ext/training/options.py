"""The settings of a training run: one table for the command line, settings files and checks.

Defaults stand where they belong, in the signatures of what the settings are passed to.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from margin_ext.data.augmentation import Augmentation
from margin_ext.gradient_modes import FiniteDifference, Secant
from margin_ext.loss import AverageMarginLoss
from margin_ext.training.evaluation import Evaluation
from margin_ext.training.objective import Objective
from margin_ext.training.recipe import OPTIMIZERS, PRECISIONS, SCHEDULES, Recipe
from margin_ext.training.sources import DATA

__all__ = ["DIFFERENCE", "LOSSES", "OPTIONS", "SECANT", "SECTIONS", "Option", "defaults"]

SECTIONS: Final = {
    "data": "what to train on",
    "model": "what to train",
    "loss": "what to minimise; see the README for the options of AverageMarginLoss",
    "optimizer": "how weights are stepped",
    "train": "how long, and on what",
    "measure": "what is measured over the epochs and at the end",
}

LOSSES: Final = ("average_margin", "cross_entropy")

# FiniteDifference's fields are options of their own, with these names.
DIFFERENCE: Final = {
    "difference_scheme": "scheme",
    "difference_step": "step",
    "difference_unit": "unit",
}


# And so are Secant's; its data range is that of the images.
SECANT: Final = {"secant_steps": "steps", "secant_radius": "radius"}


@dataclass(frozen=True)
class Option:
    """One setting.

    Attributes:
        name: In settings files; on the command line with dashes.
        section: Of a settings file.
        read: Makes a value of what a file or the command line holds; ValueError says what it
            should be.
        help: One line.
        default: None: depends on other settings.
        count: Values it takes on the command line: 1, a number, or "+".
        choices: The words that it can be, where it alone knows them.
        resumable: A run that is continued may have another value: the weights do not depend on it.
    """

    name: str
    section: str
    read: Callable[[Any], Any]
    help: str
    default: Any = None
    count: int | str = 1
    choices: tuple[str, ...] | None = None
    resumable: bool = False

    @property
    def flag(self) -> str:
        """On the command line."""
        return f"--{self.name.replace('_', '-')}"

    def value(self, given: Any) -> Any:
        """A checked value.

        Raises:
            ValueError: It is none of this option's; the message says what was expected.
        """
        try:
            value = self.read(given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: expected {error}, got {given!r}") from error
        if self.choices is not None and value not in self.choices:
            raise ValueError(f"{self.name} must be one of {', '.join(self.choices)}, got {given!r}")
        return value


def _word(given: Any) -> str:
    if not isinstance(given, str) or not given:
        raise ValueError("a word")
    return given


def _truth(given: Any) -> bool:
    if not isinstance(given, bool):
        raise ValueError("true or false")  # noqa: TRY004
    return given


def _number(given: Any) -> float:
    if isinstance(given, bool):
        raise ValueError("a number")  # noqa: TRY004
    try:
        return float(given)
    except (TypeError, ValueError):
        raise ValueError("a number") from None


def _whole(given: Any) -> int:
    number = _number(given)
    if not number.is_integer():
        raise ValueError("a whole number")
    return int(number)


def _at_least(least: int) -> Callable[[Any], int]:
    def read(given: Any) -> int:
        number = _whole(given)
        if number < least:
            raise ValueError(f"a whole number of at least {least}")
        return number

    return read


def _norm(given: Any) -> float | str:
    """As numbers where whole, so that 2 and 2.0 are the same setting; infinity as a word."""
    number = _number(given)
    if number == float("inf"):
        return "inf"
    return int(number) if number.is_integer() else number


def _classes(given: Any) -> int | str:
    return given if given in ("runner_up", "all") else _at_least(1)(given)


def _numbers(given: Any) -> list[float]:
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    return [_number(one) for one in several]


def _deviation(given: Any) -> float | list[float]:
    several = _numbers(given)
    return several[0] if len(several) == 1 else several


def _range(given: Any) -> list[float]:
    ends = _numbers(given)
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise ValueError("the lowest and the highest value")
    return ends


def _radii(given: Any) -> list[float]:
    radii = sorted(_numbers(given))
    if not radii or not radii[0] > 0:
        raise ValueError("radii above 0")
    return radii


def _default(owner: Callable[..., Any], name: str) -> Any:
    return inspect.signature(owner).parameters[name].default


def _loss(name: str, read: Callable[[Any], Any], told: str, count: int | str = 1) -> Option:
    return Option(name, "loss", read, told, _default(AverageMarginLoss, name), count)


def _difference(name: str, read: Callable[[Any], Any], told: str) -> Option:
    return Option(name, "loss", read, told, _default(FiniteDifference, DIFFERENCE[name]))


def _secant(name: str, read: Callable[[Any], Any], told: str) -> Option:
    return Option(name, "loss", read, told, _default(Secant, SECANT[name]))


def _recipe(
    name: str, section: str, read: Callable[[Any], Any], told: str, choices: Sequence[str] = ()
) -> Option:
    default = _default(Recipe, name)
    return Option(name, section, read, told, default, choices=tuple(choices) or None)


def _measure(
    name: str, read: Callable[[Any], Any], told: str, default: Any = None, count: int | str = 1
) -> Option:
    return Option(name, "measure", read, told, default, count, resumable=True)


_ALL: Final = (
    Option("data", "data", _word, "data set", "digits", choices=DATA),
    Option(
        "data_dir", "data", _word, "folder of MNIST's or CIFAR-10's files; for npz the file",
        resumable=True,
    ),
    Option(
        "data_range", "data", _range,
        "lowest and highest value of an npz file's images, where they are no bytes",
        [0.0, 1.0], count=2,
    ),
    Option("limit", "data", _at_least(1), "only the first so many training images"),
    Option(
        "crop", "data", _at_least(0), "shift training images at random, by up to so many pixels",
        _default(Augmentation, "crop"),
    ),
    Option(
        "flip", "data", _truth, "mirror half of the training images, at random",
        _default(Augmentation, "flip"),
    ),
    Option(
        "model", "model", _word,
        "small_cnn, resnet, one of the authors' (mnist_linear, mnist_mlp, mnist_cnn, cifar_linear, "
        "cifar_mlp, cifar_cnn), or module:callable",
        "small_cnn",
    ),
    Option("loss", "loss", _word, "what to minimise", "average_margin", choices=LOSSES),
    _loss("p", _norm, "threat norm: 1, 2, inf or any number above 1"),
    _loss("mu", _number, "weight of the regularizer"),
    _loss("tau", _number, "how far margins are pushed, in the unit of the margin"),
    _loss(
        "regularizer", _word, "ramp, negative_ramp, hinge, linear, softplus or exponential"
    ),
    _loss("margin", _word, "first_order, secant or logit_gap"),
    _loss("gradient", _word, "double_backward, finite_difference, detached or auto"),
    _difference("difference_scheme", _word, "of finite differences: backward, forward or central"),
    _difference("difference_step", _number, "their length"),
    _difference("difference_unit", _word, "its unit: margin, tau, inputs or absolute"),
    _secant("secant_steps", _at_least(1), "of the attack that secant margins look along"),
    _secant("secant_radius", _number, "of that attack, in units of tau"),
    _loss("classes", _classes, "runner_up, all, or the number of nearest classes"),
    _loss("eps", _number, "floor of the gradient norm"),
    _loss("label_smoothing", _number, "of the cross-entropy"),
    _loss(
        "input_std", _deviation,
        "the standard deviation(s) by which the images were divided: margins are in pixel units",
        "+",
    ),
    _loss("fraction", _number, "share of each batch whose margins are taken"),
    _loss("every", _at_least(1), "take margins in every so many steps"),
    _loss("warmup", _at_least(0), "steps in which mu rises from near 0"),
    _loss("batchnorm", _word, "what margins are normalised by: batch or running"),
    Option(
        "beta", "loss", _number, "weight of the orthogonality penalty, of either loss",
        _default(Objective, "beta"),
    ),
    _recipe("optimizer", "optimizer", _word, "how weights are stepped", OPTIMIZERS),
    Option(
        "learning_rate", "optimizer", _number,
        "at its peak (default: 0.05 for sgd, 0.001 for adam and adamw)",
    ),
    _recipe("momentum", "optimizer", _number, "Nesterov's; the first beta of adam"),
    _recipe("weight_decay", "optimizer", _number, "of the optimizer"),
    _recipe("schedule", "optimizer", _word, "of the learning rate", SCHEDULES),
    Option("epochs", "train", _at_least(1), "passes through the training data", 10),
    _recipe("batch_size", "train", _at_least(1), "of each step, over all processes"),
    _recipe("seed", "train", _whole, "of all that is random"),
    _recipe("precision", "train", _word, "of the model's passes", tuple(PRECISIONS)),
    _recipe("compile", "train", _word, "off, or a backend of torch.compile such as inductor"),
    Option("device", "train", _word, "such as cpu or cuda (default: cuda where there is one)"),
    Option("threads", "train", _at_least(1), "of PyTorch on the CPU (default: its own choice)"),
    Option(
        "deterministic", "train", _truth,
        "on cuda: only operations that repeat bit for bit, where there are such", True,
    ),
    Option("monitor", "measure", _truth, "follow the margins over the epochs", True),
    Option(
        "monitor_limit", "measure", _at_least(1), "on so many images of each part", 500,
    ),
    Option(
        "part", "measure", _word,
        "images that are reported on; choose settings on validation",
        _default(Evaluation, "part"), choices=("test", "validation"),
    ),
    Option(
        "measure_p", "measure", _norm,
        "threat norm of what is measured, 2 or inf (default: that of the loss, or else 2)",
    ),
    _measure("report", _truth, "measure and attack the trained model", True),
    _measure(
        "eps_attack", _radii, "radii of the attacks (default: by data and norm)", count="+"
    ),
    _measure(
        "attack_steps", _at_least(1), "of projected gradient descent",
        _default(Evaluation, "attack_steps"),
    ),
    _measure(
        "attack_restarts", _at_least(1), "of projected gradient descent",
        _default(Evaluation, "restarts"),
    ),
    _measure(
        "distance_steps", _at_least(1), "of the search for the nearest adversarial example",
        _default(Evaluation, "distance_steps"),
    ),
    _measure("measure_limit", _at_least(1), "images of each part to measure and attack", 1000),
)  # fmt: skip

OPTIONS: Final = {option.name: option for option in _ALL}


def defaults() -> dict[str, Any]:
    """The value of each option that nobody has set; None where it depends on others."""
    return {option.name: option.default for option in _ALL}
