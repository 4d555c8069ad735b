from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

transformers = pytest.importorskip("transformers", reason="needs transformers: extra transformers")
pytest.importorskip("accelerate", reason="needs accelerate: extra transformers")

from margin_ext import AverageMarginLoss, measure
from margin_ext.attacks import PGD
from margin_ext.integrations.transformers import (
    InputLogits,
    MarginTrainer,
    MarginTrainerCallback,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


class Rows(Dataset):
    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


def images(count: int = 16) -> Rows:
    torch.manual_seed(0)
    pixels = torch.rand(count, 3, 8, 8)
    labels = pixels.flatten(1)[:, :3].argmax(dim=1)
    return Rows([{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels, strict=True)])


def texts(count: int = 16) -> Rows:
    torch.manual_seed(0)
    rows = []
    for i in range(count):
        ids, length = torch.randint(3, 30, (10,)), 4 + i % 6
        mask = (torch.arange(10) < length).long()
        rows.append({"input_ids": ids * mask, "attention_mask": mask, "labels": ids[0] % 3})
    return Rows(rows)


def vit() -> nn.Module:
    torch.manual_seed(1)
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
            num_labels=3,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def bert(attention: str = "sdpa") -> nn.Module:
    torch.manual_seed(1)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            num_labels=3,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation=attention,
        )
    )


def arguments(folder, **settings):
    return transformers.TrainingArguments(
        output_dir=str(folder),
        **{
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            **settings,
        },
    )


def criterion(**settings) -> AverageMarginLoss:
    return AverageMarginLoss(**{"tau": 1.0, "gradient": "finite_difference", **settings})


def test_images_train_and_are_measured(tmp_path):
    data = images()
    batch = (
        torch.stack([r["pixel_values"] for r in data]),
        torch.stack([r["labels"] for r in data]),
    )
    callback = MarginTrainerCallback(batch, eps=(0.1,), attack_options={"attacks": [PGD(steps=5)]})
    trainer = MarginTrainer(
        vit(),
        arguments(tmp_path, eval_strategy="epoch"),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[callback],
        criterion=criterion(),
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 4
    assert all(entry["minimum_margin"] <= entry["average_margin"] for entry in steps)
    measured = trainer.evaluate()
    expected = measure(InputLogits(trainer.model), batch).summary()
    assert measured["eval_margin_average"] == pytest.approx(expected.average, rel=1e-5)
    assert measured["eval_margin_minimum"] == pytest.approx(expected.minimum, rel=1e-5)
    assert 0 <= measured["eval_margin_robust_accuracy_0.1"] <= measured["eval_margin_accuracy"]
    assert measured["eval_loss"] > 0
    assert sum("eval_margin_average" in entry for entry in trainer.state.log_history) == 3


def gradients(trainer, batch) -> dict[str, torch.Tensor]:
    model = trainer.model.train()
    model.zero_grad()
    trainer.compute_loss(model, batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def collate(rows) -> dict[str, torch.Tensor]:
    return transformers.default_data_collator(list(rows))


def test_text_margins_are_those_of_the_embeddings(tmp_path):
    batch = collate(texts())
    trainer = MarginTrainer(
        bert("eager"), arguments(tmp_path), criterion=criterion(gradient="double_backward")
    )
    found = gradients(trainer, batch)
    statistics = trainer.criterion.statistics

    # The same by hand: embeddings as inputs, whose padded rows are constants.
    model = trainer.model
    model.zero_grad()
    embedding = model.get_input_embeddings()
    mask = batch["attention_mask"]
    words = embedding(batch["input_ids"])
    shift = torch.zeros_like(words).requires_grad_()
    logits = model(inputs_embeds=words + shift * mask.unsqueeze(-1), attention_mask=mask).logits
    by_hand = criterion(gradient="double_backward")
    by_hand(logits, batch["labels"], shift).backward()
    assert statistics.average_margin == pytest.approx(by_hand.statistics.average_margin.item())
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)
    assert found["bert.embeddings.word_embeddings.weight"].abs().sum() > 0


@pytest.mark.parametrize("gradient", ["finite_difference", "detached"])
def test_text_trains_through_fused_attention(tmp_path, gradient):
    trainer = MarginTrainer(
        bert(),
        arguments(tmp_path, num_train_epochs=6, gradient_accumulation_steps=2),
        train_dataset=texts(),
        criterion=criterion(gradient=gradient, tau=0.1),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert not trainer.model.get_input_embeddings()._forward_hooks


def test_accumulated_batches_weigh_as_one(tmp_path):
    rows = images()
    trainers = [
        MarginTrainer(
            vit(),
            arguments(
                tmp_path,
                num_train_epochs=1,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=16 // size,
                lr_scheduler_type="constant",
                optim="sgd",
                max_grad_norm=0.0,
            ),
            train_dataset=rows,
            criterion=criterion(gradient="detached"),
        )
        for size in (16, 4)
    ]
    for trainer in trainers:
        trainer.train()
    for one, other in zip(*(t.model.parameters() for t in trainers), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_label_smoothing_belongs_to_the_criterion(tmp_path):
    with pytest.raises(ValueError, match="give label_smoothing to AverageMarginLoss"):
        MarginTrainer(vit(), arguments(tmp_path, label_smoothing_factor=0.1), criterion=criterion())


def test_an_unknown_input_is_asked_for(tmp_path):
    trainer = MarginTrainer(vit(), arguments(tmp_path), criterion=criterion())
    with pytest.raises(ValueError, match=r"input_name=, the batch has \['image'\]"):
        trainer.compute_loss(
            trainer.model.train(), {"image": torch.rand(2, 3, 8, 8), "labels": torch.tensor([0, 1])}
        )
