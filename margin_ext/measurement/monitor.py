"""Margins over the course of training (the paper's figure)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margin_ext.measurement.drawing import draw
from margin_ext.measurement.measure import measure, threat_norms
from margin_ext.measurement.report import MarginReport
from margin_ext.norms import norm_name
from margin_ext.output.atomic_write import write_text
from margin_ext.output.exclusive import hold
from margin_ext.output.finite_json import finite_json
from margin_ext.output.regular_file import require_regular_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor
    from torch.utils.tensorboard.writer import SummaryWriter

    from margin_ext.models.evaluation_mode import Model

__all__ = ["MarginMonitor"]


class MarginMonitor:
    """Keeps the history of minimum and average margin while a model trains.

    Every step it can take the batch's statistics that the loss has computed anyway, and every
    epoch (or every n steps) it measures first-order margins on fixed subsets, such as part of the
    training and of the test set::

        monitor = MarginMonitor({"train": (x, y), "test": test_loader}, path="history.jsonl")
        for epoch in range(epochs):
            for inputs, target in loader:
                ...
                monitor.step(criterion.statistics)
            monitor.epoch(model, epoch + 1)
        monitor.figure().savefig("margins.png")

    Example:
        >>> import torch
        >>> monitor = MarginMonitor((torch.tensor([[3.0, 1.0]]), torch.tensor([0])))
        >>> model = torch.nn.Linear(2, 2)
        >>> for epoch in range(3):
        ...     _ = monitor.epoch(model, epoch)
        ...     monitor.step({"average_margin": 0.5})  # criterion.statistics, in a training
        >>> monitor.series("data", "average_margin")[0]
        [0, 1, 2]
        >>> monitor.series("batch", "average_margin")
        ([1, 2, 3], [0.5, 0.5, 0.5])
        >>> monitor.splits
        ['data']
        >>> monitor.figure().savefig("margins.png")  # doctest: +SKIP

    Attributes:
        history: One dictionary a record: "step", "epoch", "split" and the values.
        steps: Number of steps so far.
    """

    def __init__(
        self,
        data: Any,
        *,
        p: float | str = 2,
        limit: int | None = 1000,
        every_steps: int = 1,
        path: str | Path | None = None,
        tensorboard: SummaryWriter | str | Path | None = None,
        **measure_options: Any,
    ) -> None:
        """Prepare; nothing is measured yet.

        Args:
            data: What `measure` takes, or a mapping from names ("train", "test") to that. It must
                come in the same order every time.
            p: Threat norm.
            limit: Samples a split to measure; None: all.
            every_steps: Keep the statistics of every n-th step. Keeping copies a few numbers from
                the device, which synchronises with a GPU; other steps cost nothing.
            path: A JSONL file to which every record is appended as it comes. An existing file is
                continued: its records are read back.
            tensorboard: A SummaryWriter, or a folder for one (needs tensorboard).
            **measure_options: For `measure`: classes, input_std, batch_size and so on.
        """
        if every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, got {every_steps}")
        self.data = data if isinstance(data, Mapping) else {"data": data}
        if len(threat_norms(p)) > 1:
            raise ValueError(f"a monitor follows one norm, got p = {p!r}")
        (self.p,) = threat_norms(p)
        self.limit = limit
        self.every_steps = every_steps
        self.options = measure_options
        self.history: list[dict[str, Any]] = []
        self.steps = 0
        self.path = None if path is None else Path(path)
        if self.path is not None and self.path.exists():
            self.history = read_history(self.path)
            lines = [json.dumps(finite_json(record)) + "\n" for record in self.history]
            # A line cut off by a kill would swallow the next one.
            write_text(self.path, "".join(lines))
            self.steps = max((record["step"] for record in self.history), default=0)
        self._writer = _summary_writer(tensorboard)

    def step(self, statistics: Mapping[str, Tensor | float]) -> None:
        """Count a training step and keep the batch's statistics if it is the n-th."""
        self.steps += 1
        if self.steps % self.every_steps:
            return
        as_floats = getattr(statistics, "as_floats", None)
        values = as_floats() if as_floats is not None else statistics
        kept = {
            name: float(value)
            for name, value in values.items()
            if name not in ("count", "gradient_scale") and not math.isnan(float(value))
        }
        self._record({"step": self.steps, "split": "batch", **kept})

    def epoch(
        self,
        model: Model,
        epoch: float,
        further: Mapping[str, Mapping[str, float]] | None = None,
    ) -> dict[str, MarginReport]:
        """Measure every split and keep minimum, average, gap and accuracy.

        Args:
            model: Left in the mode in which it came.
            epoch: Number of epochs done; 0 for the untrained model.
            further: What else is to be kept, by split, such as {"train": {"loss": 0.3}}.

        Returns:
            The report of each split.
        """
        reports: dict[str, MarginReport] = {}
        further = further or {}
        records = []
        try:
            for split in dict.fromkeys((*self.data, *further)):
                record: dict[str, Any] = {"step": self.steps, "epoch": epoch, "split": split}
                if split in self.data:
                    reports[split] = measure(
                        model, self.data[split], p=self.p, limit=self.limit, **self.options
                    )
                    record.update(self._totals(reports[split]))
                records.append({**record, **further.get(split, {})})
        finally:
            # At once, so that a kill leaves an epoch whole or not there.
            self._record(*records)
        return reports

    def _totals(self, report: MarginReport) -> dict[str, Any]:
        total = report.summary()
        return {
            "norm": norm_name(self.p),
            "minimum_margin": total.minimum,
            "average_margin": total.average,
            "average_margin_correct": total.average_correct,
            "median_margin": total.median,
            "without_gradient": total.infinite,
            "misclassified": total.misclassified,
            "minimum_gap": float(report.gap.min()),
            "average_gap": report.average_gap,
            "accuracy": report.accuracy,
        }

    def series(self, split: str, quantity: str) -> tuple[list[float], list[float]]:
        """Epochs (for split "batch": steps) and values of one quantity."""
        at = "step" if split == "batch" else "epoch"
        # A training that was resumed from an earlier epoch measures some epochs twice.
        last = {r[at]: r[quantity] for r in self.history if r["split"] == split and quantity in r}
        ordered = sorted(last)
        return ordered, [last[place] for place in ordered]

    @property
    def splits(self) -> list[str]:
        """Names of the splits that were measured, in the order of their first record."""
        return list(dict.fromkeys(r["split"] for r in self.history if r["split"] != "batch"))

    def figure(self) -> Figure:
        """Minimum and average margin over the epochs."""
        return draw("margin_history", self)

    def close(self) -> None:
        """Flush and close the TensorBoard writer."""
        if self._writer is not None:
            self._writer.close()

    def _record(self, *records: dict[str, Any]) -> None:
        self.history += records
        if self.path is not None and records:
            hold(self.path)
            lines = [json.dumps(finite_json(record)) + "\n" for record in records]
            with self.path.open("ab", buffering=0) as file:
                file.write("".join(lines).encode())
        if self._writer is None:
            return
        for record in records:
            for name, value in record.items():
                if isinstance(value, float) and name != "epoch":
                    self._writer.add_scalar(f"{record['split']}/{name}", value, record["step"])


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Records of a JSONL history; a last line cut off by a kill is left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is damaged, or no record of a monitor.
    """
    path = Path(path)
    require_regular_file(path, "history")
    lines = path.read_bytes().split(b"\n")
    if lines[-1] and not _is_json(lines[-1]):
        lines.pop()  # what a kill cut off has no end of line
    return [_record(path, number, line) for number, line in enumerate(lines, 1) if line]


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("split"), str):
        raise ValueError(  # noqa: TRY004
            f"{where} is no record of a monitor: it names no split"
        )
    at = "step" if record["split"] == "batch" else "epoch"
    try:
        values = {k: v if k in ("split", "norm") else _number(v) for k, v in record.items()}
    except ValueError as error:
        raise ValueError(f"{where} is no record of a monitor: {error}") from error
    wrong = [k for k in {"step", at} if not isinstance(values.get(k), (int, float))]
    if wrong:
        raise ValueError(f"{where} is no record of a monitor: {wrong[0]} must be a number")
    return values


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def _summary_writer(target: SummaryWriter | str | Path | None) -> SummaryWriter | None:
    if target is None or hasattr(target, "add_scalar"):
        return target  # type: ignore[return-value, unused-ignore]
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "writing for TensorBoard needs the package tensorboard: pip install "
            "'margin_ext[monitor]'"
        ) from error
    return SummaryWriter(str(target))  # type: ignore[no-untyped-call, unused-ignore]
