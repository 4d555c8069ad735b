"""``robust_accuracy``: accuracy under attacks, and whether the attacks are to be believed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from margin_ext.attacks.attack import Attack, resolve_attacks
from margin_ext.attacks.pgd import PGD, AttackLoss, attack_gradient
from margin_ext.checks import check_labels
from margin_ext.data.batches import Batch, Batches, BatchFunction
from margin_ext.functional import logit_gap
from margin_ext.input_std import InputStd, channel_scale
from margin_ext.measurement.drawing import draw
from margin_ext.measurement.masking import UNDERFLOW, MaskingDiagnosis, diagnose
from margin_ext.measurement.measuring import measuring
from margin_ext.models.checked_logits import checked_logits
from margin_ext.models.evaluation_mode import Model
from margin_ext.models.logits_function import logits_function
from margin_ext.output.json_file import write_json
from margin_ext.output.text_table import text_table
from margin_ext.plain_numbers import real_numbers
from margin_ext.random_points import ball_noise
from margin_ext.threat import DataRange, ThreatModel, check_radius

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["RobustAccuracy", "robust_accuracy"]

# The diagnosis attacks again at large radii, so it looks at this many correct samples.
DIAGNOSED = 256
RANDOM_POINTS = 10
# Long steps may jump over what shorter ones find, so that the largest radius is tried in parts.
LARGE_PARTS = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class RobustAccuracy:
    """Accuracy under attack; printed, it is a table with the diagnosis below.

    Attributes:
        threat: The norm, the data range and the units of the radii.
        eps: Radii, ascending, in the inputs' units (pixel units with input_std).
        correct: Clean correctness [N].
        robust: For each attack whether the sample is robust at each radius, [N, len(eps)]. What
            broke at a smaller radius counts as broken at a larger one.
        titles: The column of each attack in the table.
        random: As robust for random points of the sphere, [N, len(eps)].
        diagnosis: Signs of gradient masking; None where not asked for.
        settings: Of every attack, the seed and the threat model.
    """

    threat: ThreatModel
    eps: tuple[float, ...]
    correct: NDArray[np.bool_]
    robust: Mapping[str, NDArray[np.bool_]]
    titles: Mapping[str, str]
    random: NDArray[np.bool_]
    diagnosis: MaskingDiagnosis | None
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return int(self.correct.shape[0])

    @property
    def accuracy(self) -> float:
        """Clean accuracy."""
        return float(self.correct.mean())

    def curve(self, attack: str = "worst") -> tuple[float, ...]:
        """Robust accuracy at each radius under one attack by name, "random" or "worst".

        "worst" counts a sample as robust where every attack and every random point failed.
        """
        if attack == "worst":
            robust = np.logical_and.reduce([*self.robust.values(), self.random])
        else:
            robust = self.random if attack == "random" else self.robust[attack]
        return tuple(float(fraction) for fraction in robust.mean(axis=0))

    def standard_error(self, fraction: float) -> float:
        """Of a robust accuracy, from the number of samples."""
        return math.sqrt(max(fraction * (1 - fraction), 0.0) / len(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, without the samples."""
        return {
            "p": self.threat.name,
            "eps": list(self.eps),
            "count": len(self),
            "accuracy": self.accuracy,
            "robust_accuracy": {
                name: list(self.curve(name)) for name in (*self.robust, "random", "worst")
            },
            "diagnosis": None if self.diagnosis is None else dataclasses.asdict(self.diagnosis),
            "settings": dict(self.settings),
        }

    def save(self, path: str | Path) -> Path:
        """Write the totals atomically as JSON."""
        path = Path(path)
        write_json(path, self.to_dict())
        return path

    def plot(self) -> Figure:
        """Robust accuracy against the radius, one line an attack."""
        return draw("robust_accuracy_curves", {"": self})

    def __str__(self) -> str:
        marked = self.diagnosis is not None and self.diagnosis.cross_entropy_masked
        marks = {"cross_entropy": " (!)" if marked else ""}
        header = [
            f"eps ({self.threat.name})",
            *(self.titles[name] + marks.get(name, "") for name in self.robust),
            "random points",
            "worst",
            "s.e.",
        ]
        rows = []
        worst = self.curve()
        for i, eps in enumerate(self.eps):
            shares = [self.curve(name)[i] for name in (*self.robust, "random")] + [worst[i]]
            error = self.standard_error(worst[i])
            rows.append([f"{eps:g}", *(f"{share:.4f}" for share in shares), f"{error:.4f}"])
        lines = [
            f"{len(self)} samples, clean accuracy {self.accuracy:.4f}",
            "",
            text_table(header, rows),
            *(f"{name}: {_words(value)}" for name, value in self.settings.items()),
        ]
        if self.diagnosis is not None:
            lines += ["", str(self.diagnosis)]
        return "\n".join(lines)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return str(value)


def robust_accuracy(
    model: Model,
    data: Any,
    eps: float | Sequence[float],
    *,
    attacks: Sequence[str | Attack] = ("gap", "cross_entropy"),
    p: float | str = 2,
    data_range: DataRange | None = None,
    input_std: InputStd = None,
    seed: int = 0,
    diagnose_masking: bool = True,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    progress: bool | None = None,
    call: Callable[[Any, Tensor], Any] | None = None,
    logits_fn: Callable[[Any], Tensor] | None = None,
    batch_fn: BatchFunction | None = None,
) -> RobustAccuracy:
    """Accuracy under attacks: the fraction of samples that none of them broke.

    An attack on the cross-entropy stands still where the softmax is saturated, so that its figure
    can be far too good (arXiv 1907.11780, section 5): the one on the gap is the figure to read,
    and the diagnosis says whether even that one is to be believed.

    Args:
        model: A module, or any function from inputs [B, ...] to logits [B, C].
        data: Tensors (inputs, target), a Dataset, a DataLoader or an iterable of batches.
        eps: Radius or radii, in pixel units where input_std is given.
        attacks: Objects such as ``PGD(steps=100)``, or names: "gap" and "cross_entropy" are PGD on
            these losses. Others can be registered
            (:func:`margin_ext.attacks.register_attack`).
        p: Threat norm, 2 or infinity.
        data_range: Adversarial examples stay in it: (lowest, highest) in the units that the model
            gets, numbers or one value a channel. None: anywhere.
        input_std: The loader's standard deviation(s).
        seed: Of the attacks that are given by name, of the random points and of the diagnosis.
        diagnose_masking: Look for gradient masking on the first 256 correct samples.
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
    radii = tuple(sorted(map(float, real_numbers(eps))))
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
    run = _Run(function, threat, radii, seed)
    batches = Batches(
        data, batch_size=batch_size, limit=limit, data_range=data_range, batch_fn=batch_fn
    )
    correct: list[Tensor] = []
    robust: dict[str, list[Tensor]] = {attack.name: [] for attack in chosen}
    random: list[Tensor] = []
    evidence = _Evidence(run)
    title = "robust accuracy"
    with measuring(function, batches, device=device, title=title, progress=progress) as samples:
        for batch in samples:
            right = run.correct(batch)
            correct.append(right.cpu())
            for attack in chosen:
                robust[attack.name].append(run.robust(attack, batch, right))
            random.append(run.robust_at_random(batch, right))
            if diagnose_masking:
                evidence.look_at(batch, right)
    columns = {name: torch.cat(parts).numpy() for name, parts in robust.items()}
    at_random = torch.cat(random).numpy()
    diagnosis = None
    if diagnose_masking and evidence.count:
        diagnosis = diagnose(
            robust={name: values.mean(axis=0).tolist() for name, values in columns.items()},
            random=at_random.mean(axis=0).tolist(),
            cross_entropy_underflow=evidence.underflow["cross_entropy"] / evidence.count,
            gap_underflow=evidence.underflow["gap"] / evidence.count,
            large_eps=evidence.large_eps,
            at_large_eps=evidence.left / evidence.count,
            count=len(at_random),
        )
    return RobustAccuracy(
        threat=threat,
        eps=radii,
        correct=torch.cat(correct).numpy(),
        robust=columns,
        titles={attack.name: attack.title for attack in chosen},
        random=at_random,
        diagnosis=diagnosis,
        settings={
            "threat model": threat.settings(),
            "seed": seed,
            **{attack.name: attack.settings() for attack in chosen},
        },
    )


@dataclass(frozen=True)
class _Run:
    model: Model
    threat: ThreatModel
    radii: Sequence[float]
    seed: int

    def correct(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            logits = checked_logits(self.model, batch.inputs)
        check_labels("target", batch.target, logits.shape[1], None)
        return logit_gap(logits, batch.target).gap > 0

    def robust(self, attack: Attack, batch: Batch, correct: Tensor) -> Tensor:
        """Whether samples are robust at each radius [B, len(radii)], on the CPU."""
        robust = torch.zeros(batch.target.shape[0], len(self.radii), dtype=torch.bool, device="cpu")
        left = correct.nonzero().squeeze(1)
        for column, eps in enumerate(self.radii):
            if left.numel():
                found = attack(
                    self.model,
                    batch.inputs[left],
                    batch.target[left],
                    eps,
                    threat=self.threat,
                    indices=[batch.first + i for i in left.tolist()],
                )
                left = left[found.robust]
            robust[left.cpu(), column] = True
        return robust

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


class _Evidence:
    """What the diagnosis needs, gathered on the first correct samples."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.count = 0
        self.left = 0
        self.underflow = {"gap": 0, "cross_entropy": 0}
        self.large_eps = 0.0

    def look_at(self, batch: Batch, correct: Tensor) -> None:
        chosen = correct.nonzero().squeeze(1)[: DIAGNOSED - self.count]
        if not chosen.numel():
            return
        run, inputs, target = self.run, batch.inputs[chosen], batch.target[chosen]
        if not self.large_eps:
            self.large_eps = self._large(batch.inputs)
        losses: tuple[AttackLoss, ...] = ("gap", "cross_entropy")
        for loss in losses:
            _, grad = attack_gradient(run.model, inputs, target, loss)
            norm = run.threat.dual_norm(grad)
            self.underflow[loss] += int((norm < UNDERFLOW).sum())
        self.count += chosen.shape[0]
        numbers = batch.first + chosen.cpu()
        for part in LARGE_PARTS:
            robust = PGD(seed=run.seed)(
                run.model,
                inputs,
                target,
                part * self.large_eps,
                threat=run.threat,
                indices=numbers.tolist(),
            ).robust
            inputs, target, numbers = inputs[robust], target[robust], numbers[robust.cpu()]
            if not target.numel():
                break
        self.left += target.shape[0]

    def _large(self, inputs: Tensor) -> float:
        """A ball around any sample that holds inputs of other classes.

        With a data range: the whole of it. Otherwise as far as the samples lie from each other.
        """
        scale = 1.0
        if self.run.threat.input_std is not None:
            scale = float((1 / channel_scale(self.run.threat.input_std, inputs)).max())
        flat = inputs.flatten(1).float()
        bounds = self.run.threat.bounds(inputs)
        if bounds is not None:
            side = float((bounds[1] - bounds[0]).max()) * scale
            return side if math.isinf(self.run.threat.p) else side * math.sqrt(flat.shape[1])
        reach = torch.linalg.vector_norm(flat - flat.mean(dim=0), self.run.threat.p, dim=1).max()
        return max(2 * float(reach) * scale, 1e-6)
