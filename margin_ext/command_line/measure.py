"""``margin-ext measure``: margins and robust accuracy of a saved model."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from margin_ext.data.data_source import data_forms

if TYPE_CHECKING:
    from margin_ext.command_line import Subparsers

__all__ = ["add_parser", "run"]

_FAILED = 2


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "measure",
        help="measure the margins and the robust accuracy of a saved model",
        description="Measure first-order margins, bounds on the true margin and robust accuracy.",
        epilog="example: margin-ext measure --model mnist_cnn --checkpoint MNISTCNN_00200.tar "
        "--data mnist:DIR --data-range 0 1 --bounds minimum_distance --attack 1 2 --limit 500 "
        "--out results",
    )
    parser.add_argument(
        "--model",
        required=True,
        help="module:callable that returns a torch.nn.Module, or the name of one of the paper's "
        "architectures, such as mnist_cnn",
    )
    parser.add_argument("--checkpoint", type=Path, help="parameters, loaded as tensors only")
    parser.add_argument(
        "--data",
        required=True,
        help=f"one of {data_forms()}; a module:callable returns tensors, a Dataset or a DataLoader",
    )
    parser.add_argument("--train", action="store_true", help="the training part of the data")
    parser.add_argument("--p", nargs="+", default=["2"], help="threat norms, such as 2 inf")
    parser.add_argument(
        "--classes", default="all", help="all, runner_up or a number of nearest classes"
    )
    parser.add_argument(
        "--unsigned", action="store_true", help="from the predicted class, as the authors report"
    )
    parser.add_argument(
        "--bounds", nargs="*", default=[], metavar="BOUND",
        help="measure these in addition: minimum_distance, certified, sampled",
    )  # fmt: skip
    parser.add_argument("--points", type=int, default=1024, help="of the sampled estimate")
    parser.add_argument("--radius", type=float, default=5.0, help="of the sampled estimate's ball")
    parser.add_argument(
        "--attack", nargs="+", type=float, metavar="EPS", default=[],
        help="robust accuracy at these radii, under PGD on the gap and on the cross-entropy",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=40, help="of PGD")
    parser.add_argument("--restarts", type=int, default=1, help="of PGD")
    parser.add_argument(
        "--data-range", nargs=2, type=float, metavar=("LOW", "HIGH"),
        help="lowest and highest input value; attacks stay inside",
    )  # fmt: skip
    parser.add_argument(
        "--input-std", nargs="+", type=float,
        help="the loader's standard deviation(s), for results in pixel units",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, help="only the first samples")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--max-memory", help='for activations, such as "2GB"')
    parser.add_argument("--device", help="such as cuda; default: cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path,
        help="folder for report.json, .csv and .npz, robust_accuracy.json and the figures; a run "
        "that was killed goes on from what it left there",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and save; 2 where something does not fit."""
    # Their text is part of the report and not of a traceback.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            _measure(arguments)
        except (ValueError, TypeError, OSError, ImportError) as error:
            sys.stderr.write(f"margin-ext measure: {error}\n")
            return _FAILED
    for warning in caught:
        sys.stderr.write(f"margin-ext measure: warning: {warning.message}\n")
    return 0


def _measure(arguments: argparse.Namespace) -> None:
    import torch

    from margin_ext.attacks import PGD, AttackLoss
    from margin_ext.bounds import Sampled
    from margin_ext.data import load_part
    from margin_ext.measurement import measure, robust_accuracy
    from margin_ext.models.checkpoint import load_checkpoint
    from margin_ext.models.named_model import named_model

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    model = named_model(arguments.model)
    if arguments.checkpoint is not None:
        load_checkpoint(model, arguments.checkpoint)
    if arguments.device is not None:
        model.to(arguments.device)
    data = load_part(arguments.data, "train" if arguments.train else "test")
    out: Path | None = arguments.out
    std, seed = arguments.input_std, arguments.seed
    common: dict[str, Any] = {
        "data_range": tuple(arguments.data_range) if arguments.data_range else None,
        "input_std": std[0] if std is not None and len(std) == 1 else std,
        "seed": seed,
        "batch_size": arguments.batch_size,
        "limit": arguments.limit,
    }
    rule = arguments.classes
    sampled = Sampled(points=arguments.points, radius=arguments.radius, seed=seed)
    report = measure(
        model,
        data,
        p=arguments.p,
        classes=int(rule) if rule.isdigit() else rule,
        signed=not arguments.unsigned,
        bounds=[sampled if name == sampled.name else name for name in arguments.bounds],
        max_memory=arguments.max_memory,
        resume=None if out is None else out / "partial.npz",
        **common,
    )
    sys.stdout.write(f"{report}\n")
    if out is not None:
        for suffix in ("json", "csv", "npz"):
            report.save(out / f"report.{suffix}")
        _save_figures(report, out)
    if arguments.attack:
        for p in arguments.p:
            robust = robust_accuracy(
                model,
                data,
                arguments.attack,
                p=p,
                attacks=[
                    PGD(loss=loss, steps=arguments.steps, restarts=arguments.restarts, seed=seed)
                    for loss in get_args(AttackLoss)
                ],
                **common,
            )
            sys.stdout.write(f"\n{robust}\n")
            if out is not None:
                robust.save(out / f"robust_accuracy_l{p}.json")
    if out is not None:
        sys.stdout.write(f"\nsaved in {out}\n")


def _save_figures(report: Any, out: Path) -> None:
    from margin_ext.norms import norm_name

    try:
        for p in report.norms:
            report.histogram(p).savefig(out / f"histogram_{norm_name(p)}.png")
            report.scatter(p).savefig(out / f"gap_against_margin_{norm_name(p)}.png")
    except ImportError as error:
        sys.stderr.write(f"margin-ext measure: no figures: {error}\n")
