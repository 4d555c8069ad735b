"""``robust_accuracy``: accuracy under attack, with the attack's own credibility beside it."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from margin_ext.attacks.pgd import (
    AttackLoss,
    PGDSettings,
    attack_gradient,
    check_ball,
    pgd,
)
from margin_ext.checks import check_labels
from margin_ext.data.batches import Batch, Batches
from margin_ext.functional import logit_gap
from margin_ext.input_std import channel_scale
from margin_ext.measurement.masking import UNDERFLOW, MaskingDiagnosis, diagnose
from margin_ext.models.checked_logits import checked_logits
from margin_ext.models.evaluation_mode import Model, evaluation_mode, model_device
from margin_ext.norms import norm_name
from margin_ext.output.atomic_write import write_atomically
from margin_ext.output.finite_json import finite_json
from margin_ext.output.progress_bar import progress_bar
from margin_ext.output.text_table import text_table
from margin_ext.random_points import ball_noise
from margin_ext.threat import DataRange, ThreatModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["RobustAccuracy", "robust_accuracy"]

_TITLES = {"gap": "PGD on the gap", "cross_entropy": "PGD on the cross-entropy"}

# The diagnosis attacks again at large radii, so it looks at this many correct samples.
DIAGNOSED = 256
RANDOM_POINTS = 10
# Long steps may jump over what shorter ones find, so that the largest radius is tried in parts.
LARGE_PARTS = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class RobustAccuracy:
    """Accuracy under attack; printed, it is a table with the diagnosis below.

    Attributes:
        p: Threat norm.
        eps: Radii, ascending, in the inputs' units (pixel units with input_std).
        correct: Clean correctness [N].
        robust: For each attack whether the sample held at each radius, [N, len(eps)]. What broke
            at a smaller radius counts as broken at a larger one.
        random: The same for random points of the sphere, [N, len(eps)].
        diagnosis: Signs of gradient masking; None where not asked for.
        settings: Steps, step size, restarts, seed, data range.
    """

    p: float
    eps: tuple[float, ...]
    correct: NDArray[np.bool_]
    robust: Mapping[str, NDArray[np.bool_]]
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
        """Robust accuracy at each radius under "gap", "cross_entropy", "random" or "worst".

        "worst" counts a sample as robust where every attack failed.
        """
        if attack == "worst":
            held = np.logical_and.reduce([*self.robust.values(), self.random])
        else:
            held = self.random if attack == "random" else self.robust[attack]
        return tuple(float(share) for share in held.mean(axis=0))

    def standard_error(self, share: float) -> float:
        """Of a robust accuracy, from the number of samples."""
        return math.sqrt(max(share * (1 - share), 0.0) / len(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, without the samples."""
        return {
            "p": norm_name(self.p),
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
        text = json.dumps(finite_json(self.to_dict()), indent=1)
        write_atomically(path, lambda file: file.write(text.encode()))
        return path

    def plot(self) -> Figure:
        """Robust accuracy against the radius, one line an attack."""
        from margin_ext.measurement.figures import robust_accuracy_curves

        return robust_accuracy_curves({"": self})

    def __str__(self) -> str:
        marked = self.diagnosis is not None and self.diagnosis.cross_entropy_masked
        marks = {"cross_entropy": " (!)" if marked else ""}
        header = [
            f"eps ({norm_name(self.p)})",
            *(_TITLES[name] + marks.get(name, "") for name in self.robust),
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
        attack = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        lines = [
            f"{len(self)} samples, clean accuracy {self.accuracy:.4f}",
            "",
            text_table(header, rows),
            f"({attack})",
        ]
        if self.diagnosis is not None:
            lines += ["", str(self.diagnosis)]
        return "\n".join(lines)


def robust_accuracy(
    model: Model,
    data: Any,
    eps: float | Sequence[float],
    *,
    p: float | str = 2,
    losses: Sequence[AttackLoss] = ("gap", "cross_entropy"),
    steps: int = 40,
    restarts: int = 1,
    relative_step: float = 2.5,
    random_start: bool = True,
    norm_floor: float = 0.0,
    seed: int = 0,
    data_range: DataRange | None = None,
    input_std: float | Sequence[float] | Tensor | None = None,
    diagnose_masking: bool = True,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    progress: bool | None = None,
) -> RobustAccuracy:
    """Accuracy under projected gradient descent on the logit gap and on the cross-entropy.

    An attack on the cross-entropy stands still where the softmax is saturated, so that its figure
    can be far too good (paper.md section 5): the one on the gap is the figure to read, and the
    diagnosis says whether even that one is to be believed.

    Args:
        model: A module, or any function from inputs [B, ...] to logits [B, C].
        data: Tensors (inputs, target), a Dataset, a DataLoader or an iterable of batches.
        eps: Radius or radii, in pixel units where input_std is given.
        p: Threat norm, 2 or infinity.
        losses: What to attack: "gap", "cross_entropy".
        steps: Gradient steps a restart.
        restarts: Independent random starts.
        relative_step: Step length in units of eps / steps.
        random_start: Also the first restart starts at a random point of the ball.
        norm_floor: Gradients below this norm take smaller steps, by norm / floor.
        seed: Of everything random.
        data_range: Adversarial examples stay in it: (lowest, highest) in the units that the model
            gets, numbers or one value a channel. None: anywhere.
        input_std: The loader's standard deviation(s).
        diagnose_masking: Look for gradient masking on the first 256 correct samples.
        device: Where to measure; None: the model's device.
        batch_size: Largest batch; None: the loader's.
        limit: Only the first ``limit`` samples.
        progress: Show a bar; None: on a terminal.

    Raises:
        TypeError, ValueError: Arguments, data or the model's output do not fit.
    """
    norm = float(p)
    radii = (float(eps),) if isinstance(eps, (int, float)) else tuple(sorted(map(float, eps)))
    if not radii:
        raise ValueError("eps must name at least one radius")
    for radius in radii:
        check_ball(norm, radius)
    if not losses or not set(losses) <= set(_TITLES):
        raise ValueError(f'losses must be from "gap" and "cross_entropy", got {tuple(losses)}')
    settings = PGDSettings(steps, restarts, relative_step, random_start, norm_floor, seed)
    attack = _Attack(model, norm, settings, data_range, input_std)
    batches = Batches(
        data,
        device=torch.device(device) if device is not None else model_device(model),
        batch_size=batch_size,
        limit=limit,
        data_range=data_range,
    )
    correct: list[Tensor] = []
    held: dict[AttackLoss, list[Tensor]] = {loss: [] for loss in losses}
    random: list[Tensor] = []
    evidence = _Evidence(attack)
    bar = progress_bar(batches.total, "robust accuracy", progress)
    try:
        with evaluation_mode(model):
            for batch in batches:
                right = attack.correct(batch)
                correct.append(right.cpu())
                for loss in losses:
                    held[loss].append(attack.held(batch, right, radii, loss))
                random.append(attack.held_at_random(batch, right, radii))
                if diagnose_masking:
                    evidence.look_at(batch, right)
                bar.update(batch.target.shape[0])
    finally:
        bar.close()
    clean = torch.cat(correct).numpy()
    robust: dict[str, NDArray[np.bool_]] = {k: torch.cat(v).numpy() for k, v in held.items()}
    at_random = torch.cat(random).numpy()
    diagnosis = None
    if diagnose_masking and evidence.count:
        diagnosis = diagnose(
            robust={name: values.mean(axis=0).tolist() for name, values in robust.items()},
            random=at_random.mean(axis=0).tolist(),
            cross_entropy_underflow=evidence.underflow["cross_entropy"] / evidence.count,
            gap_underflow=evidence.underflow["gap"] / evidence.count,
            large_eps=evidence.large_eps,
            at_large_eps=evidence.left / evidence.count,
            count=len(clean),
        )
    return RobustAccuracy(
        p=norm,
        eps=radii,
        correct=clean,
        robust=robust,
        random=at_random,
        diagnosis=diagnosis,
        settings={
            **dataclasses.asdict(settings),
            "data_range": None
            if data_range is None
            else [torch.as_tensor(end).tolist() for end in data_range],
        },
    )


@dataclass(frozen=True)
class _Attack:
    model: Model
    p: float
    settings: PGDSettings
    data_range: DataRange | None
    input_std: float | Sequence[float] | Tensor | None

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(p=self.p, data_range=self.data_range, input_std=self.input_std)

    def correct(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            logits = checked_logits(self.model, batch.inputs)
        check_labels("target", batch.target, logits.shape[1], None)
        return logit_gap(logits, batch.target).gap > 0

    def held(
        self, batch: Batch, correct: Tensor, radii: Sequence[float], loss: AttackLoss
    ) -> Tensor:
        """Whether samples held at each radius [B, len(radii)], on the CPU."""
        held = torch.zeros(batch.target.shape[0], len(radii), dtype=torch.bool)
        left = correct.nonzero().squeeze(1)
        for column, eps in enumerate(radii):
            if left.numel():
                robust, _ = pgd(
                    self.model,
                    batch.inputs[left],
                    batch.target[left],
                    eps,
                    p=self.p,
                    loss=loss,
                    settings=self.settings,
                    data_range=self.data_range,
                    input_std=self.input_std,
                    indices=[batch.first + i for i in left.tolist()],
                )
                left = left[robust]
            held[left.cpu(), column] = True
        return held

    def held_at_random(self, batch: Batch, correct: Tensor, radii: Sequence[float]) -> Tensor:
        """Whether every one of a few random points of the sphere was classified correctly."""
        inputs, target = batch.inputs, batch.target
        numbers = range(batch.first, batch.first + target.shape[0])
        held = correct.unsqueeze(1).repeat(1, len(radii))
        for point in range(RANDOM_POINTS):
            noise = ball_noise(
                inputs, self.p, seed=self.settings.seed, stream=f"random{point}", indices=numbers
            )
            if not math.isinf(self.p):
                size = torch.linalg.vector_norm(noise.flatten(1), self.p, dim=1)
                noise = noise / size.reshape(-1, *[1] * (noise.dim() - 1))
            else:
                noise = noise.sign()
            for column, eps in enumerate(radii):
                scale = (
                    eps if self.input_std is None else eps * channel_scale(self.input_std, inputs)
                )
                radius = inputs.new_full((target.shape[0],), eps)
                x = self.threat.project(inputs + (noise * scale).to(inputs.dtype), inputs, radius)
                with torch.no_grad():
                    logits = checked_logits(self.model, x)
                held[:, column] &= logit_gap(logits, target).gap > 0
        return held.cpu().cummin(dim=1).values


class _Evidence:
    """What the diagnosis needs, gathered on the first correct samples."""

    def __init__(self, attack: _Attack) -> None:
        self.attack = attack
        self.count = 0
        self.left = 0
        self.underflow = {"gap": 0, "cross_entropy": 0}
        self.large_eps = 0.0

    def look_at(self, batch: Batch, correct: Tensor) -> None:
        chosen = correct.nonzero().squeeze(1)[: DIAGNOSED - self.count]
        if not chosen.numel():
            return
        attack, inputs, target = self.attack, batch.inputs[chosen], batch.target[chosen]
        if not self.large_eps:
            self.large_eps = self._large(batch.inputs)
        losses: tuple[AttackLoss, ...] = ("gap", "cross_entropy")
        for loss in losses:
            _, grad = attack_gradient(attack.model, inputs, target, loss)
            norm = attack.threat.dual_norm(grad)
            self.underflow[loss] += int((norm < UNDERFLOW).sum())
        self.count += chosen.shape[0]
        numbers = torch.tensor([batch.first + i for i in chosen.tolist()])
        for part in LARGE_PARTS:
            robust, _ = pgd(
                attack.model,
                inputs,
                target,
                part * self.large_eps,
                p=attack.p,
                loss="gap",
                settings=attack.settings,
                data_range=attack.data_range,
                input_std=attack.input_std,
                indices=numbers.tolist(),
            )
            inputs, target, numbers = inputs[robust], target[robust], numbers[robust.cpu()]
            if not target.numel():
                break
        self.left += target.shape[0]

    def _large(self, inputs: Tensor) -> float:
        """A ball around any sample that holds inputs of other classes.

        In a box: the whole of it. Otherwise as far as the samples lie from each other.
        """
        scale = 1.0
        if self.attack.input_std is not None:
            scale = float((1 / channel_scale(self.attack.input_std, inputs)).max())
        flat = inputs.flatten(1).float()
        bounds = self.attack.threat.bounds(inputs)
        if bounds is not None:
            side = float((bounds[1] - bounds[0]).max()) * scale
            return side if math.isinf(self.attack.p) else side * math.sqrt(flat.shape[1])
        reach = torch.linalg.vector_norm(flat - flat.mean(dim=0), self.attack.p, dim=1).max()
        return max(2 * float(reach) * scale, 1e-6)
