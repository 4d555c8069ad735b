"""The settings of a training run: one table for the command line, settings files and checks.

Names, words, defaults and help come from the classes that the settings are passed to. Nothing here
imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from margin_ext.data.data_source import DataError, data_forms, find_data_source
from margin_ext.training.declared_fields import MISSING, DeclaredField, declared_fields

__all__ = [
    "ADDITIVE",
    "ADVERSARIAL",
    "DIFFERENCE",
    "DISTANCE",
    "LOSSES",
    "OPTIONS",
    "RECIPES",
    "SECANT",
    "SECTIONS",
    "Option",
    "defaults",
    "loss_options",
    "options_with",
]

SECTIONS: Final = {
    "data": "what to train on",
    "model": "what to train",
    "loss": "what to minimise; the options of AverageMarginLoss",
    "optimizer": "how weights are stepped",
    "train": "how long, and on what",
    "measure": "what is measured over the epochs and at the end",
}

LOSSES: Final = ("average_margin", "cross_entropy", "adversarial")

# What docs/tuning.md recommends for robustness at a radius.
RECIPES: Final[Mapping[str, Callable[[float], dict[str, Any]]]] = {
    "robust": lambda radius: {
        "loss": "adversarial",
        "adversarial_eps": 1.25 * radius,
        "adversarial_steps": 2,
        "adversarial_warmup": 100,
        "eps_attack": [radius / 2, radius],
    }
}


@dataclass(frozen=True)
class Option:
    """One setting.

    Attributes:
        name: Its name in settings files; on the command line with dashes.
        section: Its section in a settings file.
        read: Makes a value of what a file or the command line holds; ValueError says what it
            should be.
        help: One line.
        default: None if it depends on other settings.
        count: Number of values on the command line: 1, another number, or "+".
        choices: The words that it can be, if there are only these.
        resumable: Whether a run that is continued may have another value.
    """

    name: str
    section: str
    read: Callable[[Any], Any]
    help: str | Callable[[], str]
    default: Any = None
    count: int | str = 1
    choices: tuple[str, ...] = ()
    resumable: bool = False

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def value(self, given: Any) -> Any:
        """A checked value.

        Raises:
            ValueError: It is no value of this option; the message says what was expected.
        """
        try:
            value = self.read(given)
        except DataError:
            raise
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: expected {error}, got {given!r}") from error
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name} must be one of {', '.join(self.choices)}, got {given!r}")
        return value


def _word(given: Any) -> str:
    if not isinstance(given, str) or not given:
        raise ValueError("a word")
    return given


def _data(given: Any) -> str:
    find_data_source(_word(given))
    return str(given)


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


def _number_or_word(given: Any) -> float | str:
    """Numbers as int where whole, so that 2 and 2.0 are the same setting; infinity as a word."""
    try:
        number = _number(given)
    except ValueError:
        return _word(given)
    if number == float("inf"):
        return "inf"
    return int(number) if number.is_integer() else number


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


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "int": _whole,
    "int | None": _whole,
    "float | None": _number,
    "float": _number,
    "bool": _truth,
    "str": _word,
    "InputStd": _deviation,
    "DataRange | None": _range,
}
# How many values stand on the command line, where it is not one.
_COUNTS: Final[Mapping[str, str | int]] = {"InputStd": "+", "DataRange | None": 2}


def _declared(
    module: str,
    owner: str,
    section: str | Callable[[str], str],
    *,
    prefix: str = "",
    without: Collection[str] = (),
    defaults: Mapping[str, Any] = {},
    resumable: Callable[[str], bool] = lambda name: False,
) -> list[Option]:
    """An option for each field of a class."""
    return [
        Option(
            prefix + found.name,
            section if isinstance(section, str) else section(found.name),
            _reader(found),
            found.help,
            defaults.get(found.name, None if found.default is MISSING else found.default),
            _COUNTS.get(found.type, 1),
            choices=found.words,
            resumable=resumable(found.name),
        )
        for found in declared_fields(module, owner).values()
        if found.name not in without
    ]


def _reader(found: DeclaredField) -> Callable[[Any], Any]:
    if found.words:
        return _word
    return _READERS.get(found.type, _number_or_word)


# The fields of modes are options of their own, under these prefixes.
DIFFERENCE: Final = "difference_"
SECANT: Final = "secant_"
# The search after the training has "distance_steps" already.
DISTANCE: Final = "distance_margin_"
ADDITIVE: Final = "additive_"
ADVERSARIAL: Final = "adversarial_"
_MODES: Final = "margin_ext.gradient_modes"
# Not for a mean loss over a batch with one label a sample.
_NOT_HERE: Final = ("weight", "ignore_index", "reduction", "aggregation", "validate")

_IN_TRAIN: Final = ("epochs", "batch_size", "seed", "precision", "compile")

_ALL: Final = (
    Option("data", "data", _data, lambda: f"data set: {data_forms()}", "digits"),
    Option(
        "data_dir", "data", _word, "where the data set's files are, if data does not say so",
        resumable=True,
    ),
    Option(
        "data_range", "data", _range,
        "lowest and highest value of the images, where they are not bytes",
        [0.0, 1.0], count=2,
    ),
    Option("limit", "data", _whole, "only the first so many training images"),
    *_declared("margin_ext.data.augmentation", "Augmentation", "data"),
    Option(
        "model", "model", _word,
        "a name such as small_cnn, resnet, mnist_cnn (a wrong one gives the list), or "
        "module:callable",
        "small_cnn",
    ),
    Option(
        "recipe", "loss", _word,
        "settings recommended for robustness at --radius, where others are not given",
        choices=tuple(RECIPES),
    ),
    Option("radius", "loss", _number, "the radius that the recipe is for, in the norm p"),
    Option("loss", "loss", _word, "what to minimise", "average_margin", choices=LOSSES),
    *_declared("margin_ext.loss_options", "LossOptions", "loss", without=_NOT_HERE),
    *_declared(f"{_MODES}.finite_difference", "FiniteDifference", "loss", prefix=DIFFERENCE),
    *_declared(f"{_MODES}.secant", "Secant", "loss", prefix=SECANT, without=("data_range",)),
    *_declared(f"{_MODES}.distance", "Distance", "loss", prefix=DISTANCE, without=("data_range",)),
    *_declared(f"{_MODES}.additive", "Additive", "loss", prefix=ADDITIVE, without=("data_range",)),
    *_declared(
        "margin_ext.training.adversarial_training", "AdversarialTraining", "loss",
        prefix=ADVERSARIAL, without=("label_smoothing", "threat"),
    ),
    Option("beta", "loss", _number, "weight of the orthogonality penalty, of either loss", 0.0),
    *_declared(
        "margin_ext.training.recipe", "Recipe",
        lambda name: "train" if name in _IN_TRAIN else "optimizer",
        defaults={"epochs": 10, "learning_rate": None},
        # A training can become longer.
        resumable=lambda name: name == "epochs",
    ),
    Option("device", "train", _word, "such as cpu or cuda (default: cuda if there is one)"),
    Option("threads", "train", _whole, "threads of PyTorch on the CPU (default: its own choice)"),
    Option(
        "deterministic", "train", _truth,
        "on cuda: only operations that repeat bit for bit, where there are such", True,
    ),
    Option(
        "save_every", "train", _number,
        "seconds after which the state is saved in mid-epoch too (one process)", 60.0,
        resumable=True,
    ),
    Option("monitor", "measure", _truth, "follow the margins over the epochs", True),
    Option("monitor_limit", "measure", _whole, "on so many images of each part", 500),
    *_declared(
        "margin_ext.training.evaluation", "Evaluation", "measure",
        without=("eps_attack", "measure_p", "data_range", "input_std"),
        # The history is that of one part and of one norm.
        defaults={"measure_limit": 1000}, resumable=lambda name: name != "part",
    ),
    Option(
        "measure_p", "measure", _number_or_word,
        "threat norm of what is measured, 2 or inf (default: that of the loss, or else 2)",
    ),
    Option(
        "eps_attack", "measure", _radii, "radii of the attacks (default: by data and norm)",
        count="+", resumable=True,
    ),
    Option(
        "report", "measure", _truth, "measure and attack the trained model", True, resumable=True
    ),
)  # fmt: skip

OPTIONS: Final = {option.name: option for option in _ALL}


def options_with(prefix: str) -> dict[str, str]:
    """The options with this prefix, and the fields that they stand for."""
    return {name: name.removeprefix(prefix) for name in OPTIONS if name.startswith(prefix)}


def loss_options() -> tuple[str, ...]:
    """The options that are fields of LossOptions."""
    fields = declared_fields("margin_ext.loss_options", "LossOptions")
    return tuple(name for name in OPTIONS if name in fields)


def defaults() -> dict[str, Any]:
    """The value of each option that nobody has set; None where it depends on others."""
    return {option.name: option.default for option in _ALL}
