"""Run by torchrun: trainings over several processes; rank 1 may be killed in the middle of one.

Arguments: "kill" or "go on", and the file for what was found.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from training.small_images import MODELS

from margin_ext.distributed import Ranks, all_ranks
from margin_ext.training import Trial, TrialsReport, trial_from_settings
from margin_ext.training.training_loop import TrainingLoop

SETTINGS: dict[str, Any] = {
    "data": "npz",
    "data_dir": "images.npz",
    "tau": 1.0,
    # The last batch has two images, which is fewer than there are processes.
    "batch_size": 13,
    "epochs": 3,
    "threads": 1,
    "monitor_limit": 20,
    "measure_limit": 12,
    "attack_steps": 3,
    "distance_steps": 5,
}
SPLIT = (
    MODELS
    + """
from torch.distributed.fsdp import fully_shard

def split(shape, classes):
    model = plain(shape, classes)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(model)

def with_norm(shape, classes):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(64, classes),
    )
"""
)


def trial(ranks: Ranks, out: str, model: str, **settings: Any) -> Trial:
    settings = {**SETTINGS, "model": f"small_models:{model}", **settings}
    return trial_from_settings(settings, out, ranks)


class StoppedError(Exception):
    pass


def interrupted(made: Trial, steps: int) -> None:
    """Train that many steps more, and leave as a program that was stopped."""
    count = 0

    def step(_: int) -> None:
        nonlocal count
        count += 1
        if count > steps:
            raise StoppedError

    try:
        for _ in made.loop.epochs(step):
            pass
    except StoppedError:
        pass


def kill_in_the_middle(ranks: Ranks) -> None:
    step, count = TrainingLoop._step, 0

    def counted(self: TrainingLoop, *words: Any) -> Any:
        nonlocal count
        count += 1
        # Five steps an epoch.
        if ranks.rank == 1 and count == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *words)

    TrainingLoop._step = counted  # type: ignore[method-assign]
    trial(ranks, "killed", "with_norm", save_every=0.0).run()


def go_on(ranks: Ranks) -> dict[str, Any]:
    found: dict[str, Any] = {}
    killed = trial(ranks, "killed", "with_norm", save_every=0.0)
    found["killed in"] = (killed.loop.epoch, killed.loop._steps_done)
    killed.run()
    trial(ranks, "whole", "with_norm").run()
    split = trial(ranks, "split", "split", save_every=0.0)
    interrupted(split, 7)
    again = trial(ranks, "split", "split", save_every=0.0)
    found["split stopped in"] = (again.loop.epoch, again.loop._steps_done)
    again.run()
    found["split measured"] = again.measured is not None
    found["accuracy"] = again.accuracy()
    trial(ranks, "ddp", "plain").run()
    try:
        trial(ranks, "average", "split", weight_average=0.9)
    except ValueError as error:
        found["weight average"] = str(error)
    if ranks.is_main:
        TrialsReport([again], again.folder).save()
    return found


def main(what: str, path: Path) -> None:
    distributed.init_process_group("gloo")
    ranks = all_ranks()
    if what == "kill":
        kill_in_the_middle(ranks)
    everyone = ranks.gather(go_on(ranks))
    if ranks.is_main:
        path.write_text(json.dumps(everyone))
    distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
