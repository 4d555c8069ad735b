"""The options of AverageMarginLoss, each once, checked once."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Literal

from torch import Tensor

from margin_ext.checks import check_classes, check_numbers
from margin_ext.gradient_mode import GradientMode, gradient_mode, margin
from margin_ext.loss_settings import LossSettings, check_word
from margin_ext.regularizers import Regularizer, resolve_regularizer
from margin_ext.threat import DataRange, ThreatModel
from margin_ext.training_steps import check_step_options

__all__ = ["BatchNormPolicy", "LossOptions"]

# batch: all passes normalise by the batch's own statistics, as the cross-entropy's does.
# running: the margin is that of the network as it will be used, with the running statistics.
BatchNormPolicy = Literal["batch", "running"]

# What the options are where they are not used.
_UNUSED = {"classes": "runner_up", "fraction": 1.0, "every": 1, "batchnorm": "batch"}


@dataclass(frozen=True, eq=False)
class LossOptions(LossSettings):
    """The options of :class:`margin_ext.AverageMarginLoss`, which takes them as keywords.

    ``criterion.options`` holds them. They cannot be changed one by one; ``criterion.tau = 1.0`` or
    ``criterion.options = dataclasses.replace(criterion.options, tau=1.0, mu=2.0)`` puts others in
    their place, with all checks.

    Attributes:
        p: Threat norm that margins are measured in: 1, 2, "inf" or any real number above 1.
        mu: Weight of the regularizer.
        tau: How far margins are pushed, in the unit of the margin (see ``regularizer``).
        regularizer: "ramp", clamp(tau - t, 0, tau), lifts margins of correctly classified samples
            up to tau; "negative_ramp", clamp(-t, 0, tau), pushes misclassified samples only, as the
            authors' code does; "hinge", "linear", "softplus", "exponential"; a name given to
            :func:`register_regularizer`; or a :class:`Regularizer`, which has its own tau.
        margin: "first_order" (distance to the boundary of the tangent), "secant" or
            :class:`Secant` (along the way to the point that a short attack finds: needs no second
            derivatives, ``run`` only), "distance" or :class:`Distance` (to the boundary that a
            search finds; ``run`` only), "additive" or :class:`Additive` (lowers the label's logit
            by tau times the gradient norm) or "logit_gap" (the authors'; p, eps and input_std have
            no effect on it).
        gradient: How the norm of the input gradient is differentiated: "double_backward" (exact;
            the model must be twice differentiable), "finite_difference" or
            :class:`FiniteDifference` (one or two more passes and no second derivatives; with
            ``run`` only), "detached" (the norm is a constant: cheapest, and weaker) or "auto"
            (double_backward, and where ``run`` finds that the model lacks it, finite_difference,
            with a warning). For margin="first_order".
        classes: Which classes the margin is taken over: "runner_up" (one gradient pass), k (the k
            largest other logits: k more passes) or "all".
        fraction: The fraction of each batch whose margins are taken, chosen at random and run by
            itself (with ``run`` only).
        every: Take margins only in one of so many training steps, with mu times as much weight; in
            between the loss is the cross-entropy. A step consists of all calls up to the
            next step of an optimizer (both passes of SAM, the closures of LBFGS, the parts of an
            accumulated batch), or of all calls inside ``with criterion.one_step()``. Without an
            optimizer of torch each call is a step. ``criterion.steps`` counts them; a continued
            training sets it.
        warmup: Training steps in which mu rises evenly from near 0, for settings under which an
            untrained network would not begin to learn.
        batchnorm: What BatchNorm in training normalises by where margins are concerned: "batch",
            as everywhere in training, or "running", as in the finished network (a pass of its
            own; with ``run`` only).
        validate: Check labels on CUDA too, and synchronise; on CPU they always are. Otherwise a
            label out of range gives a NaN loss or a device-side assertion (docs/labels.md).

    ``eps``, ``weight``, ``ignore_index``, ``label_smoothing``, ``reduction``, ``input_std`` and
    ``aggregation`` are those of :class:`margin_ext.loss_settings.LossSettings`.

    Raises:
        ValueError: An option is out of its range, or has no effect with the others.

    Example:
        >>> LossOptions(tau=2.0).phi
        Regularizer(kind='ramp', lo=0.0, hi=2.0)
    """

    tau: float = 3.0
    _: KW_ONLY
    regularizer: Regularizer | str = "ramp"
    margin: str | GradientMode = "first_order"
    gradient: str | GradientMode = "double_backward"
    classes: str | int = "runner_up"
    fraction: float = 1.0
    every: int = 1
    warmup: int = 0
    batchnorm: BatchNormPolicy = "batch"
    validate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(tau=self.tau, fraction=self.fraction)
        check_word("batchnorm", self.batchnorm, BatchNormPolicy)
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {self.fraction}")
        check_step_options(self.every, self.warmup)
        check_classes(self.classes)
        resolve_regularizer(self.regularizer, self.tau)
        # A word becomes its mode once, so that a mode can remember what it found.
        for name, resolve in (("margin", margin), ("gradient", gradient_mode)):
            given: Any = getattr(self, name)
            if (resolved := resolve(given)) is not given:
                object.__setattr__(self, name, resolved)
        if self.margin != "first_order" and self.gradient != gradient_mode("double_backward"):
            self._refuse("gradient", self.gradient)
        if self.mode is None:
            for name, unused in _UNUSED.items():
                if getattr(self, name) != unused:
                    self._refuse(name, getattr(self, name))
        else:
            self.mode.check(self)

    def _refuse(self, name: str, value: object) -> None:
        raise ValueError(
            f"{name}={value!r} has no effect with margin={self.margin!r}: leave it out, or take "
            'margin="first_order"'
        )

    @property
    def phi(self) -> Regularizer:
        """The regularizer as a function of the margin."""
        return resolve_regularizer(self.regularizer, self.tau)

    @property
    def mode(self) -> GradientMode | None:
        """What finds the margins and their gradient; None for margin="logit_gap"."""
        if self.margin == "logit_gap":
            return None
        found = self.gradient if self.margin == "first_order" else self.margin
        assert not isinstance(found, str)
        return found

    def __str__(self) -> str:
        """The main options, and others that are not the defaults, as they would be written."""
        always = ("p", "mu", "tau", "regularizer", "margin", "gradient", "classes", "reduction")
        shown = {name: getattr(self, name) for name in always}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in always or isinstance(value, Tensor):
                continue
            if value != field.default:
                shown[field.name] = value
        if isinstance(self.input_std, Tensor):
            shown["input_std"] = self.input_std.tolist()
        shown["regularizer"] = self.phi
        return ", ".join(f"{name}={value}" for name, value in shown.items())

    def threat(self, data_range: DataRange | None = None) -> ThreatModel:
        """The threat model of the loss, with the range that moved inputs stay in."""
        return ThreatModel(p=float(self.p), data_range=data_range, input_std=self.input_std)

    def refuse_regularizer(self, what: str) -> None:
        """Raise where a regularizer was chosen, for modes that minimise something else."""
        if self.regularizer != "ramp":
            raise ValueError(
                f"regularizer={self.regularizer!r} has no effect with {what}: leave it out"
            )

    def check_length(self, what: str, advice: str = "") -> None:
        """Require a tau that makes a length, for modes that step by it."""
        if not 0 < self.tau < math.inf:
            problem = f"{what} tau, which must be above 0 and finite, got {self.tau}"
            raise ValueError(problem + advice)
