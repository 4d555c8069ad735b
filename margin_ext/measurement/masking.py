"""Signs that a robustness figure says more of the attack than of the model (arXiv 1802.00420)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin_ext.measurement.masking_evidence import MaskingEvidence

__all__ = ["MaskingDiagnosis", "MaskingSigns", "diagnose"]

# A sign counts from this fraction of the samples on.
_MANY = 0.1
# An honest gap falls along its own gradient by about what the gradient says, at one length at
# least; trained networks reach 0.8 and more, also with quantised inputs.
_FALL = 0.5
# A gap that is continuous in practice falls to 0 at the boundary.
_JUMP = 0.5


# Below so many samples a difference has to exceed 0.2 to count as a sign.
FEW = 25

NOT_THE_GAP = "attacks on the gap move there: this sign does not speak against them"


@dataclass(frozen=True, kw_only=True)
class MaskingSigns:
    """What some of the correct samples show.

    Nothing here depends on the units of inputs and logits or on the size and order of batches.

    Attributes:
        cross_entropy_underflow: Fraction whose cross-entropy gradient is below a millionth of the
            gap's.
        gap_underflow: Fraction whose gap has next to no gradient: by its tangent the boundary lies
            a thousand times farther than the data reach.
        line_excess: Fraction for which a straight line to a sample of another class leads to a
            nearer adversarial example than a gradient search; NaN with one class only.
        decision_excess: Largest amount by which robust accuracy is lower under an attack that sees
            decisions only than under the attacks and a second search; NaN with one class only.
        fall: By how much the gap falls along its own gradient, divided by what the gradient
            predicts: the largest median over several lengths.
        jump: Median jump of the gap at the boundary, divided by the gap at the sample.
        transfer_excess: Largest amount by which robust accuracy is lower under points made on
            another model than under the attacks; NaN where no other model was given.
        moved: Largest fall of robust accuracy, on these samples, by a second search with twice
            the steps and other random starts.
        not_looked_at: What this diagnosis cannot see.
    """

    cross_entropy_underflow: float
    gap_underflow: float
    line_excess: float
    decision_excess: float
    fall: float
    jump: float
    transfer_excess: float
    moved: float
    not_looked_at: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MaskingDiagnosis(MaskingSigns):
    """Reasons not to take the robust accuracies at their word; printed, a list of them.

    Attributes:
        count: Correct samples that were looked at.
        cross_entropy_excess: Largest rise of robust accuracy over the radii when PGD uses the
            cross-entropy in place of the gap; NaN where one of them was not run.
        random_excess: Largest amount by which robust accuracy is lower under random points of the
            sphere than under the attacks.
        findings: All this in words; empty where nothing was found.
        cross_entropy_masked: Do not read figures of attacks on the cross-entropy.
        gap_masked: Do not read the others either: the model hides its gradients.

    Example:
        >>> from margin_ext import robust_accuracy
        >>> data = torch.tensor([[3.0, 1.0], [1.0, 2.0]]), torch.tensor([0, 1])
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> found = robust_accuracy(model, data, 0.5, progress=False).diagnosis
        >>> found.gap_masked, found.findings
        (False, ())
    """

    count: int
    cross_entropy_excess: float
    random_excess: float
    findings: tuple[str, ...]
    cross_entropy_masked: bool
    gap_masked: bool

    @property
    def too_few(self) -> bool:
        """Whether so few samples were looked at that a missing sign means nothing."""
        return self.count < FEW

    def __str__(self) -> str:
        head = f"Convergence: a second search moved robust accuracy by {100 * self.moved:.1f} "
        lines = [f"{head}points on {self.count} sample{'s' * (self.count != 1)}."]
        if self.findings:
            lines += ["Signs of gradient masking:", *(f"- {one}" for one in self.findings)]
        else:
            lines += ["No sign of gradient masking."]
        if self.too_few:
            lines += [f"Too few to tell: below {FEW} correct samples this diagnosis sees little."]
        if self.not_looked_at:
            lines.append(f"Not looked at: {'; '.join(self.not_looked_at)}.")
        return "\n".join(lines)


def diagnose(
    evidence: MaskingEvidence, curves: Mapping[str, Sequence[float]], count: int
) -> MaskingDiagnosis:
    """Judge robust accuracies.

    Differences count from two standard errors of a fraction of ``count`` samples on, at least
    0.02.

    Args:
        evidence: What was seen on some of the samples.
        curves: Robust accuracy at each radius by attack, and "random" for random points.
        count: Number of the samples behind the curves.
    """
    tolerance = _tolerance(count)
    robust = {name: curve for name, curve in curves.items() if name != "random"}
    ce_excess = _excess(robust.get("cross_entropy"), robust.get("gap"))
    gap_excess = _excess(robust.get("gap"), robust.get("cross_entropy"))
    best = [min(values) for values in zip(*robust.values(), strict=True)]
    random_excess = _excess(best, curves["random"])

    signs, looked_at = evidence.signs, len(evidence.indices)
    saturated = _saturated(signs, ce_excess, tolerance)
    hidden = _hidden(signs, looked_at, random_excess, tolerance)
    findings = [*saturated, *hidden]
    if gap_excess > tolerance:
        findings.append(
            f"an attack on the gap leaves up to {gap_excess:.3f} more robust than one on the "
            "cross-entropy: at each radius the lower column counts"
        )
    weakness = _excess(robust.get("gap"), best)
    if weakness > max(tolerance, gap_excess):
        findings.append(
            f"another attack leaves up to {weakness:.3f} less than PGD on the gap: read the worst "
            "column"
        )
    # Weaker somewhere is no proof of hidden gradients; weaker everywhere is a sign of them.
    gap_masked = bool(hidden) or (gap_excess > tolerance and ce_excess < -tolerance)
    if signs.moved > _tolerance(looked_at):
        findings.append(
            f"not converged: a second search breaks {signs.moved:.3f} more of the samples"
        )
    if gap_masked:
        findings.append("so gradients are hidden: use attacks without gradients, or transfer")
    elif saturated and not gap_excess > tolerance:
        findings.append(NOT_THE_GAP)
    return MaskingDiagnosis(
        **vars(signs),
        count=looked_at,
        cross_entropy_excess=ce_excess,
        random_excess=random_excess,
        findings=tuple(findings),
        cross_entropy_masked=bool(saturated),
        gap_masked=gap_masked,
    )


def _tolerance(count: int) -> float:
    return max(0.02, 2 * math.sqrt(0.25 / max(count, 1)))


def _excess(larger: Sequence[float] | None, smaller: Sequence[float] | None) -> float:
    """By how much one curve lies above the other, at most; NaN where one is missing."""
    if larger is None or smaller is None:
        return math.nan
    return max((a - b for a, b in zip(larger, smaller, strict=True)), default=math.nan)


def _saturated(signs: MaskingSigns, excess: float, tolerance: float) -> list[str]:
    """Signs that attacks on the cross-entropy are misled."""
    found = []
    if signs.cross_entropy_underflow > _MANY:
        found.append(
            "the cross-entropy's input gradient vanishes in comparison with the gap's on "
            f"{signs.cross_entropy_underflow:.1%} of the correct samples: attacks on the "
            "cross-entropy do not move there"
        )
    if excess > tolerance:
        found.append(
            f"an attack on the cross-entropy leaves up to {excess:.3f} more robust than the "
            "same attack on the logit gap: its column overstates robustness"
        )
    return found


def _hidden(
    signs: MaskingSigns, looked_at: int, random_excess: float, tolerance: float
) -> list[str]:
    """Signs that the model hides its gradients."""
    possible = (
        (
            signs.gap_underflow > _MANY,
            f"the logit gap's input gradient vanishes on {signs.gap_underflow:.1%} of the "
            "correct samples",
        ),
        (
            signs.fall < _FALL,
            f"along its own gradient the gap falls by {signs.fall:.2f} of what the gradient "
            "says: the gradient does not tell where the gap falls",
        ),
        (
            signs.jump > _JUMP,
            f"at the boundary the gap jumps by {signs.jump:.2f} of its value at the sample: "
            "no gradient sees the boundary",
        ),
        (
            signs.line_excess > _MANY,
            f"on {signs.line_excess:.1%} of the samples a straight line to a sample of another "
            "class leads to a nearer adversarial example than a search along gradients",
        ),
        (
            signs.decision_excess > _tolerance(looked_at),
            f"an attack that sees decisions only breaks {signs.decision_excess:.3f} more than "
            "attacks along gradients do",
        ),
        (
            random_excess > tolerance,
            f"random points at distance eps break {random_excess:.3f} more than the attacks do",
        ),
        (
            signs.transfer_excess > _tolerance(looked_at),
            f"points made on the other model break {signs.transfer_excess:.3f} more than the "
            "attacks do",
        ),
    )
    return [words for seen, words in possible if seen]
