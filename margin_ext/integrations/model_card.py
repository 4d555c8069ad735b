"""A margin report as a model card in Markdown."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import margin_ext
from margin_ext.norms import norm_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin_ext.measurement import MarginReport, RobustAccuracy

__all__ = ["model_card"]


def model_card(
    report: MarginReport,
    robust: Sequence[RobustAccuracy] = (),
    *,
    name: str,
    dataset: str,
    description: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Write a model card that carries the measured margins and robust accuracies.

    It is Markdown with the header that the Hugging Face Hub reads: the figures stand there too,
    as evaluation results. The tables are those of the reports, with how they were obtained.

    Args:
        report: Of :func:`margin_ext.measure`.
        robust: Of :func:`margin_ext.robust_accuracy`, one a norm.
        name: The model's name.
        dataset: What was measured on, such as "CIFAR-10 (test, first 1000)".
        description: Text at the head of the card.
        metadata: Further entries of the header, such as ``{"license": "apache-2.0"}``.

    Example:
        >>> data = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
        >>> report = margin_ext.measure(torch.nn.Linear(2, 2), data, progress=False)
        >>> card = model_card(report, name="Linear", dataset="one point")
        >>> card.splitlines()[6:8]
        ['# Linear', '']
    """
    results = [
        {
            "task": {"type": "image-classification", "name": "Classification"},
            "dataset": {"type": _slug(dataset), "name": dataset},
            "metrics": [
                {"type": kind, "name": title, "value": round(value, 6)}
                for kind, title, value in _figures(report, robust)
                if math.isfinite(value)
            ],
        }
    ]
    header = {
        "library_name": "pytorch",
        "tags": ["margin", "adversarial-robustness"],
        **(metadata or {}),
        "model-index": [{"name": name, "results": results}],
    }
    # JSON is YAML, and quotes what has to be quoted.
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", ""]
    lines += [f"# {name}", ""]
    if description:
        lines += [description.strip(), ""]
    lines += [f"## Margins on {dataset}", "", *_block(report)]
    lines += [
        "The first-order margin is the distance to the boundary of the tangent, and no bound for a "
        "network that is not linear. Distances of adversarial examples bound the true margin from "
        "above.",
        "",
    ]
    if robust:
        lines += [f"## Accuracy under attack on {dataset}", ""]
        for one in robust:
            lines += _block(one)
    lines += [
        f"Measured with margin_ext {margin_ext.__version__} ([arXiv:1907.11780]"
        "(https://arxiv.org/abs/1907.11780)).",
        "",
    ]
    return "\n".join(lines)


def _figures(
    report: MarginReport, robust: Sequence[RobustAccuracy]
) -> list[tuple[str, str, float]]:
    found = [("accuracy", "Accuracy", float(report.accuracy))]
    for p in report.norms:
        total, norm = report.summary(p), norm_name(p)
        found += [
            (
                f"average_margin_{norm}",
                f"Average {norm} margin (first order)",
                float(total.average),
            ),
            (
                f"minimum_margin_{norm}",
                f"Minimum {norm} margin (first order)",
                float(total.minimum),
            ),
        ]
    for one in robust:
        norm = one.threat.name
        for eps, share in zip(one.eps, one.curve("worst"), strict=True):
            title = f"Robust accuracy ({norm}, eps {eps:g})"
            found.append((f"robust_accuracy_{norm}_{eps:g}", title, float(share)))
    return found


def _block(table: object) -> list[str]:
    return ["```text", *(line.rstrip() for line in str(table).splitlines()), "```", ""]


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split()) or "data"
