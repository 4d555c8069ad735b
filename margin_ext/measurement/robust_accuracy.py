"""``robust_accuracy``: accuracy under attacks, and whether the attacks are to be believed."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from margin_ext.attacks import Attack, resolve_attacks
from margin_ext.attacks.attack import Sweep
from margin_ext.checks import check_labels
from margin_ext.data.batches import Batch, Batches, BatchFunction
from margin_ext.functional import logit_gap
from margin_ext.input_std import InputStd
from margin_ext.measurement.masking import diagnose
from margin_ext.measurement.masking_evidence import (
    EvidenceSamples,
    MaskingEvidence,
    gather_evidence,
)
from margin_ext.measurement.measuring import measuring
from margin_ext.measurement.robust_accuracy_result import RobustAccuracy, just_above
from margin_ext.models.checked_logits import checked_logits
from margin_ext.models.evaluation_mode import Model
from margin_ext.models.logits_function import logits_function
from margin_ext.norms import norm_name
from margin_ext.plain_numbers import real_numbers
from margin_ext.random_points import ball_noise
from margin_ext.threat import DataRange, ThreatModel, check_radius

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from margin_ext.measurement.report import MarginReport

__all__ = ["robust_accuracy"]

RANDOM_POINTS = 10


def robust_accuracy(
    model: Model,
    data: Any,
    eps: float | Sequence[float],
    *,
    attacks: Sequence[str | Attack] = ("nearest",),
    p: float | str = 2,
    data_range: DataRange | None = None,
    input_std: InputStd = None,
    seed: int = 0,
    report: MarginReport | None = None,
    diagnose_masking: bool = True,
    transfer: Model | None = None,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    progress: bool | None = None,
    call: Callable[[Any, Tensor], Any] | None = None,
    logits_fn: Callable[[Any], Tensor] | None = None,
    batch_fn: BatchFunction | None = None,
) -> RobustAccuracy:
    """Accuracy under attacks: the fraction of samples that none of them broke.

    The default attack searches for the nearest adversarial example (see
    :class:`margin_ext.attacks.Nearest`). The diagnosis then looks for signs that gradients are
    hidden, and tells whether a second search finds more.

    Args:
        model: A module, or any function from inputs [B, ...] to logits [B, C].
        data: Tensors (inputs, target), a Dataset, a DataLoader or an iterable of batches.
        eps: Radius or radii, in pixel units where input_std is given.
        attacks: Objects such as ``PGD(steps=100)``, or names: "nearest"; "gap", "cross_entropy"
            and "dlr" are PGD on these losses; "autoattack" needs the extra ``attacks``. Others can
            be registered (:func:`margin_ext.attacks.register_attack`).
        p: Threat norm, 1, 2 or infinity.
        data_range: Adversarial examples stay in it: (lowest, highest) in the units that the model
            gets, numbers or one value a channel. None: anywhere.
        input_std: The loader's standard deviation(s).
        seed: Of the attacks that are given by name, of the random points and of the diagnosis.
        report: What `measure` found on the same samples: its adversarial examples count too.
        diagnose_masking: Look for gradient masking on 96 of the correct samples.
        transfer: Another model whose adversarial examples the diagnosis tries on this one.
        device: Where to measure; None: the model's device.
        batch_size: Largest batch; None: the loader's.
        limit: Only the first ``limit`` samples.
        progress: Show a bar; None: on a terminal.
        call: How to call the model, where it is not ``model(inputs)``.
        logits_fn: Takes the logits from what the model returns, such as
            ``lambda output: output.logits``.
        batch_fn: Takes (inputs, target) from what the data yield, where that is something else.

    Raises:
        TypeError, ValueError: Arguments, data or the model's output do not fit.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> x, label = torch.tensor([[3.0, 1.0], [1.5, 1.0]]), torch.tensor([0, 0])
        >>> robust_accuracy(model, (x, label), eps=[0.1, 1.0]).curve()
        (1.0, 0.5)
    """
    threat = ThreatModel(p=float(p), data_range=data_range, input_std=input_std)
    radii = tuple(sorted(real_numbers("eps", eps)))
    if not radii:
        raise ValueError("eps must name at least one radius")
    for radius in radii:
        check_radius(radius)
    chosen = resolve_attacks(attacks, seed=seed)
    if not chosen:
        raise ValueError("attacks must name at least one attack")
    for attack in chosen:
        attack.check(threat)
    function = logits_function(model, call, logits_fn)
    run = _Run(function, threat, radii, chosen, seed)
    batches = Batches(
        data, batch_size=batch_size, limit=limit, data_range=data_range, batch_fn=batch_fn
    )
    evidence = None
    title = "robust accuracy"
    with measuring(function, batches, device=device, title=title, progress=progress) as samples:
        for batch in samples:
            run.measure(batch)
        if diagnose_masking:
            evidence = gather_evidence(
                function, run.samples, threat=threat, radii=radii, seed=seed, transfer=transfer
            )
    return run.result(report, evidence)


def _reported(
    report: MarginReport, threat: ThreatModel, correct: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The smallest upper bound of every correct sample in a report on the same samples."""
    known = {k: report.settings.get(k) for k in ("data_range", "input_std")}
    asked = {k: threat.settings()[k] for k in known}
    if threat.p not in report.norms or known != asked:
        raise ValueError(
            f"the report must be in {threat.name} with {asked}, got "
            f"{', '.join(norm_name(p) for p in report.norms)} with {known}"
        )
    outside = [
        name
        for name, kind in report[threat.p].kinds.items()
        if kind == "upper" and report.settings[name].get("in_range") is False
    ]
    if outside and threat.data_range is not None:
        raise ValueError(f"the report's points of {', '.join(outside)} leave the data range")
    if report.correct.shape != correct.shape or (report.correct != correct).any():
        raise ValueError("the report belongs to other samples or to another model")
    nearest = report[threat.p].smallest_upper
    if nearest is None:
        return np.full(correct.shape, np.inf)
    return np.where(correct, nearest.astype(np.float64), np.inf)


def _rows(batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Inputs, targets and indices in the whole data of some of the batch's samples."""
    indices = [batch.first + row for row in rows.tolist()]
    return batch.inputs[rows], batch.target[rows], indices


class _Run:
    """What has been measured so far."""

    def __init__(
        self,
        model: Model,
        threat: ThreatModel,
        radii: Sequence[float],
        attacks: Sequence[Attack],
        seed: int,
    ) -> None:
        self.model = model
        self.threat = threat
        self.radii = tuple(radii)
        self.attacks = attacks
        self.seed = seed
        self.correct: list[Tensor] = []
        self.distances: dict[str, list[Tensor]] = {attack.name: [] for attack in attacks}
        self.random: list[Tensor] = []
        self.samples = EvidenceSamples(seed)

    def measure(self, batch: Batch) -> None:
        """Attack a batch."""
        with torch.no_grad():
            logits = checked_logits(self.model, batch.inputs)
        check_labels("target", batch.target, logits.shape[1], None)
        right = logit_gap(logits, batch.target).gap > 0
        self.correct.append(right.cpu())
        for attack in self.attacks:
            self.distances[attack.name].append(self.distance(attack, batch, right))
        self.random.append(self.robust_at_random(batch, right))
        nearest = torch.stack([found[-1] for found in self.distances.values()]).amin(dim=0)
        robust = nearest.unsqueeze(1) > torch.from_numpy(just_above(self.radii))
        self.samples.offer(batch.first, batch.inputs, batch.target, right, robust)

    def result(
        self, report: MarginReport | None, evidence: MaskingEvidence | None
    ) -> RobustAccuracy:
        """All batches, with what a report and the diagnosis found."""
        correct = torch.cat(self.correct).numpy()
        further = np.full(correct.shape, np.inf)
        if evidence is not None:
            further[list(evidence.indices)] = evidence.distance
        if report is not None:
            further = np.minimum(further, _reported(report, self.threat, correct))
        result = RobustAccuracy(
            threat=self.threat,
            eps=self.radii,
            correct=correct,
            distance={name: torch.cat(parts).numpy() for name, parts in self.distances.items()},
            further=further,
            titles={attack.name: attack.title for attack in self.attacks},
            random=torch.cat(self.random).numpy(),
            diagnosis=None,
            settings={
                "threat model": self.threat.settings(),
                "seed": self.seed,
                **{attack.name: attack.settings() for attack in self.attacks},
            },
        )
        if evidence is None:
            return result
        curves = {name: result.curve(name) for name in (*self.distances, "random")}
        return dataclasses.replace(result, diagnosis=diagnose(evidence, curves, len(correct)))

    def distance(self, attack: Attack, batch: Batch, correct: Tensor) -> Tensor:
        """Distances [B] of the attack's adversarial examples, on the CPU; infinite without one."""
        distance = torch.full(batch.target.shape, math.inf, dtype=torch.float64, device="cpu")
        left = correct.nonzero().squeeze(1)
        if not left.numel():
            return distance
        model, threat = self.model, self.threat
        if isinstance(attack, Sweep):
            x, y, indices = _rows(batch, left)
            found = attack.sweep(model, x, y, self.radii, threat=threat, indices=indices)
            distance[left.cpu()] = found.distance.double().cpu()
            return distance
        for eps in self.radii:
            x, y, indices = _rows(batch, left)
            robust, point = attack(model, x, y, eps, threat=threat, indices=indices)
            broken = left[~robust]
            length = threat.distance(point[~robust], x[~robust])
            distance[broken.cpu()] = length.double().cpu().clamp_max(eps)
            left = left[robust]
            if not left.numel():
                break
        return distance

    def robust_at_random(self, batch: Batch, correct: Tensor) -> Tensor:
        """Whether every one of a few random points of the sphere is classified correctly."""
        inputs, target = batch.inputs, batch.target
        numbers = range(batch.first, batch.first + target.shape[0])
        robust = correct.unsqueeze(1).repeat(1, len(self.radii))
        for point in range(RANDOM_POINTS):
            noise = ball_noise(
                inputs, self.threat.p, seed=self.seed, stream=f"random{point}", indices=numbers
            )
            if not math.isinf(self.threat.p):
                size = torch.linalg.vector_norm(noise.flatten(1), self.threat.p, dim=1)
                noise = noise / size.reshape(-1, *[1] * (noise.dim() - 1))
            else:
                noise = noise.sign()
            offset = self.threat.in_input_units(noise)
            for column, eps in enumerate(self.radii):
                radius = inputs.new_full((target.shape[0],), eps)
                x = self.threat.project(inputs + (eps * offset).to(inputs.dtype), inputs, radius)
                with torch.no_grad():
                    logits = checked_logits(self.model, x)
                robust[:, column] &= logit_gap(logits, target).gap > 0
        return robust.cpu().cummin(dim=1).values
