"""The authors' figures and ours side by side (Wu and Yu, 2019, and their published checkpoints)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from margin_ext.attacks import PGD, AttackLoss
from margin_ext.bounds import Bound, MinimumDistance, Sampled
from margin_ext.data.idx_files import load_mnist
from margin_ext.measurement.measure import measure
from margin_ext.measurement.robust_accuracy import robust_accuracy
from margin_ext.models.authors_models import linear_classifier, mnist_cnn
from margin_ext.models.checkpoint import load_checkpoint
from margin_ext.models.evaluation_mode import evaluation_mode
from margin_ext.norms import norm_name
from margin_ext.output.json_file import read_json, write_json
from margin_ext.output.text_table import text_table
from margin_ext.reproduction.stated_figures import STATED, Stated
from margin_ext.threat import ThreatModel

__all__ = ["PARTS", "Row", "compare", "comparison_table", "reproduce"]

_log = logging.getLogger(__name__)

Values = dict[str, float]

CHECKPOINTS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "linear": ("MNISTLR_01000.tar", linear_classifier),
    "plain": ("MNISTCNN_00200.tar", mnist_cnn),
    "regularized": ("MNISTCNN_reg_00200.tar", mnist_cnn),
}

LOSSES: tuple[AttackLoss, ...] = ("gap", "cross_entropy")
CNNS = ("plain", "regularized")

BATCH = 100


@dataclass(frozen=True)
class Row:
    """One figure from both sides.

    Attributes:
        name: What it is, such as "plain/average_margin".
        stated: The figure to reproduce, its tolerance and whence it is.
        ours: The figure computed now.
    """

    name: str
    stated: Stated
    ours: float

    @property
    def difference(self) -> float:
        """Ours minus theirs."""
        return self.ours - self.stated.value

    @property
    def agrees(self) -> bool:
        """Within the tolerance."""
        return abs(self.difference) <= self.stated.tolerance

    @property
    def verdict(self) -> str:
        """The answer in the table: yes, NO, or no for a reason that is given below it."""
        if self.agrees:
            return "yes"
        return "no (known)" if self.stated.known else "NO"


@dataclass(frozen=True)
class _Experiment:
    """Loaded checkpoints and data."""

    models: dict[str, nn.Module]
    checkpoints: dict[str, dict[str, Any]]
    images: Tensor
    labels: Tensor

    @property
    def subset(self) -> np.ndarray[Any, Any]:
        """The authors' 500 test points, as their script draws them."""
        return np.random.RandomState(0).choice(10000, size=500, replace=False)

    def some(self, index: Any) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def _linear(experiment: _Experiment) -> Values:
    """Exact margins of the linear classifier."""
    model = experiment.models["linear"]
    norms = (2.0, np.inf, 1.0)
    data = (experiment.images, experiment.labels)
    values = {"linear/stored_test_accuracy": float(experiment.checkpoints["linear"]["test_acc"])}
    for signed in (True, False):
        report = measure(model, data, p=norms, signed=signed, batch_size=1000)
        kind = "signed" if signed else "unsigned"
        values["linear/accuracy"] = report.accuracy
        values[f"linear/{kind}_gap"] = float(report.gap.astype(np.float64).mean())
        for p in norms:
            total = report.summary(p)
            values[f"linear/{kind}_{norm_name(p)}"] = total.average
            values[f"linear/{kind}_{norm_name(p)}_minimum"] = total.minimum
    seed_0 = measure(model, experiment.some(experiment.subset), signed=False)
    values["linear/seed_0_subset"] = float(seed_0.margin.astype(np.float64).mean())
    return values


def _first_order(experiment: _Experiment, name: str) -> Values:
    """First-order l2 margins of a CNN on the whole test set, unsigned as the authors report."""
    model, data = experiment.models[name], (experiment.images, experiment.labels)
    every = measure(model, data, signed=False, batch_size=BATCH)
    nearest = measure(model, data, signed=False, classes="runner_up", batch_size=BATCH)
    signed = np.where(every.correct, every.margin, -every.margin)
    return {
        f"{name}/stored_test_accuracy": float(experiment.checkpoints[name]["test_acc"]),
        f"{name}/accuracy": every.accuracy,
        f"{name}/average_margin": every.average_margin,
        f"{name}/average_margin_runner_up": nearest.average_margin,
        f"{name}/average_margin_sign_by_correctness": float(signed.astype(np.float64).mean()),
        f"{name}/average_gap": float(every.gap.astype(np.float64).mean()),
        f"{name}/smallest_margin": every.minimum_margin,
        f"{name}/runner_up_is_not_nearest": float(
            (every.first.nearest_class != every.runner_up).mean()
        ),
        f"{name}/runner_up_overstates": nearest.average_margin / every.average_margin - 1,
    }


def _bounds(experiment: _Experiment, name: str) -> Values:
    """First-order and sampled values against the distance of an attack, on the 500 points."""
    model = experiment.models[name]
    index = experiment.subset
    x, y = experiment.some(index)
    tangent = measure(model, (x, y), signed=False).margin
    free, in_range = ThreatModel(p=2), ThreatModel(p=2, data_range=(0.0, 1.0))
    untargeted = MinimumDistance(steps=100, restarts=0, targets=0)

    def distances(bound: Bound, threat: ThreatModel) -> NDArray[Any]:
        found = []
        with evaluation_mode(model):
            for start in range(0, len(index), BATCH):
                part = x[start : start + BATCH]
                label = model(part).argmax(dim=1)
                numbers = range(start, start + part.shape[0])
                found.append(bound(model, part, label, threat=threat, indices=numbers).distance)
        return torch.cat(found).double().numpy()

    distance = distances(untargeted, free)
    estimate = distances(Sampled(points=64, radius=5.0), free)
    ratio = tangent / distance
    return {
        f"{name}/attack_distance": float(distance.mean()),
        f"{name}/attack_distance_in_box": float(distances(untargeted, in_range).mean()),
        f"{name}/attack_distance_with_targets": float(
            distances(MinimumDistance(steps=100, restarts=0, targets=1), free).mean()
        ),
        f"{name}/first_order_above_attack": float((ratio > 1 + 1e-4).mean()),
        f"{name}/first_order_over_attack": float(ratio.mean()),
        f"{name}/first_order_over_attack_largest": float(ratio.max()),
        f"{name}/sampled_estimate": float(estimate.mean()),
        f"{name}/sampled_above_attack": float((estimate > distance * (1 + 1e-4)).mean()),
    }


def _robust(experiment: _Experiment, name: str) -> Values:
    """PGD on the cross-entropy and on the gap, first 1000 test images, 100 steps."""
    values: Values = {}
    result = robust_accuracy(
        experiment.models[name],
        experiment.some(slice(0, 1000)),
        [1.0, 2.0],
        attacks=[PGD(loss=loss, steps=100, random_start=False) for loss in LOSSES],
        data_range=(0.0, 1.0),
        batch_size=BATCH,
    )
    for loss in LOSSES:
        for eps, share in zip(result.eps, result.curve(loss), strict=True):
            values[f"{name}/robust_{loss}_eps_{eps:g}"] = share
    if result.diagnosis is not None:
        values[f"{name}/cross_entropy_underflow"] = result.diagnosis.cross_entropy_underflow
        values[f"{name}/masked_cross_entropy"] = float(result.diagnosis.cross_entropy_masked)
        values[f"{name}/masked_gap"] = float(result.diagnosis.gap_masked)
    floored = robust_accuracy(
        experiment.models[name],
        experiment.some(slice(0, 100)),
        2.0,
        attacks=[PGD(loss=loss, steps=100, random_start=False, norm_floor=1e-6) for loss in LOSSES],
        data_range=(0.0, 1.0),
        diagnose_masking=False,
    )
    values[f"{name}/protocol_cross_entropy_eps_2"] = floored.curve("cross_entropy")[0]
    values[f"{name}/protocol_gap_eps_2"] = floored.curve("gap")[0]
    return values


def _underflow(experiment: _Experiment) -> Values:
    """PGD on the plain CNN's cross-entropy, first 200 images, by the floor of the gradient norm."""
    values: Values = {}
    for floor in (0.0, 1e-12, 1e-9, 1e-6):
        result = robust_accuracy(
            experiment.models["plain"],
            experiment.some(slice(0, 200)),
            2.0,
            attacks=[PGD(loss="cross_entropy", steps=100, random_start=False, norm_floor=floor)],
            data_range=(0.0, 1.0),
            diagnose_masking=False,
            batch_size=BATCH,
        )
        values[f"plain/cross_entropy_eps_2_floor_{floor:g}"] = result.curve("cross_entropy")[0]
    return values


def _weights(experiment: _Experiment) -> Values:
    """Orthogonality terms, as the authors' code counts them and each once; spectral norms."""
    values: Values = {}
    for name in CNNS:
        once = authors = term = 0.0
        for label, parameter in experiment.models[name].named_parameters():
            if parameter.dim() >= 2:
                matrix = parameter.detach().double().flatten(1)
                gram = matrix @ matrix.T
                term = float((gram - torch.eye(gram.shape[0], dtype=gram.dtype)).square().sum())
                once += term
                layer = label.removesuffix(".weight")
                values[f"{name}/spectral_norm_{layer}"] = float(torch.linalg.matrix_norm(matrix, 2))
            # Their loop adds at every parameter, at a bias the term of the matrix before it.
            authors += term
        values[f"{name}/orthogonality"] = once
        values[f"{name}/orthogonality_authors"] = authors
        values[f"{name}/orthogonality_ratio"] = authors / once
    return values


PARTS: dict[str, Callable[[_Experiment], Values]] = {
    "linear": _linear,
    "weights": _weights,
    "underflow": _underflow,
    "first-order-plain": lambda e: _first_order(e, "plain"),
    "first-order-regularized": lambda e: _first_order(e, "regularized"),
    "bounds-plain": lambda e: _bounds(e, "plain"),
    "bounds-regularized": lambda e: _bounds(e, "regularized"),
    "robust-plain": lambda e: _robust(e, "plain"),
    "robust-regularized": lambda e: _robust(e, "regularized"),
}


def reproduce(
    authors: str | Path,
    mnist: str | Path,
    *,
    parts: Sequence[str] | None = None,
    out: str | Path | None = None,
    done: Callable[[str, Values], None] | None = None,
) -> Values:
    """Compute the figures.

    Args:
        authors: Folder with the authors' checkpoints MNISTLR_01000.tar, MNISTCNN_00200.tar and
            MNISTCNN_reg_00200.tar; loaded as tensors only, without running code.
        mnist: Folder with MNIST's test idx files.
        parts: Names from PARTS; None: all.
        out: Folder in which each part is kept as it is done; a later call does not repeat it.
        done: Called after each part.

    Returns:
        Every figure by name.

    Raises:
        FileNotFoundError, ValueError: Something is missing, damaged or does not fit.
    """
    chosen = list(PARTS) if parts is None else list(parts)
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        raise ValueError(f"unknown parts {', '.join(unknown)}; there are {', '.join(PARTS)}")
    models, checkpoints = {}, {}
    for name, (file, build) in CHECKPOINTS.items():
        # Convolutions with few channels are faster in this layout; the values are the same.
        models[name] = build().eval()
        models[name].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        checkpoints[name] = load_checkpoint(models[name], Path(authors) / file)
    images, labels = load_mnist(mnist)
    experiment = _Experiment(models, checkpoints, images, labels)
    values: Values = {}
    for part in chosen:
        path = None if out is None else Path(out) / f"{part}.json"
        if path is not None and path.exists():
            found = _kept_values(path)
        else:
            _log.info("computing %s", part)
            found = PARTS[part](experiment)
            if path is not None:
                write_json(path, found)
        values.update(found)
        if done is not None:
            done(part, found)
    return values


def _kept_values(path: Path) -> Values:
    """Figures of a part that an earlier call kept."""
    try:
        return {name: float(value) for name, value in read_json(path).items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no figures of a part; remove it: {error}") from error


def compare(values: Values) -> list[Row]:
    """The stated figures among the values."""
    return [Row(name, STATED[name], ours) for name, ours in values.items() if name in STATED]


def comparison_table(values: Values) -> str:
    """Stated and computed figures with their difference, then those without a counterpart."""
    rows = [
        [
            row.name,
            f"{row.stated.value:.7g}",
            f"{row.ours:.7g}",
            f"{row.difference:+.2g}",
            row.verdict,
            row.stated.source,
        ]
        for row in compare(values)
    ]
    lines = [text_table(["", "stated", "ours", "difference", "agrees", "source"], rows)]
    lines += [
        f"{row.name}: {row.stated.known}" for row in compare(values) if row.verdict == "no (known)"
    ]
    others = [(name, value) for name, value in values.items() if name not in STATED]
    if others:
        lines += ["", text_table(["without counterpart", "ours"], _pairs(others))]
    return "\n".join(lines)


def _pairs(values: Iterable[tuple[str, float]]) -> list[list[str]]:
    return [[name, f"{value:.7g}"] for name, value in values]
