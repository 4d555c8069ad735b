"""What is measured on every trained network, on images that it was not trained on."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from margin_ext.attacks import PGD
from margin_ext.bounds import FoolboxDistance, MinimumDistance
from margin_ext.measurement import measure, robust_accuracy
from margin_ext.threat import ThreatModel

__all__ = ["accuracy", "evaluate", "robust_at"]

BOX = (0.0, 1.0)
STEPS, RESTARTS = 40, 2
ATTACKED, MEASURED, LIBRARY = 1000, 300, 500
LIBRARY_STEPS = 100


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        right = [
            model(x).argmax(1) == y
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        ]
    return float(torch.cat(right).float().mean())


def robust_at(
    model: nn.Module,
    part: tuple[Tensor, Tensor],
    eps: tuple[float, ...],
    *,
    p: float = 2.0,
    count: int,
    restarts: int,
    diagnose: bool,
) -> dict[str, Any]:
    """PGD on the gap and on the cross-entropy, and what the worse of both leaves."""
    found = robust_accuracy(
        model,
        (part[0][:count], part[1][:count]),
        eps,
        p=p,
        attacks=[
            "nearest",
            PGD(loss="gap", steps=STEPS, restarts=restarts),
            PGD(loss="cross_entropy", steps=STEPS, restarts=restarts),
        ],
        data_range=BOX,
        diagnose_masking=diagnose,
        progress=False,
        batch_size=500,
    )
    return found.to_dict()


def evaluate(
    model: nn.Module,
    part: tuple[Tensor, Tensor],
    eps: tuple[float, ...],
    linf_eps: tuple[float, ...],
) -> dict[str, Any]:
    """Accuracy, minimum and average margin by two measures, robust accuracy by three attacks."""
    few = part[0][:MEASURED], part[1][:MEASURED]
    with warnings.catch_warnings():
        # Samples without a gradient are counted ("infinite").
        warnings.filterwarnings("ignore", ".*no input gradient.*", UserWarning)
        report = measure(
            model,
            few,
            bounds=[MinimumDistance(steps=100)],
            data_range=BOX,
            progress=False,
            batch_size=250,
        )
    first, attack = report.summary(), report.summary(quantity="minimum_distance")
    return {
        "accuracy": accuracy(model, *part),
        "first_order": {
            "minimum": first.minimum,
            "average": first.average,
            "infinite": first.infinite,
            "share_above_upper": report.first.share_above_upper(
                report.first.margin, report.correct
            ),
        },
        "attack_distance": {"average": attack.average, "not_found": attack.infinite},
        "average_gap": float(report.gap.astype("float64").mean()),
        "l2": robust_at(model, part, eps, count=ATTACKED, restarts=RESTARTS, diagnose=True),
        "linf": robust_at(
            model,
            part,
            linf_eps,
            p=math.inf,
            count=ATTACKED,
            restarts=1,
            diagnose=False,
        ),
        "library": _library(model, part, eps),
    }


def _library(
    model: nn.Module, part: tuple[Tensor, Tensor], eps: tuple[float, ...]
) -> dict[str, Any]:
    """Robust accuracy by Foolbox's nearest adversarial examples (DDN and DeepFool)."""
    images, labels = part[0][:LIBRARY], part[1][:LIBRARY]
    model.eval()
    with torch.no_grad():
        right = model(images).argmax(1) == labels
    nearest = FoolboxDistance(steps=LIBRARY_STEPS)(
        model, images, labels, threat=ThreatModel(p=2, data_range=BOX)
    ).distance
    distance = torch.where(right, nearest, 0.0)
    found = distance[distance.isfinite()]
    return {
        "eps": list(eps),
        "count": LIBRARY,
        "robust_accuracy": [float((distance > radius).float().mean()) for radius in eps],
        "average_distance": float(found.mean()),
        "not_found": int(distance.isinf().sum()),
    }
