"""What the diagnosis of gradient masking rests on, gathered on some of the correct samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from margin_ext.attacks.pgd import PGD, attack_gradient
from margin_ext.bounds import MinimumDistance
from margin_ext.functional import logit_gap
from margin_ext.measurement.balls import Balls
from margin_ext.measurement.decision_search import DECISION_QUERIES, decision_search
from margin_ext.measurement.masking import MaskingSigns
from margin_ext.models.checked_logits import checked_logits
from margin_ext.models.evaluation_mode import Model, evaluation_mode
from margin_ext.per_sample import per_sample
from margin_ext.threat import ThreatModel

if TYPE_CHECKING:
    from margin_ext.data.batches import Batch
    from margin_ext.together import Together

__all__ = ["EvidenceSamples", "MaskingEvidence", "gather_evidence"]

# Correct samples that are looked at; those with the smallest hash of their index, so that the
# choice depends neither on the order nor on the size of batches.
LOOKED_AT = 96
# Lengths of steps along the gap's gradient, in units of the distance found.
_LENGTHS = (0.1, 0.25, 0.5)
# Halvings of the lines between samples.
_HALVINGS = 20


@dataclass(frozen=True)
class MaskingEvidence:
    """What was seen on some of the correct samples.

    Attributes:
        indices: Indices of the samples in the whole data.
        distance: Distances of the nearest adversarial example that was found for each of them.
        signs: Fractions and medians over the samples.
    """

    indices: tuple[int, ...]
    distance: NDArray[np.float64]
    signs: MaskingSigns


class _Sample(NamedTuple):
    rank: str
    number: int
    inputs: Tensor
    target: Tensor
    robust: Tensor


class EvidenceSamples:
    """Chooses some of the correct samples while batches pass by."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.kept: list[_Sample] = []

    def offer(self, batch: Batch, correct: Tensor, robust: Tensor) -> None:
        """Look at a batch, and which of its samples are correct [B] and robust [B, R]."""
        ranks = {
            hashlib.blake2b(f"{self.seed}/evidence/{batch.indices[row]}".encode()).hexdigest(): row
            for row in correct.nonzero().squeeze(1).tolist()
        }
        chosen = sorted([*(one.rank for one in self.kept), *ranks])[:LOOKED_AT]
        for rank in set(chosen) & ranks.keys():
            row = ranks[rank]
            # A copy: a view of one sample would hold its whole batch.
            x, y = batch.inputs[row].clone(), batch.target[row].clone()
            self.kept.append(_Sample(rank, batch.indices[row], x, y, robust[row].clone()))
        self._choose()

    def _choose(self) -> None:
        self.kept = sorted(self.kept, key=lambda one: one.rank)[:LOOKED_AT]

    def join(self, meeting: Together, device: torch.device | None) -> None:
        """Choose among the samples of all ranks, so that each of them holds the chosen ones.

        Args:
            meeting: The ranks.
            device: Where the samples are measured; None: where they are.
        """
        place = self.kept[0].inputs.device if device is None and self.kept else device
        offered = meeting.exchange([one.rank for one in self.kept])
        chosen = set(sorted(chain.from_iterable(offered))[:LOOKED_AT])
        # The inputs of no others are sent.
        own = [_Sample(*(_moved(v, "cpu") for v in s)) for s in self.kept if s.rank in chosen]
        everyone = chain.from_iterable(meeting.exchange(own))
        self.kept = [_Sample(*(_moved(value, place) for value in one)) for one in everyone]
        self._choose()


def _moved(value: Any, device: torch.device | str | None) -> Any:
    return value.to(device) if isinstance(value, Tensor) and device is not None else value


def gather_evidence(
    model: Model,
    samples: EvidenceSamples,
    balls: Balls,
    transfer: Model | None = None,
) -> MaskingEvidence | None:
    """Everything that the diagnosis looks at; None without a correct sample.

    Args:
        model: In eval mode.
        samples: Chosen from the data. Their seed is that of the second search too.
        balls: Those of the robust accuracies.
        transfer: Another model; adversarial examples made on it are tried on this one.
    """
    if not samples.kept:
        return None
    threat, radii, seed = balls.threat, balls.radii, samples.seed
    chosen = sorted(samples.kept, key=lambda one: one.number)
    indices = [one.number for one in chosen]
    x = torch.stack([one.inputs for one in chosen])
    y = torch.stack([one.target for one in chosen])
    robust = torch.stack([one.robust for one in chosen]).to(x.device)

    gap, gap_grad = attack_gradient(model, x, y, "gap")
    _, ce_grad = attack_gradient(model, x, y, "cross_entropy")
    gap_norm, ce_norm = threat.dual_norm(gap_grad), threat.dual_norm(ce_grad)
    reach = threat.reach(x).to(gap_norm.dtype)
    flat = gap.to(gap_norm.dtype) > 1000 * reach * gap_norm
    # The cross-entropy's gradient is made of the same ones as the gap's, times probabilities.
    vanishing = ~flat & (ce_norm < 1e-6 * gap_norm)

    second = MinimumDistance(steps=80, seed=seed + 1).search(
        model, x, y, threat=threat, indices=indices, enough=min(radii)
    )
    line, along, on_line = _lines(model, x, y, threat)
    length = torch.minimum(second.distance, torch.where(along, line, math.inf))
    length = torch.minimum(length.to(reach.dtype), reach)
    moving = ~flat & (length > 0)
    wider = torch.stack([second.distance > eps for eps in radii], dim=1)
    moved = (robust.float().mean(dim=0) - (robust & wider).float().mean(dim=0)).amax()
    excess = line < second.distance.to(line.dtype) * (1 - 1e-3)
    # A search that was told to stop early is not weaker than a line.
    excess &= second.distance.to(line.dtype) > min(radii)

    # A line's point, which no gradient led to, begins the search without gradients.
    decided = torch.full_like(line, math.inf)
    if bool(along.any()):
        decided[along], _ = decision_search(
            lambda points: _gap(model, points, y[along]) <= 0,
            x[along],
            on_line[along],
            threat=threat,
            seed=seed,
        )
    within = torch.stack([decided <= eps for eps in radii], dim=1)
    # A weak attack hides no gradients: what the second search broke does not count.
    decision_excess = float((robust & wider & within).double().mean(dim=0).amax())

    nearest = torch.minimum(second.distance.double(), torch.minimum(line, decided).double())
    not_looked_at = [f"attacks without gradients of more than {DECISION_QUERIES} queries a sample"]
    transfer_excess = math.nan
    if transfer is None:
        not_looked_at.append("transfer from another model (give transfer=)")
    else:
        transfer_excess = _transfer(model, transfer, x, y, threat, radii, robust, indices)
    if not bool(along.any()):
        not_looked_at.append(
            "lines to other classes, and an attack without gradients from there "
            "(all samples have one class)"
        )
    signs = MaskingSigns(
        cross_entropy_underflow=_mean(vanishing),
        gap_underflow=_mean(flat),
        line_excess=_mean(excess[along]),
        decision_excess=decision_excess if bool(along.any()) else math.nan,
        fall=_fall(model, x, y, gap, gap_grad, gap_norm, length, moving, threat),
        jump=_jump(model, x, y, gap, second.distance, second.point, threat),
        transfer_excess=transfer_excess,
        moved=float(moved),
        not_looked_at=tuple(not_looked_at),
    )
    return MaskingEvidence(tuple(indices), nearest.cpu().numpy(), signs)


def _mean(flags: Tensor) -> float:
    return float(flags.double().mean()) if flags.numel() else math.nan


def _gap(model: Model, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        gap: Tensor = logit_gap(checked_logits(model, x), y).gap
    return gap


def _lines(
    model: Model, x: Tensor, y: Tensor, threat: ThreatModel
) -> tuple[Tensor, Tensor, Tensor]:
    """Adversarial distance on the line to the nearest sample of another class, and where one is.

    The third result holds the adversarial points, or the samples where there is none. Both ends
    are classified correctly, so an adversarial example lies between them.
    """
    distances = torch.stack([threat.distance(one.expand_as(x), x) for one in x.split(1)])
    distances = distances.masked_fill(y.unsqueeze(1) == y.unsqueeze(0), math.inf)
    length, other = distances.min(dim=1)
    exists = torch.isfinite(length)
    toward = x[torch.where(exists, other, torch.arange(len(y), device=y.device))] - x
    low, high = torch.zeros_like(length), torch.ones_like(length)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        adversarial = _gap(model, x + per_sample(middle.to(x.dtype), x) * toward, y) <= 0
        high = torch.where(adversarial, middle, high)
        low = torch.where(adversarial, low, middle)
    return (
        torch.where(exists, high * length, math.inf),
        exists,
        x + per_sample(high.to(x.dtype), x) * toward,
    )


def _fall(
    model: Model,
    x: Tensor,
    y: Tensor,
    gap: Tensor,
    grad: Tensor,
    norm: Tensor,
    length: Tensor,
    moving: Tensor,
    threat: ThreatModel,
) -> float:
    """The gap's actual over predicted fall along its gradient: the best length's median."""
    if not bool(moving.any()):
        return math.nan
    x, y, gap, grad = x[moving], y[moving], gap[moving], grad[moving]
    norm, length = norm[moving], length[moving]
    medians = []
    for part in _LENGTHS:
        step = (part * length).to(x.dtype)
        after = _gap(model, threat.step(grad, step, x), y)
        ratio = (gap - after).double() / (step.double() * norm.double())
        medians.append(float(ratio.median()))
    return max(medians)


def _jump(
    model: Model,
    x: Tensor,
    y: Tensor,
    gap: Tensor,
    distance: Tensor,
    point: Tensor | None,
    threat: ThreatModel,
) -> float:
    """Median jump of the gap at the boundary on the way to the points, over the gap at x."""
    found = torch.isfinite(distance) & (distance > 0)
    if point is None or not bool(found.any()):
        return math.nan
    x, y, gap, offset = x[found], y[found], gap[found], (point - x)[found]
    low, high = torch.zeros_like(gap), torch.ones_like(gap)
    inside, outside = gap, _gap(model, threat.clamp(x + offset), y)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        at_middle = _gap(model, threat.clamp(x + per_sample(middle.to(x.dtype), x) * offset), y)
        adversarial = at_middle <= 0
        high = torch.where(adversarial, middle, high)
        low = torch.where(adversarial, low, middle)
        outside = torch.where(adversarial, at_middle, outside)
        inside = torch.where(adversarial, inside, at_middle)
    return float(((inside - outside) / gap).median())


def _transfer(
    model: Model,
    other: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    radii: Sequence[float],
    robust: Tensor,
    indices: Sequence[int],
) -> float:
    """Largest amount by which points made on another model break more than the attacks did."""
    largest = 0.0
    for column, eps in enumerate(radii):
        with evaluation_mode(other):
            found = PGD(steps=20, relative_step=5.0)(
                other, x, y, eps, threat=threat, indices=indices
            ).point
        # An attack ends at the other model's boundary; this one's may lie farther on.
        length = threat.distance(found, x)
        stretch = torch.where(length > 0, eps / length, 0.0)
        radius = torch.full_like(length, eps)
        point = threat.project(x + per_sample(stretch.to(x.dtype), x) * (found - x), x, radius)
        broken = (_gap(model, point, y) <= 0) & robust[:, column]
        largest = max(largest, _mean(broken))
    return largest
