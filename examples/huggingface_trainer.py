"""Hugging Face Trainer with a margin loss, and margins measured after each evaluation.

Images are the model's inputs here. With ``input_ids`` in the batches the same trainer takes margins
in the space of the embeddings.

    pip install 'margin_ext[transformers]'
    python examples/huggingface_trainer.py
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from small_images import CLASSES, small_images
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

from margin_ext import AverageMarginLoss
from margin_ext.integrations.transformers import MarginTrainer, MarginTrainerCallback


class Images(Dataset[dict[str, Tensor]]):
    def __init__(self, count: int, seed: int = 0) -> None:
        self.data = small_images(count, seed)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, label = self.data[index]
        return {"pixel_values": image, "labels": label}


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
    # Attention has fused kernels without a second derivative, which finite differences do not need.
    criterion = AverageMarginLoss(p=2, mu=1.0, tau=3.0, gradient="finite_difference")
    held_out = Images(100, seed=1)
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
                eval_strategy="epoch",
            ),
            train_dataset=Images(arguments.images),
            eval_dataset=held_out,
            criterion=criterion,
            callbacks=[MarginTrainerCallback(held_out.data.tensors, measure_options={"limit": 50})],
        )
        trainer.train()
        figures = trainer.evaluate()
    print(f"last batch: {criterion.statistics}")
    print({name: round(value, 3) for name, value in figures.items() if "margin" in name})


if __name__ == "__main__":
    main()
