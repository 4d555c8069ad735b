"""First-order margins by class rule, several norms in one pass (arXiv 1907.11780, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from margin_ext.bounds.all_classes import AllClasses
from margin_ext.bounds.class_search import ClassSearch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from margin_ext.bounds.margin_sketch import MarginSketch
    from margin_ext.models.evaluation_mode import Model
    from margin_ext.threat import ThreatModel

__all__ = [
    "ClassRule",
    "FirstOrderMargins",
    "FirstOrderOptions",
    "check_class_rule",
    "first_order_margins",
]

ClassRule = Literal["all", "runner_up"] | int | AllClasses


class FirstOrderMargins(NamedTuple):
    """First-order margins of a batch for P threat models; everything detached.

    Attributes:
        logits: [B, C].
        gap: Logit gap to the runner-up [B].
        runner_up: [B].
        margin: [P, B], signed; infinite where every gradient is 0.
        nearest_class: The class that attains the margin [P, B].
        nearest_rank: Its place among the other classes by logit [P, B]; 1 is the runner-up.
        norm: Dual norm of that class's gradient [P, B].
        gradients: Classes whose gradient was computed [B].
        directions: Random directions that bounded the others; 0: every class has its gradient.
        by_differences: These bounds come from finite differences.
    """

    logits: Tensor
    gap: Tensor
    runner_up: Tensor
    margin: Tensor
    nearest_class: Tensor
    nearest_rank: Tensor
    norm: Tensor
    gradients: Tensor
    directions: int
    by_differences: bool


def check_class_rule(rule: ClassRule) -> None:
    """Require "all", "runner_up", an AllClasses or a number of classes of at least 1."""
    if isinstance(rule, AllClasses) or rule in ("all", "runner_up"):
        return
    if isinstance(rule, bool) or not isinstance(rule, int) or rule < 1:
        raise ValueError(
            'classes must be "all", AllClasses(...), "runner_up" or a number of classes >= 1, got '
            f"{rule!r}"
        )


def number_of_classes(rule: ClassRule) -> int | None:
    """How many classes other than the label the rule looks at, at most; None: at all."""
    if rule == "all" or isinstance(rule, AllClasses):
        return None
    return 1 if rule == "runner_up" else int(rule)


@dataclass(frozen=True)
class FirstOrderOptions:
    """What first-order margins are measured in, and to which classes.

    Attributes:
        threats: Norms and units; the data range is not used.
        classes: "all", "runner_up" or the number of top classes.
        norm_bound: For each threat model an upper bound on the dual norm of every gap's gradient
            (a global Lipschitz constant). Since the gaps grow with the rank, the passes end where
            gap / bound exceeds the margins found; the answer is the same.
        sketch: A sketch for the same threat models; used where all classes are looked at.

    Raises:
        ValueError: There is no such class rule, or norm_bound does not hold a positive number for
            each threat model.
    """

    threats: Sequence[ThreatModel]
    classes: ClassRule = "all"
    norm_bound: Sequence[float] | None = None
    sketch: MarginSketch | None = None

    def __post_init__(self) -> None:
        check_class_rule(self.classes)
        bound, count = self.norm_bound, len(self.threats)
        if bound is not None and (len(bound) != count or not all(value > 0 for value in bound)):
            raise ValueError(f"norm_bound must be positive, one for each of {count} norms")


def first_order_margins(
    model: Model,
    inputs: Tensor,
    label: Tensor | None,
    options: FirstOrderOptions,
    progress: Callable[[float], None] = lambda _: None,
) -> FirstOrderMargins:
    """Smallest gap-to-gradient-norm ratio over the classes that the rule names.

    One forward pass, then one backward pass for each rank in the order of the logits: in pass r
    every sample differentiates its gap to its own r-th class. With a sketch, where it serves so
    many classes: first the sketch's forward passes, then backward passes in the order of its
    bounds, until no class that is left can be nearer.

    Args:
        model: In eval mode.
        inputs: [B, ...].
        label: Class [B] from which the gaps are measured; None: the predicted class.
        options: The norms, and the classes that are looked at.
        progress: Told what part of the work is done, from 0 to 1.

    Raises:
        ValueError: Labels or logits do not fit, or a gradient's norm exceeds its bound.
    """
    threats, sketch = options.threats, options.sketch
    search = ClassSearch(
        model, inputs, label, threats, norm_bound=options.norm_bound, progress=progress
    )
    every = options.classes == "all" or isinstance(options.classes, AllClasses)
    if not (every and sketch is not None and sketch.why_not is None and search.by_sketch(sketch)):
        search.in_order(number_of_classes(options.classes))
    rank = search.nearest.rank[:, :, 0]
    return FirstOrderMargins(
        logits=search.logits,
        gap=search.gaps[:, 0],
        runner_up=search.order[:, 0],
        margin=search.nearest.margin[:, :, 0],
        nearest_class=search.order.expand(len(threats), -1, -1).gather(2, rank.unsqueeze(2))[
            :, :, 0
        ],
        nearest_rank=rank + 1,
        norm=search.nearest.norm[:, :, 0],
        gradients=search.nearest.gradients,
        directions=search.directions,
        by_differences=search.by_differences,
    )
