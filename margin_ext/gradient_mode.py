"""What a gradient mode is, and the words that stand for modes.

The modes of the package are in ``margin_ext.gradient_modes``, one a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TypeGuard

if TYPE_CHECKING:
    from torch import Tensor

    # modes are called with these; the registry needs neither
    from margin_ext.gradient_modes.check_report import Measured
    from margin_ext.gradient_modes.step import Step
    from margin_ext.loss_options import LossOptions
    from margin_ext.op_results import MarginLoss

__all__ = [
    "GradientMode",
    "gradient_mode",
    "gradient_mode_names",
    "margin",
    "margin_names",
    "register_gradient_mode",
    "register_margin",
]


class GradientMode(Protocol):
    """How the margins of a pass, and their gradient, come into the loss.

    A subclass has to have ``__call__`` only.

    Example:
        >>> from margin_ext import AverageMarginLoss
        >>> class ConstantNorm(GradientMode):
        ...     def __call__(self, step):
        ...         nearest = step.nearest()
        ...         grad = step.input_gradient(nearest, create_graph=False)
        ...         return step.loss(grad, nearest)
        >>> criterion = AverageMarginLoss(gradient=ConstantNorm())
    """

    @property
    def reruns(self) -> int:
        """How many further passes it makes, at other inputs; 0: it does not run the model."""
        return 0

    @property
    def deferred(self) -> bool:
        """Whether all of these passes can be made in the backward."""
        return False

    @property
    def asks_dependence(self) -> bool:
        """Whether its gradient depends on whether samples depend on each other."""
        return False

    @property
    def advice(self) -> str:
        """What to do where the model cannot be differentiated so; for ``criterion.check``."""
        return ""

    def start(self, inputs: Tensor, options: LossOptions) -> Tensor:
        """The inputs that the model is run on, for inputs [B, ...]."""
        del options
        return inputs

    def without_noise(self) -> GradientMode:
        """The mode of validation, where a loss should have one value."""
        return self

    def check(self, options: LossOptions) -> None:
        """Raise ValueError where the mode cannot serve the options."""
        del options  # all are served

    def __call__(self, step: Step) -> MarginLoss:
        """The loss of a step, to be differentiated by the parameters."""
        ...

    def explain(self, measured: Measured) -> tuple[str, str]:
        """The verdict ("approximates" or "wrong") and a sentence, where the gradient is off."""
        return "wrong", f"The regularizer's gradient is off by {measured.margin_error:.2g}."


_MODES: Final[dict[str, Callable[[], GradientMode]]] = {}
_MARGINS: Final[dict[str, Callable[[], GradientMode]]] = {}


def register_gradient_mode(name: str, make: Callable[[], GradientMode]) -> None:
    """Let ``AverageMarginLoss(gradient=name)`` stand for ``make()``.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> from margin_ext.gradient_modes import Detached
        >>> register_gradient_mode("constant_norm", Detached)
        >>> gradient_mode("constant_norm")
        Detached()
    """
    _register(_MODES, name, make)


def register_margin(name: str, make: Callable[[], GradientMode]) -> None:
    """Let ``AverageMarginLoss(margin=name)`` stand for ``make()``, which finds its own margins."""
    _register(_MARGINS, name, make)


def _register(
    table: dict[str, Callable[[], GradientMode]], name: str, make: Callable[[], GradientMode]
) -> None:
    if name in table:
        raise ValueError(f"there is a {name!r} already")
    table[name] = make


def gradient_mode_names() -> tuple[str, ...]:
    """The words that ``AverageMarginLoss(gradient=...)`` takes.

    Example:
        >>> gradient_mode_names()[:4]
        ('double_backward', 'finite_difference', 'auto', 'detached')
    """
    return tuple(_MODES)


def margin_names() -> tuple[str, ...]:
    """The words that ``AverageMarginLoss(margin=...)`` takes.

    Example:
        >>> margin_names()
        ('first_order', 'additive', 'distance', 'secant', 'logit_gap')
    """
    return ("first_order", *_MARGINS, "logit_gap")


def _is_mode(word: object) -> TypeGuard[GradientMode]:
    # isinstance() of a protocol looks at each of its members, which every step would pay for.
    return not isinstance(word, str) and hasattr(word, "explain") and callable(word)


def gradient_mode(word: str | GradientMode) -> GradientMode:
    """The mode that a word stands for; a mode is returned as it is.

    Raises:
        ValueError: There is no such mode.

    Example:
        >>> gradient_mode("double_backward")
        DoubleBackward()
    """
    if _is_mode(word):
        return word
    if not isinstance(word, str) or word not in _MODES:
        raise ValueError(
            f"gradient must be one of {', '.join(_MODES)}, or a mode such as "
            f'FiniteDifference("central"), got {word!r}'
        )
    return _MODES[word]()


def margin(word: str | GradientMode) -> str | GradientMode:
    """The mode that finds the margins; "first_order" and "logit_gap" are returned as they are.

    Raises:
        ValueError: There is no such margin.

    Example:
        >>> margin("first_order")
        'first_order'
    """
    if word in ("first_order", "logit_gap"):
        return word
    if _is_mode(word):
        return word
    if not isinstance(word, str) or word not in _MARGINS:
        raise ValueError(
            f"margin must be one of {', '.join(margin_names())}, or an object such as "
            f"Secant(...), got {word!r}"
        )
    return _MARGINS[word]()
