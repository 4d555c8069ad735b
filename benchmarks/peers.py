"""Images a second against foolbox, adv-lib, ART, torch.func and captum, at equal answers.

    python -m benchmarks.peers [--mnist FOLDER] [--only REGEX] [--out FILE]

pip install 'margin_ext[peers]' brings the other libraries; one that is missing is named and left
out, and added by a later run. All get the same images, which the network classifies right, and
answer for each image: the distance of the nearest adversarial example that was found, or a
first-order margin. Points are judged here, whoever found them. Time is CPU time on the CPU, so that
other work on the machine counts little, and what is quick is asked several times in turn.

The two small networks are trained first, in about two minutes, and kept: on the images of --mnist,
or on scikit-learn's digits enlarged. ResNet-50 has random weights.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import arguments
from benchmarks.cases import Case, measure_all
from benchmarks.evaluation.instruments import OURS, why_missing
from benchmarks.load import Load
from benchmarks.peer_calls import CALLS, DISTANCE, Call
from benchmarks.peer_problems import NETWORKS, QUICK_NETWORKS, Network, Problem
from benchmarks.results import QUICK_FOLDER

# Searches take long and run once; the other questions are asked in turn, so often.
_ROUNDS, _ENOUGH_SECONDS = 7, 20.0


def groups() -> Iterator[tuple[str, tuple[Call, ...]]]:
    """Calls that are timed in turn, with a name: a search alone, another question's rivals."""
    for call in CALLS:
        if call.task == DISTANCE:
            yield f"{call.task}, {call.name}", (call,)
        elif call.library == OURS:
            rivals = tuple(other for other in CALLS if other.task == call.task)
            yield call.task, rivals


def measure(make: Any, network: Network, calls: Sequence[Call], rounds: int) -> Case:
    """Answers and seconds of some calls on one network."""
    problem: Problem = make()
    given = []
    for call in calls:
        call.prepare()
        count = call.most_images(network.name) or len(problem.y)
        given.append(replace(problem, x=problem.x[:count], y=problem.y[:count]))
    _warm(problem)
    taken: list[list[float]] = [[] for _ in calls]
    answers: list[list[float | None]] = [[] for _ in calls]
    begun = time.perf_counter()
    with Load() as load:
        for turn in range(rounds if len(calls) > 1 else 1):
            if turn and time.perf_counter() - begun > _ENOUGH_SECONDS:
                break
            for i, call in enumerate(calls):
                torch.manual_seed(0)
                start = _clock(problem)
                found = call.answers(given[i])
                taken[i].append(_clock(problem) - start)
                answers[i] = [d if math.isfinite(d) else None for d in found.tolist()]
    return {
        "network": network.name,
        "title": network.title,
        "task": calls[0].task,
        "others_cores": load.others_cores,
        "contenders": [
            {
                "library": call.library,
                "version": version("margin_ext" if call.library == OURS else call.library),
                "title": call.title,
                "images": len(given[i].y),
                "seconds": taken[i],
                "answers": answers[i],
            }
            for i, call in enumerate(calls)
        ],
    }


def _warm(problem: Problem) -> None:
    """A gradient on every image, so that no contender pays for what comes once."""
    x = problem.x.clone().requires_grad_()
    torch.autograd.grad(problem.model(x).sum(), x)


def _clock(problem: Problem) -> float:
    if problem.x.is_cuda:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's idx files")
    given = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # of the other libraries
    networks = QUICK_NETWORKS if given.quick else NETWORKS
    kept = QUICK_FOLDER.parent / "peers"
    with arguments.run(given):
        results = arguments.results("peers", given, mnist=given.mnist is not None)
        missing = {
            library: words
            for library in {call.library for call in CALLS}
            if (words := why_missing(library))
        }
        for words in missing.values():
            print(words, flush=True)

        def cases() -> Iterator[tuple[str, Any]]:
            for network in networks:
                mnist = given.mnist if network.mnist else None
                weights = kept / f"{network.name}{'_mnist' if mnist else ''}.pt"
                make = cache(partial(network.problem, mnist, weights, given.device))
                for name, calls in groups():
                    able = [
                        call
                        for call in calls
                        if call.library not in missing and call.runs_on(network.name)
                    ]
                    if len(able) == len(calls):
                        rounds = 1 if given.quick else _ROUNDS
                        full = f"{network.name}: {name}"
                        yield full, partial(_named, full, measure, make, network, calls, rounds)

        measure_all(results, given, cases(), _summary)


def _named(name: str, measured: Any, *rest: Any) -> Case:
    return {"name": name, **measured(*rest)}


def _summary(case: Case) -> list[str]:
    return [
        f"{one['title']}: {one['images'] / min(one['seconds']):.3g} images/s"
        for one in case["contenders"]
    ]


if __name__ == "__main__":
    main()
