"""Run by torchrun in two processes: MarginTrainer with models that ``fully_shard`` has split.

Accelerate splits models on GPUs only, so they are split here and given to the trainer's steps.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from pathlib import Path

import torch
from integrations.test_transformers import bert, collate, criterion, images, texts, vit
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard

from margin_ext.integrations.transformers import MarginTrainer, MarginTrainerCallback

LAYERS = ("ViTLayer", "BertLayer")


def gradient(model: nn.Module) -> Tensor:
    parts = [p.grad for p in model.parameters() if p.grad is not None]
    whole = [getattr(part, "full_tensor", lambda part=part: part)() for part in parts]
    return torch.cat([part.flatten() for part in whole])


def main(path: Path) -> None:
    import transformers

    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    settings = transformers.TrainingArguments(
        output_dir=str(path.parent), use_cpu=True, report_to=[], save_strategy="no"
    )
    found = {}
    for name, model, rows in (("images", vit(), images()), ("texts", bert(), texts())):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        split = copy.deepcopy(model)
        for layer in split.modules():
            if type(layer).__name__ in LAYERS:
                fully_shard(layer)
        fully_shard(split)
        loss = criterion(gradient="finite_difference")
        trainer = MarginTrainer(model=model, args=settings, train_dataset=rows, criterion=loss)
        batches = [collate(rows.rows[:8]), collate(rows.rows[4 * rank : 4 * rank + 4])]
        for net, batch, count in zip((model.train(), split.train()), batches, (8, 4), strict=True):
            trainer.compute_loss(net, batch, num_items_in_batch=count).backward()
        whole = gradient(model)
        found[name] = float((gradient(split) - whole).norm() / whole.norm())
        if name == "images":
            data = collate(rows.rows)
            callback = MarginTrainerCallback((data["pixel_values"], data["labels"]), eps=[0.05])
            metrics: list[dict[str, float]] = [{}, {}]
            for net, values in zip((model, split), metrics, strict=True):
                state = transformers.TrainerState(log_history=[])
                callback.on_evaluate(None, state, None, model=net, metrics=values)
            found["measured"] = float(metrics[0] == metrics[1] and len(metrics[0]) > 3)
    if rank == 0:
        path.write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
