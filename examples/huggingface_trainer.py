"""Hugging Face Trainer with the criterion in compute_loss.

Images are the model's inputs here. For text take margins in the space of the embeddings: pass
``inputs_embeds`` through ``call=`` in the same way, with the attention mask beside it.

    pip install 'margin_ext[transformers]'
    python examples/huggingface_trainer.py
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from small_images import CLASSES, small_images
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from margin_ext import AverageMarginLoss


class Images(Dataset[dict[str, Tensor]]):
    def __init__(self, count: int) -> None:
        self.data = small_images(count)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, label = self.data[index]
        return {"pixel_values": image, "labels": label}


class MarginTrainer(Trainer):
    # Attention has fused kernels without a second derivative, which finite differences do not need.
    criterion = AverageMarginLoss(p=2, mu=1.0, tau=3.0, gradient="finite_difference")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # compute_loss divides by the samples of all the step's batches, so Trainer need not.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        out = self.criterion.run(
            model,
            inputs["pixel_values"],
            inputs["labels"],
            call=lambda net, pixels: net(pixel_values=pixels).logits,
            normalizer=num_items_in_batch,
        )
        return (out.loss, {"logits": out.logits}) if return_outputs else out.loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=12,
            patch_size=4,
            num_labels=CLASSES,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = MarginTrainer(
            model,
            TrainingArguments(
                output_dir=folder,
                num_train_epochs=arguments.epochs,
                per_device_train_batch_size=25,
                gradient_accumulation_steps=2,
                learning_rate=1e-3,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=10,
            ),
            train_dataset=Images(arguments.images),
        )
        trainer.train()
    statistics = MarginTrainer.criterion.statistics
    print(f"last batch: {statistics}")


if __name__ == "__main__":
    main()
