"""``robust_accuracy``: accuracy under attacks, and whether the attacks are to be believed."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from margin_ext.attacks import Attack, resolve_attacks
from margin_ext.attacks.attack import Sweep
from margin_ext.checks import check_labels
from margin_ext.data.batches import Batch, Batches
from margin_ext.data.reading import BatchFunction, Reading
from margin_ext.functional import logit_gap
from margin_ext.input_std import InputStd
from margin_ext.measurement.balls import Balls
from margin_ext.measurement.collect import Collected, Place, collect
from margin_ext.measurement.masking import diagnose
from margin_ext.measurement.masking_evidence import (
    EvidenceSamples,
    MaskingEvidence,
    gather_evidence,
)
from margin_ext.measurement.robust_accuracy_result import RobustAccuracy, just_above
from margin_ext.measurement.split_models import whole_model
from margin_ext.models.checked_logits import checked_logits
from margin_ext.models.evaluation_mode import Model, evaluation_mode
from margin_ext.models.logits_function import logits_function
from margin_ext.norms import norm_name
from margin_ext.plain_numbers import real_numbers
from margin_ext.random_points import Draws, sphere_noise
from margin_ext.ranks import ALONE, Ranks
from margin_ext.threat import DataRange, ThreatModel
from margin_ext.together import Together

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from margin_ext.measurement.report import MarginReport

__all__ = ["robust_accuracy"]

RANDOM_POINTS = 10
# Columns of the attacks: this and the attack's name.
_DISTANCE = "distance:"


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
    resume: str | Path | None = None,
    save_every: float = 10.0,
    ranks: Ranks = ALONE,
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
        seed: Seed of the attacks that are given by name, of the random points and of the diagnosis.
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
        resume: As in `measure`.
        save_every: As in `measure`.
        ranks: As in `measure`.

    Raises:
        TypeError, ValueError: Arguments, data or the model's output do not fit; the file to resume
            from belongs to another run; ranks were not asked for the same.
        RankFailedError: Another rank failed.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> x, label = torch.tensor([[3.0, 1.0], [1.5, 1.0]]), torch.tensor([0, 0])
        >>> robust_accuracy(model, (x, label), eps=[0.1, 1.0]).curve()
        (1.0, 0.5)
    """
    with Together(ranks) as meeting:
        threat = ThreatModel(p=float(p), data_range=data_range, input_std=input_std)
        balls = Balls(threat, real_numbers("eps", eps))
        chosen = resolve_attacks(attacks, seed=seed)
        if not chosen:
            raise ValueError("attacks must name at least one attack")
        for attack in chosen:
            attack.check(threat)
        function = logits_function(model, call, logits_fn)
        run = _Run(function, balls, chosen, seed)
        batches = Batches(data, Reading(batch_size, limit, data_range, batch_fn), ranks)
        path = None if resume is None else Path(resume)
        place = Place(device, "robust accuracy", progress, path, save_every)
        evidence = None
        with whole_model(function, meeting):
            found = collect(run, batches, place, meeting)
            if diagnose_masking:
                evidence = run.evidence(batches.device, transfer, meeting)
        return run.result(found, report, evidence)


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
    indices = [batch.indices[row] for row in rows.tolist()]
    return batch.inputs[rows], batch.target[rows], indices


class _Run:
    """Accuracy under attacks, sample by sample."""

    def __init__(self, model: Model, balls: Balls, attacks: Sequence[Attack], seed: int) -> None:
        self.model = model
        self.balls = balls
        self.threat, self.radii = balls.threat, balls.radii
        self.attacks = attacks
        self.seed = seed
        self.samples = EvidenceSamples(seed)

    def settings(self) -> dict[str, Any]:
        """Everything that the distances depend on but the model and the data."""
        return {
            "threat model": self.threat.settings(),
            "seed": self.seed,
            **{attack.name: attack.settings() for attack in self.attacks},
            "eps": list(self.radii),
        }

    def begin(self) -> None:
        """Nothing has to be known about the model."""

    def fingerprint(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """What tells this model from others on a few samples."""
        x = batch.inputs.detach().requires_grad_()
        logits = checked_logits(self.model, x)
        gap = logit_gap(logits, batch.target).gap
        (grad,) = torch.autograd.grad(gap.sum(), x)
        norm = self.threat.dual_norm(grad)
        values = {"logits": logits.detach(), "gradient norms": norm}
        return {name: value.double().cpu().numpy() for name, value in values.items()}

    def parts(self, batch: Batch) -> list[Batch]:
        """The whole batch at once."""
        return [batch]

    def columns(self, batch: Batch, progress: Callable[[float], None]) -> dict[str, NDArray[Any]]:
        """Attack a batch."""
        with torch.no_grad():
            logits = checked_logits(self.model, batch.inputs)
        check_labels("target", batch.target, logits.shape[1], None)
        right = logit_gap(logits, batch.target).gap > 0
        columns = {_DISTANCE + a.name: self.distance(a, batch, right) for a in self.attacks}
        columns |= {"correct": right.cpu(), "random": self.robust_at_random(batch, right)}
        return {name: column.numpy() for name, column in columns.items()}

    def seen(self, batch: Batch, columns: Mapping[str, NDArray[Any]]) -> None:
        """Offer the samples to the diagnosis."""
        nearest = np.minimum.reduce([columns[_DISTANCE + a.name] for a in self.attacks])
        robust = torch.from_numpy(nearest[:, None] > just_above(self.radii))
        self.samples.offer(batch, torch.from_numpy(columns["correct"]), robust)

    def evidence(
        self, device: torch.device | None, transfer: Model | None, meeting: Together
    ) -> MaskingEvidence | None:
        """What the diagnosis rests on, the same on all ranks."""
        if meeting.ranks.joined:
            self.samples.join(meeting, device)
        with evaluation_mode(self.model):
            evidence = gather_evidence(self.model, self.samples, self.balls, transfer)
        # All ranks have computed it, so that none waits long; their machines may round otherwise.
        common: MaskingEvidence | None = meeting.exchange(evidence)[0]
        return common

    def result(
        self, found: Collected, report: MarginReport | None, evidence: MaskingEvidence | None
    ) -> RobustAccuracy:
        """All samples, with what a report and the diagnosis found."""
        correct = found.columns["correct"]
        further = np.full(correct.shape, np.inf)
        if evidence is not None:
            rows = np.searchsorted(found.indices, np.array(evidence.indices))
            further[rows] = evidence.distance
        if report is not None:
            further = np.minimum(further, _reported(report, self.threat, correct))
        settings = self.settings()
        del settings["eps"]
        result = RobustAccuracy(
            threat=self.threat,
            eps=self.radii,
            correct=correct,
            distance={a.name: found.columns[_DISTANCE + a.name] for a in self.attacks},
            further=further,
            titles={attack.name: attack.title for attack in self.attacks},
            random=found.columns["random"],
            diagnosis=None,
            settings=settings,
        )
        if evidence is None:
            return result
        curves = {name: result.curve(name) for name in (*result.distance, "random")}
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
        robust = correct.unsqueeze(1).repeat(1, len(self.radii))
        for point in range(RANDOM_POINTS):
            draws = Draws(self.seed, f"random{point}", batch.indices)
            noise = sphere_noise(inputs, self.threat.p, draws)
            offset = self.threat.in_input_units(noise)
            for column, eps in enumerate(self.radii):
                radius = inputs.new_full((target.shape[0],), eps)
                x = self.threat.project(inputs + (eps * offset).to(inputs.dtype), inputs, radius)
                with torch.no_grad():
                    logits = checked_logits(self.model, x)
                robust[:, column] &= logit_gap(logits, target).gap > 0
        return robust.cpu().cummin(dim=1).values
