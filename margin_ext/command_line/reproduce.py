"""``margin-ext reproduce``: the authors' figures and ours side by side."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from margin_ext.command_line import Subparsers

__all__ = ["add_parser", "run"]

_DISAGREES = 1
_FAILED = 2


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "reproduce",
        help="compare the authors' published figures with ours",
        description="Measure the checkpoints that the paper's authors published and compare with "
        "their figures. Everything takes about an hour on one core; see --parts.",
    )
    parser.add_argument(
        "--authors", type=Path, required=True,
        help="folder with MNISTLR_01000.tar, MNISTCNN_00200.tar and MNISTCNN_reg_00200.tar "
        "(Model/ of the repository watml/rob-margin)",
    )  # fmt: skip
    parser.add_argument(
        "--mnist", type=Path, required=True, help="folder with MNIST's test idx files"
    )
    parser.add_argument(
        "--parts", nargs="+", metavar="PART",
        help="linear, weights (seconds); first-order-, bounds- and robust- with plain or "
        "regularized (minutes each); default: all",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path,
        help="folder in which each part is kept, so that a later call does not repeat it; with a "
        "figure once the parts for it are there",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU")


def run(arguments: argparse.Namespace) -> int:
    """Compute and compare: 1 where a figure disagrees unexpectedly, 2 where input does not fit."""
    import torch

    from margin_ext.reproduction.reproduce import compare, comparison_table, reproduce

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    start = time.monotonic()

    def done(part: str, values: dict[str, float]) -> None:
        seconds = time.monotonic() - start
        sys.stderr.write(f"{part}: {len(values)} figures, {seconds:.0f} s\n")

    try:
        values = reproduce(
            arguments.authors,
            arguments.mnist,
            parts=arguments.parts,
            out=arguments.out,
            done=done,
        )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"margin-ext reproduce: {error}\n")
        return _FAILED
    sys.stdout.write(comparison_table(values) + "\n")
    if arguments.out is not None and "plain/robust_gap_eps_2" in values:
        _save_figure(values, arguments.out / "reproduction.png")
    disagreeing = [row.name for row in compare(values) if row.verdict == "NO"]
    if disagreeing:
        sys.stderr.write(f"margin-ext reproduce: disagreeing: {', '.join(disagreeing)}\n")
    return _DISAGREES if disagreeing else 0


def _save_figure(values: dict[str, float], path: Path) -> None:
    from margin_ext.reproduction.reproduction_figure import reproduction_figure

    try:
        reproduction_figure(values).savefig(path)
    except ImportError as error:
        sys.stderr.write(f"margin-ext reproduce: no figure: {error}\n")
