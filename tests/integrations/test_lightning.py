from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning", reason="needs lightning: extra lightning")

from margin_ext import AverageMarginLoss, measure, robust_accuracy
from margin_ext.integrations.lightning import MarginCallback, MarginTraining
from tests.integrations.networks import small_data, small_network

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]


class Classifier(MarginTraining, lightning.LightningModule):
    def __init__(self, gradient: str = "auto") -> None:
        super().__init__()
        self.net = small_network().train()
        self.net.insert(1, nn.Dropout(0.5))
        self.criterion = AverageMarginLoss(p=2, mu=1.0, tau=1.0, gradient=gradient)

    def forward(self, inputs):
        return self.net(inputs)

    def validation_step(self, batch, index):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def loader() -> DataLoader:
    return DataLoader(TensorDataset(*small_data()), batch_size=8)


def trainer(folder, **settings):
    return lightning.Trainer(
        **{"max_epochs": 2, **settings},
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize("gradient", ["double_backward", "finite_difference"])
def test_training_and_validation(tmp_path, gradient):
    module = Classifier(gradient)
    run = trainer(tmp_path, callbacks=[MarginCallback(eps=(0.05, 0.2), limit=16)])
    run.fit(module, loader(), loader())
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    report = measure(module, small_data(), limit=16)
    robust = robust_accuracy(module, small_data(), (0.05, 0.2), limit=16)
    assert logged["margin/average"] == pytest.approx(report.summary().average, rel=1e-5)
    assert logged["margin/minimum"] == pytest.approx(report.summary().minimum, rel=1e-5)
    assert logged["margin/accuracy"] == pytest.approx(report.accuracy)
    assert logged["margin/robust_accuracy_0.2"] == pytest.approx(robust.curve()[1])
    assert {"train/loss", "train/average_margin", "train/minimum_margin"} <= set(logged)
    assert module.net.training


def test_measured_at_every_second_epoch_on_data_of_its_own(tmp_path):
    seen = []

    class Counting(MarginCallback):
        def _data(self, trainer):
            seen.append(trainer.current_epoch)
            return super()._data(trainer)

    callback = Counting(small_data(8, seed=3), every=2, measure_options={"p": "inf"})
    run = trainer(tmp_path, callbacks=[callback], max_epochs=3)
    module = Classifier()
    run.fit(module, loader(), loader())
    assert seen == [0, 2]
    expected = measure(module, small_data(8, seed=3), p="inf").summary().average
    assert float(run.callback_metrics["margin/average"]) == pytest.approx(expected, rel=1e-5)


def test_the_gradients_are_those_of_a_plain_loop(tmp_path):
    torch.manual_seed(0)
    module, plain = Classifier("finite_difference"), Classifier("finite_difference")
    for one in (module, plain):
        one.net[1].p = 0.0
    trainer(tmp_path, max_epochs=1).fit(module, loader())
    optimizer = plain.configure_optimizers()
    for inputs, target in loader():
        optimizer.zero_grad()
        plain.criterion.run(plain, inputs, target).loss.backward()
        optimizer.step()
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_every_must_be_positive():
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        MarginCallback(every=0)


RANKS = """
import sys
import lightning, torch
from tests.integrations.test_lightning import Classifier, loader
from margin_ext.integrations.lightning import MarginCallback

if __name__ == "__main__":
    module = Classifier("finite_difference")
    run = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", default_root_dir=sys.argv[1],
        callbacks=[MarginCallback(eps=(0.2,))], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    run.fit(module, loader(), loader())
    if run.global_rank == 0:
        figures = {name: float(value) for name, value in run.callback_metrics.items()}
        torch.save({"figures": figures, "state": module.state_dict()}, sys.argv[1] + "/found.pt")
"""


@pytest.mark.slow
def test_two_ranks_log_what_all_samples_have(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    module = Classifier("finite_difference")
    module.load_state_dict(found["state"])
    report = measure(module, small_data())
    robust = robust_accuracy(module, small_data(), 0.2)
    assert found["figures"]["margin/average"] == pytest.approx(report.summary().average, rel=1e-4)
    assert found["figures"]["margin/minimum"] == pytest.approx(report.summary().minimum, rel=1e-4)
    assert found["figures"]["margin/robust_accuracy_0.2"] == pytest.approx(
        robust.curve()[0], abs=1.5 / 24
    )
