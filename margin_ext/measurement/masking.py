"""Signs that a robustness figure says more of the attack than of the model (arXiv 1802.00420)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["UNDERFLOW", "MaskingDiagnosis", "diagnose"]

# Below this dual norm of its input gradient a sample's cross-entropy gives an attack no direction
# that survives rounding or a norm floor.
UNDERFLOW = 1e-6


@dataclass(frozen=True)
class MaskingDiagnosis:
    """What speaks against taking the robust accuracies at their word.

    Attributes:
        cross_entropy_underflow: Share of the correct samples whose cross-entropy gradient has a
            dual norm below 1e-6 (pixel units with input_std).
        gap_underflow: The same for the logit gap's gradient.
        cross_entropy_excess: Largest rise of robust accuracy over the radii when the attack uses
            the cross-entropy in place of the gap; NaN where one of them was not run.
        random_excess: Largest amount by which random points of the sphere leave less robust than
            the best gradient attack.
        large_eps: A radius at which no classifier can be right on all its classes.
        at_large_eps: Share that the gap attack leaves robust there.
        findings: The same in words; empty where nothing was found.
        cross_entropy_masked: Do not read the cross-entropy column.
        gap_masked: Do not read the gap column either: the model hides its gradients.
    """

    cross_entropy_underflow: float
    gap_underflow: float
    cross_entropy_excess: float
    random_excess: float
    large_eps: float
    at_large_eps: float
    findings: tuple[str, ...]
    cross_entropy_masked: bool
    gap_masked: bool

    def __str__(self) -> str:
        if not self.findings:
            return "No sign of gradient masking."
        return "\n".join(["Signs of gradient masking:", *(f"- {one}" for one in self.findings)])


def diagnose(
    *,
    robust: Mapping[str, Sequence[float]],
    random: Sequence[float],
    cross_entropy_underflow: float,
    gap_underflow: float,
    large_eps: float,
    at_large_eps: float,
    count: int,
) -> MaskingDiagnosis:
    """Judge robust accuracies by loss over the same radii.

    Differences count from two standard errors of a share of ``count`` samples on, at least 0.02.
    """
    tolerance = max(0.02, 2 * math.sqrt(0.25 / max(count, 1)))
    findings = []
    gap, ce = robust.get("gap"), robust.get("cross_entropy")
    ce_excess = gap_excess = math.nan
    if gap is not None and ce is not None:
        ce_excess = max(c - g for c, g in zip(ce, gap, strict=True))
        gap_excess = max(g - c for c, g in zip(ce, gap, strict=True))
    best = [min(values) for values in zip(*robust.values(), strict=True)]
    random_excess = max((b - r for b, r in zip(best, random, strict=True)), default=math.nan)

    ce_masked = cross_entropy_underflow > 0.1
    if ce_masked:
        findings.append(
            f"the cross-entropy's input gradient vanishes (norm < {UNDERFLOW:g}) on "
            f"{cross_entropy_underflow:.1%} of the correct samples: cross-entropy attacks do not "
            "move there"
        )
    if ce_excess > tolerance:
        ce_masked = True
        findings.append(
            f"an attack on the cross-entropy leaves up to {ce_excess:.3f} more robust than the "
            "same attack on the logit gap: its column overstates robustness"
        )
    gap_masked = False
    if gap_underflow > 0.1:
        gap_masked = True
        findings.append(
            f"the logit gap's input gradient vanishes on {gap_underflow:.1%} of the correct samples"
        )
    if gap_excess > tolerance:
        # Weaker somewhere is no proof of hidden gradients; weaker everywhere is a sign of them.
        gap_masked = gap_masked or ce_excess < -tolerance
        findings.append(
            f"an attack on the gap leaves up to {gap_excess:.3f} more robust than one on the "
            "cross-entropy: at each radius the lower column counts"
        )
    if random_excess > tolerance:
        gap_masked = True
        findings.append(
            f"random points at distance eps break {random_excess:.3f} more than the gradient "
            "attacks do"
        )
    if at_large_eps > tolerance:
        gap_masked = True
        findings.append(
            f"the gap attack leaves {at_large_eps:.3f} robust at eps = {large_eps:.4g}, where no "
            "classifier is robust: it is not finding what is there"
        )
    if gap_masked:
        findings.append(
            "these gradients are hidden: use attacks without gradients or transfer attacks"
        )
    elif ce_masked and not gap_excess > tolerance:
        findings.append("the gap column stands")
    return MaskingDiagnosis(
        cross_entropy_underflow=cross_entropy_underflow,
        gap_underflow=gap_underflow,
        cross_entropy_excess=ce_excess,
        random_excess=random_excess,
        large_eps=large_eps,
        at_large_eps=at_large_eps,
        findings=tuple(findings),
        cross_entropy_masked=ce_masked,
        gap_masked=gap_masked,
    )
