from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from margin_ext.attacks import PGD
from margin_ext.bounds import BoundResult, Sampled
from margin_ext.measurement import MarginMonitor, MarginReport, MarginSummary, measure
from margin_ext.output.atomic_write import write_atomically
from margin_ext.threat import ThreatModel
from measurement.networks import relu_network

MODEL = (6, 12, 4)
OPTIONS = {
    "bounds": [Sampled(points=8, radius=1.0)],
    "save_every": 0.0,
    "p": [2, "inf"],
}


def data(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (count,), generator=generator)


def batches(size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = data()
    yield from zip(x.split(size), y.split(size), strict=True)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = relu_network(MODEL)
        self.samples = 0

    def forward(self, x: Tensor) -> Tensor:
        self.samples += x.shape[0]
        z: Tensor = self.inner(x)
        return z


def test_a_killed_run_goes_on_and_ends_equal_bit_for_bit(tmp_path: Path) -> None:
    script = """
        import os, signal
        from measurement.networks import relu_network
        from measurement.test_reports import MODEL, OPTIONS, Counting, batches
        from margin_ext.measurement import measure

        def killed():
            for number, batch in enumerate(batches()):
                if number == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

        measure(Counting(), killed(), resume="partial.npz", **OPTIONS)
    """
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    model = Counting()
    resumed = measure(model, batches(), resume=tmp_path / "partial.npz", **OPTIONS)  # type: ignore[arg-type]
    after_kill = model.samples
    model.samples = 0
    whole = measure(model, batches(), **OPTIONS)  # type: ignore[arg-type]
    # Two of five batches were left; the sampling looks only at correct samples, so that
    # the count varies.
    assert 0 < after_kill < 0.6 * model.samples
    for name, column in whole.columns().items():
        assert (resumed.columns()[name] == column).all(), name
    # Once complete, nothing is measured again: the model is looked at with a few samples.
    model.samples = 0
    measure(model, batches(16), resume=tmp_path / "partial.npz", **OPTIONS)  # type: ignore[arg-type]
    assert model.samples <= 5 * 16


def test_results_of_other_runs_are_refused(tmp_path: Path) -> None:
    model = relu_network(MODEL)
    file = tmp_path / "partial.npz"
    x, y = data()
    measure(model, (x[:20], y[:20]), resume=file)
    kept = file.read_bytes()
    with pytest.raises(ValueError, match="other classes"):
        measure(model, (x, y), resume=file, classes="runner_up")
    with pytest.raises(ValueError, match="other model"):
        measure(relu_network(MODEL, 5), (x, y), resume=file)
    with pytest.raises(ValueError, match="other data"):
        measure(model, (x.flip(0), y), resume=file)
    with pytest.raises(ValueError, match="results of 20 samples, the data has 10"):
        measure(model, (x[:10], y[:10]), resume=file)
    assert file.read_bytes() == kept
    assert len(measure(model, (x, y), resume=file)) == 40
    file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no whole npz file"):
        measure(model, (x, y), resume=file)


def test_two_runs_are_equal_bit_for_bit() -> None:
    first, second = (measure(relu_network(MODEL), data(), **OPTIONS) for _ in range(2))  # type: ignore[arg-type]
    for name, column in first.columns().items():
        assert (second.columns()[name] == column).all(), name
    other_seed = {**OPTIONS, "bounds": [Sampled(points=8, radius=1.0, seed=1)]}
    other = measure(relu_network(MODEL), data(), **other_seed)  # type: ignore[arg-type]
    assert (other.first.bounds["sampled"] != first.first.bounds["sampled"]).any()


def test_saved_reports_hold_every_sample(tmp_path: Path) -> None:
    report = measure(relu_network(MODEL), data(), **OPTIONS)  # type: ignore[arg-type]
    saved = json.loads(report.save(tmp_path / "r.json").read_text())
    assert saved["norms"]["l2"]["margin"]["average"] == pytest.approx(report.average_margin)
    assert saved["samples"]["margin_linf"] == report["inf"].margin.tolist()
    with report.save(tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["margin_l2"]) for row in rows] == report.margin.tolist()
    with np.load(report.save(tmp_path / "r.npz")) as arrays:
        assert (arrays["sampled_l2"] == report.first.bounds["sampled"]).all()
        assert json.loads(str(arrays["report_json"]))["count"] == 40
    with pytest.raises(ValueError, match=r"\.json, \.csv or \.npz"):
        report.save(tmp_path / "r.txt")
    assert len(list(tmp_path.iterdir())) == 3
    table = str(report)
    assert "l2 first-order margin" in table
    assert f"{report.accuracy:.4f}" in table


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fails(file: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fails)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_summaries() -> None:
    report = measure(relu_network(MODEL), data())
    total = report.summary()
    assert total.minimum == report.margin.min()
    assert total.quantiles[0.5] == pytest.approx(np.median(report.margin))
    assert total.average_correct == pytest.approx(report.margin[report.correct].mean())
    assert report.misclassified == pytest.approx(1 - report.accuracy)
    with pytest.raises(KeyError, match="was not measured"):
        report.summary(quantity="attack")
    with pytest.raises(KeyError, match="measured norms: l2"):
        report[1]


class Found:
    """A bound whose search finds what it is told to find."""

    name, title, kind = "found", "what was found", "upper"

    def __init__(self, distances: list[float]) -> None:
        self.distances = torch.tensor(distances, dtype=torch.float64)

    def check(self, threat: ThreatModel) -> None:
        pass

    def settings(self) -> dict[str, object]:
        return {}

    def __call__(self, model: object, inputs: Tensor, label: Tensor, **rest: Any) -> BoundResult:
        return BoundResult(self.distances[rest["indices"]])


def found_report() -> MarginReport:
    """Ten samples: two misclassified, three of the others not broken."""
    model = nn.Linear(1, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.bias.zero_()
    x = torch.tensor([[1.0]] * 8 + [[-1.0]] * 2).double()
    distances = [0.1, 0.2, 0.3, 0.4, 0.5, math.inf, math.inf, math.inf, 7.0, 7.0]
    return measure(model, (x, torch.zeros(10, dtype=torch.int64)), bounds=[Found(distances)])


def test_averages_stand_with_what_they_leave_out(tmp_path: Path) -> None:
    report = found_report()
    total = report.summary(quantity="found")
    assert (total.count, total.infinite, total.misclassified) == (7, 3, 2)
    assert total.average == pytest.approx(1.5 / 7)
    assert total.average_correct == pytest.approx(0.3)
    # 0, 0, .1, .2, .3, .4, .5, inf, inf, inf
    assert total.median == pytest.approx(0.35)
    assert total.quantiles[0.75] == math.inf
    assert total.quantiles[0.05] == 0.0
    table = str(report)
    assert "2 misclassified" in table
    header, row = (next(s for s in table.splitlines() if w in s) for w in ("avg correct", "what"))
    assert "not found" in header
    assert row.split()[-1] == "3"
    assert "3 samples left out of the averages (no adversarial example found)" in table
    assert "the 2 misclassified samples have distance 0" in table
    saved = json.loads(report.save(tmp_path / "r.json").read_text())["norms"]["l2"]["found"]
    assert (saved["infinite"], saved["misclassified"]) == (3, 2)
    assert saved["quantiles"]["0.75"] == "inf"


def test_a_more_robust_network_has_the_larger_median() -> None:
    weak = MarginSummary.of(np.array([1.0, 2.0, 3.0]), np.ones(3, dtype=bool))
    strong = MarginSummary.of(np.array([1.0, np.inf, np.inf]), np.ones(3, dtype=bool))
    assert strong.average < weak.average
    assert strong.median > weak.median


@pytest.mark.parametrize("values", [[], [math.inf], [-math.inf, 1.0], [-math.inf, math.inf]])
def test_summaries_of_few_values(values: list[float]) -> None:
    total = MarginSummary.of(np.array(values), np.zeros(len(values), dtype=bool))
    assert total.count + total.infinite == len(values)
    for q, value in total.quantiles.items():
        if not values:
            assert math.isnan(value)
        else:
            place = q * (len(values) - 1)
            ends = sorted(values)[math.floor(place)], sorted(values)[math.ceil(place)]
            assert ends[0] <= value <= ends[1]


def test_the_robustness_curve() -> None:
    report = found_report()
    curve = report.robustness_curve([0.0, 0.1, 0.25, 0.5, 100.0])
    assert curve.fraction.tolist() == [0.8, 0.7, 0.6, 0.3, 0.3]
    assert (curve.low <= curve.fraction).all()
    assert (curve.fraction <= curve.high).all()
    # Wilson's interval of 3 of 10.
    assert (curve.low[-1], curve.high[-1]) == pytest.approx((0.1078, 0.6032), abs=1e-4)
    whole = report.robustness_curve()
    assert len(whole.radii) == 101
    assert whole.radii[-1] == 0.5
    assert (np.diff(whole.fraction) <= 0).all()
    assert report.robustness_curve([0.1], quantity="found").fraction.tolist() == [0.7]
    with pytest.raises(KeyError, match="was not measured"):
        report.robustness_curve(quantity="certified")
    with pytest.raises(KeyError, match="no upper bound was measured"):
        measure(relu_network(MODEL), data()).robustness_curve()


def test_the_monitor_keeps_history_and_continues_it(tmp_path: Path) -> None:
    model = relu_network(MODEL)
    path = tmp_path / "history.jsonl"
    monitor = MarginMonitor({"train": data(), "test": data(10)}, path=path, every_steps=2)
    for step in range(4):
        monitor.step({"average_gap": torch.tensor(float(step)), "count": torch.tensor(8.0)})
    monitor.epoch(model, 1)
    with torch.no_grad():
        model[0].weight.mul_(2)
    reports = monitor.epoch(model, 2)
    assert monitor.splits == ["train", "test"]
    epochs, averages = monitor.series("train", "average_margin")
    assert epochs == [1, 2]
    assert averages[1] == pytest.approx(reports["train"].average_margin)
    assert monitor.series("batch", "average_gap") == ([2, 4], [1.0, 3.0])
    # A kill cuts a line; the next monitor goes on after the last whole one.
    path.write_text(path.read_text() + '{"step": 9, "sp')
    again = MarginMonitor({"train": data()}, path=path)
    assert again.history == monitor.history
    assert again.steps == 4
    again.epoch(model, 2)
    again.epoch(model, 3)
    assert again.series("train", "minimum_margin")[0] == [1, 2, 3]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_the_monitor_does_not_disturb_training() -> None:
    def train(watch: bool) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
        monitor = MarginMonitor((data()[0].float(), data()[1]))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for epoch in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data()[0].float()), data()[1]).backward()
            optimizer.step()
            if watch:
                monitor.epoch(model, epoch)
        return model[0].weight.detach()

    assert torch.equal(train(False), train(True))


def test_tensorboard_gets_every_number() -> None:
    class Writer:
        def __init__(self) -> None:
            self.scalars: dict[str, float] = {}

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.scalars[name] = value

        def close(self) -> None:
            self.scalars["closed"] = 1.0

    writer = Writer()
    monitor = MarginMonitor(data(), tensorboard=writer)  # type: ignore[arg-type]
    report = monitor.epoch(relu_network(MODEL), 1)["data"]
    monitor.close()
    assert writer.scalars["data/average_margin"] == pytest.approx(report.average_margin)
    assert writer.scalars["closed"] == 1.0


def test_figures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from margin_ext.measurement import robust_accuracy
    from margin_ext.measurement.figures import margin_history

    model = relu_network(MODEL)
    report = measure(model, data(), **OPTIONS)  # type: ignore[arg-type]
    monitor = MarginMonitor(data())
    for epoch in range(2):
        monitor.epoch(model, epoch)
    figures = {
        "histogram": report.histogram("inf"),
        "scatter": report.scatter(),
        "robustness": found_report().figure(),
        "estimate": measure(model, data()).figure("2"),
        "history": monitor.figure(),
        "several": margin_history({"a": monitor, "b": monitor}),
        "robust": robust_accuracy(model, data(), [0.1, 0.5], attacks=[PGD(steps=3)]).figure(),
    }
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 3000
    assert len(figures["several"].axes) == 2


def test_a_histogram_drops_nothing_and_says_what_its_outermost_bins_hold() -> None:
    pytest.importorskip("matplotlib")
    from margin_ext.output.figure_style import clipped_histogram, new_axes

    values = np.concatenate([np.linspace(0, 1, 998), [-50.0, 70.0, np.inf]])
    _, (ax,) = new_axes()
    clipped_histogram(ax, [values], "margin", "samples", share=0.002, bins=10)
    # One bar a bin; the outline drawn over them is a single polygon.
    assert sum(patch.get_height() for patch in ax.patches if hasattr(patch, "get_height")) == 1000
    assert "also 2 below, down to -50, and 2 above, up to 70" in ax.get_xlabel()
