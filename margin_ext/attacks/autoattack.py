"""AutoAttack (Croce and Hein, arXiv 2003.01690), through the package pyautoattack.

That package holds the authors' own code, with l1, l2 and linf and a seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from margin_ext.attacks.attack import AttackResult, register_attack
from margin_ext.checks import shape_text
from margin_ext.functional import logit_gap
from margin_ext.models.checked_logits import checked_logits
from margin_ext.models.evaluation_mode import Model
from margin_ext.threat import ThreatModel, check_radius, require_attackable

__all__ = ["AutoAttack"]

_KNOWN = ("apgd-ce", "apgd-t", "apgd-dlr", "fab-t", "fab", "square")


@register_attack
@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """The standard version: APGD on the cross-entropy, targeted APGD and FAB, Square.

    Needs the extra ``attacks``, images [B, Ch, H, W] (Square of at least about 28 x 28 in l1 and
    l2) and a data range whose span in pixel units is the same for all channels. With three
    classes the targeted attacks give way to untargeted ones, with two classes APGD on the logit
    ratio is left out: the ratio needs three logits. Its random numbers depend on the batch, so
    results may change with the size of batches.

    Attributes:
        queries: Queries of Square.
        seed: Seed of all of them.
        parts: Run only these attacks, by the library's names, such as ("apgd-ce", "apgd-t"); None:
            all of the standard version. FAB and Square take most of the time.

    Example:
        >>> attack = AutoAttack(parts=("apgd-ce", "square"), queries=1000)
        >>> attack.settings()
        {'queries': 1000, 'seed': 0, 'parts': ('apgd-ce', 'square')}
        >>> robust_accuracy(model, data, 0.5, data_range=(0, 1), attacks=[attack])  # doctest: +SKIP
    """

    queries: int = 5000
    seed: int = 0
    parts: tuple[str, ...] | None = None

    name: ClassVar[str] = "autoattack"
    title: ClassVar[str] = "AutoAttack"

    def __post_init__(self) -> None:
        if self.parts is None:
            return
        unknown = [part for part in self.parts if part not in _KNOWN]
        if unknown or not self.parts:
            raise ValueError(
                f"parts must be from {', '.join(_KNOWN)}, got {', '.join(unknown) or 'none'}"
            )

    def check(self, threat: ThreatModel) -> None:
        """Raise ValueError where AutoAttack does not exist for the threat model."""
        require_attackable(threat)
        if threat.data_range is None:
            raise ValueError("AutoAttack needs data_range")

    def settings(self) -> dict[str, Any]:
        """Everything that the results depend on."""
        return dataclasses.asdict(self)

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        target: Tensor,
        eps: float,
        *,
        threat: ThreatModel,
        indices: Sequence[int] | None = None,
    ) -> AttackResult:
        """Attack images [B, Ch, H, W] of class target [B].

        Raises:
            ImportError: The package is not installed.
            ValueError: The inputs are no images, or the channels' spans differ.
        """
        self.check(threat)
        check_radius(eps)
        if inputs.dim() != 4:
            raise ValueError(f"AutoAttack attacks images [B, Ch, H, W], got {shape_text(inputs)}")
        images = _UnitImages(model, inputs, threat)
        unit = images.to_unit(inputs.detach())
        with torch.no_grad():
            classes = checked_logits(model, inputs[:1]).shape[1]
        library = _library()(
            images,
            attacks=list(self.parts or _names(classes)),
            device=inputs.device,
            eps=eps / images.span,
            norm={1.0: "L1", 2.0: "L2"}.get(threat.p, "Linf"),
            seed=self.seed,
            version="custom",
        )
        library.verbose = False
        library.apgd.n_restarts = library.fab.n_restarts = 1
        library.apgd_targeted.n_target_classes = min(9, classes - 1)
        library.fab.n_target_classes = min(9, classes - 1)
        library.square.n_queries = self.queries
        found = library.run_standard_evaluation(unit, target, batch_size=max(len(unit), 1))
        # What the library returns is moved into the ball and the range, and judged again.
        radius = inputs.new_full(target.shape, eps)
        point = threat.project(images.from_unit(_points(found)), inputs.detach(), radius)
        with torch.no_grad():
            robust = logit_gap(checked_logits(model, point), target).gap > 0
        rows = robust.reshape(-1, 1, 1, 1)
        return AttackResult(robust, torch.where(rows, inputs.detach(), point))


def _names(classes: int) -> list[str]:
    if classes >= 4:
        return ["apgd-ce", "apgd-t", "fab-t", "square"]
    return ["apgd-ce", *(["apgd-dlr"] if classes == 3 else []), "fab", "square"]


def _points(found: Any) -> Tensor:
    points: Tensor = found[0] if isinstance(found, tuple) else found
    return points


def _library() -> Callable[..., Any]:
    try:
        from pyautoattack import AutoAttack as Library
    except ImportError as error:
        raise ImportError(
            "AutoAttack needs pyautoattack: pip install 'margin_ext[attacks]'"
        ) from error
    made: Callable[..., Any] = Library
    return made


class _UnitImages(nn.Module):
    """The model as one of images in [0, 1], which is what AutoAttack assumes.

    Attributes:
        span: Length of the data range in pixel units.
    """

    def __init__(self, model: Model, inputs: Tensor, threat: ThreatModel) -> None:
        super().__init__()
        ends = threat.bounds(inputs)
        if ends is None:
            raise ValueError("AutoAttack needs data_range")
        self._call = model
        self._low = ends[0]
        self._width = ends[1] - ends[0]
        one = torch.ones_like(inputs[:1])
        span = self._width * one / threat.in_input_units(one)
        self.span = float(span.flatten()[0])
        if not torch.allclose(span, torch.full_like(span, self.span), rtol=1e-4, atol=0):
            raise ValueError(
                "AutoAttack needs a data range with the same span for all channels in pixel units"
            )

    def forward(self, unit: Tensor) -> Tensor:
        return self._call(self.from_unit(unit))

    def from_unit(self, unit: Tensor) -> Tensor:
        """Images in [0, 1] in the units that the model gets."""
        return self._low + unit * self._width

    def to_unit(self, inputs: Tensor) -> Tensor:
        """Inputs as images in [0, 1]."""
        return ((inputs - self._low) / self._width).clamp(0, 1)
