"""Run by torchrun: ranks that measure with ``resume``; rank 1 may be killed in the middle.

Arguments: "margins" or "attacks", whether a rank is killed, and the file for the digests.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from distributed.measured import BOUNDS, EPS, digest, make_data, make_model
from margin_ext import measure, robust_accuracy
from margin_ext.attacks import PGD, Nearest
from margin_ext.distributed import all_ranks
from margin_ext.measurement import read_partial_results

FILE = Path("partial.npz")


class Counted(nn.Module):
    """Kills its process when other ranks and this one have written something."""

    def __init__(self, kills: bool) -> None:
        super().__init__()
        self.inner, self.kills = make_model(), kills
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.kills and len(list(Path().glob("partial*.npz"))) == 3:
            # Results can be read while others go on.
            Path("seen.json").write_text(json.dumps(len(read_partial_results(FILE)["index"])))
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(x)  # type: ignore[no-any-return]


def main(what: str, killing: bool, path: Path) -> None:
    distributed.init_process_group("gloo")
    ranks = all_ranks()
    model = Counted(killing and ranks.rank == 1)
    options = {"batch_size": 2, "resume": FILE, "save_every": 0.0, "ranks": ranks}
    if what == "margins":
        found = measure(model, make_data(), bounds=BOUNDS, **options)
    else:
        attacks = [Nearest(search=BOUNDS[0]), PGD(steps=5)]
        found = robust_accuracy(model, make_data(), EPS, attacks=attacks, **options)
    digests = ranks.gather((digest(found), model.passes))
    if ranks.is_main:
        path.write_text(json.dumps(digests))
    distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2] == "kill", Path(sys.argv[3]))
