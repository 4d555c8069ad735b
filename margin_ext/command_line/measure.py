"""``margin-ext measure``: margins and robust accuracy of a saved model."""

from __future__ import annotations

import argparse
import sys
import warnings
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margin_ext.data.data_source import data_forms

if TYPE_CHECKING:
    import torch

    from margin_ext.command_line import Subparsers
    from margin_ext.measurement import MarginReport
    from margin_ext.ranks import Ranks

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
        "--out results; started by torchrun --nproc-per-node 8 -m margin_ext measure ..., eight "
        "processes share the samples",
    )
    parser.add_argument(
        "--model",
        required=True,
        help="module:callable that returns a torch.nn.Module (it gets the samples' shape and the "
        "number of classes if it has parameters of these names), or a name such as small_cnn, "
        "resnet or mnist_cnn",
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
        help="robust accuracy at these radii, under the search for the nearest adversarial example "
        "and under PGD on the gap and on the cross-entropy",
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
    import torch

    from margin_ext.ranks import started_ranks
    from margin_ext.together import RankFailedError

    with ExitStack() as held:
        # Their text is part of the report and not of a traceback.
        caught = held.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always", UserWarning)
        try:
            ranks = held.enter_context(started_ranks(arguments.device or "cpu"))
            _measure(arguments, ranks)
            told = ranks.gather([str(warning.message) for warning in caught])
        except RankFailedError as error:
            # The rank that failed tells why; one that was ended from outside cannot.
            if "is gone" in str(error):
                _tell(_first_line(error))
            return _FAILED
        except torch.OutOfMemoryError as error:
            _tell(f"out of memory, try --max-memory or --batch-size: {_first_line(error)}")
            return _FAILED
        except (ValueError, TypeError, OSError, ImportError) as error:
            _tell(_first_line(error))
            return _FAILED
        if ranks.is_main:
            for text in dict.fromkeys(chain.from_iterable(told)):
                _tell(f"warning: {text}")
    return 0


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _tell(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"margin-ext measure: {text}\n")


def _measure(arguments: argparse.Namespace, ranks: Ranks) -> None:
    import torch

    from margin_ext.output.exclusive import exclusive
    from margin_ext.plain_numbers import whole_number
    from margin_ext.together import Together

    out: Path | None = arguments.out
    with ExitStack() as held:
        with Together(ranks):
            if arguments.threads is not None:
                torch.set_num_threads(whole_number("threads", arguments.threads))
            model, data = _model_and_data(arguments, ranks)
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                if ranks.is_main:
                    held.enter_context(exclusive(out))
        _measured(arguments, model, data, out, ranks)
    if out is not None and ranks.is_main:
        sys.stdout.write(f"\nsaved in {out}\n")


def _model_and_data(arguments: argparse.Namespace, ranks: Ranks) -> tuple[torch.nn.Module, Any]:
    from margin_ext.data import load_part
    from margin_ext.measurement.measuring import usable_device
    from margin_ext.models.checkpoint import load_checkpoint
    from margin_ext.models.named_model import model_names, named_model

    device = None
    if arguments.device is not None:
        own = arguments.device == "cuda"  # one of this process
        device = usable_device(ranks.device("cuda") if own else arguments.device)
    data = load_part(arguments.data, "train" if arguments.train else "test")
    shape = classes = None
    if isinstance(data, (tuple, list)) and len(data) == 2 and hasattr(data[1], "max"):
        shape, classes = tuple(data[0].shape[1:]), 1 + int(data[1].max())
    model = named_model(arguments.model, shape=shape, classes=classes)
    if arguments.checkpoint is not None:
        load_checkpoint(model, arguments.checkpoint)
    elif arguments.model in model_names():
        warnings.warn(f"{arguments.model} has random weights: give a --checkpoint", stacklevel=2)
    return (model if device is None else model.to(device)), data


def _measured(
    arguments: argparse.Namespace,
    model: torch.nn.Module,
    data: Any,
    out: Path | None,
    ranks: Ranks,
) -> None:
    """Measure on all ranks; rank 0 prints, and keeps everything in the folder."""
    from margin_ext.attacks import PGD, Attack
    from margin_ext.bounds import Sampled
    from margin_ext.measurement import measure, robust_accuracy
    from margin_ext.norms import norm_name
    from margin_ext.together import Together

    std, seed = arguments.input_std, arguments.seed
    common: dict[str, Any] = {
        "data_range": tuple(arguments.data_range) if arguments.data_range else None,
        "input_std": std[0] if std is not None and len(std) == 1 else std,
        "seed": seed,
        "batch_size": arguments.batch_size,
        "limit": arguments.limit,
        "ranks": ranks,
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
    with Together(ranks):
        if ranks.is_main:
            _tell_report(report, out)
    pgd = {"steps": arguments.steps, "restarts": arguments.restarts, "seed": seed}
    attacks: list[str | Attack] = [
        "nearest",
        PGD(loss="gap", **pgd),
        PGD(loss="cross_entropy", **pgd),
    ]
    for p in report.norms if arguments.attack else ():
        robust = robust_accuracy(
            model,
            data,
            arguments.attack,
            p=p,
            attacks=attacks,
            report=report,
            resume=None if out is None else out / f"partial_attacks_{norm_name(p)}.npz",
            **common,
        )
        with Together(ranks):
            if ranks.is_main:
                sys.stdout.write(f"\n{robust}\n")
                if out is not None:
                    robust.save(out / f"robust_accuracy_{robust.threat.name}.json")


def _tell_report(report: MarginReport, out: Path | None) -> None:
    sys.stdout.write(f"{report}\n")
    if out is not None:
        for suffix in ("json", "csv", "npz"):
            report.save(out / f"report.{suffix}")
        _save_figures(report, out)


def _save_figures(report: MarginReport, out: Path) -> None:
    from margin_ext.norms import norm_name
    from margin_ext.output.figure_style import write_figure

    try:
        for p, norm in report.norms.items():
            name = norm_name(p)
            write_figure(report.histogram(p), out / f"histogram_{name}.png")
            write_figure(report.scatter(p), out / f"gap_against_margin_{name}.png")
            if norm.bounds:
                write_figure(report.figure(p), out / f"robustness_{name}.png")
    except ImportError as error:
        _tell(f"no figures: {error}")
