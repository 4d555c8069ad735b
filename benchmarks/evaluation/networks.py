"""The networks that attacks are compared on: loaded, or trained by the project's own loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.robust_training.methods import METHODS
from benchmarks.robust_training.problems import PROBLEMS, Problem
from margin_ext.models.checkpoint import load_checkpoint
from margin_ext.training import TrainingLoop

__all__ = ["CASES", "Case", "load_case"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One network under one norm at one radius.

    Attributes:
        problem: The data and the architecture (benchmarks.robust_training.problems).
        method: How it was trained (benchmarks.robust_training.methods).
        p: The threat norm.
        eps: The radius.
        images: How many test images.
    """

    problem: str
    method: str
    p: float
    eps: float
    images: int

    @property
    def network(self) -> str:
        """Such as mnist_cnn_secant_0: the name of its checkpoint, without the suffix."""
        return f"{self.problem}_{self.method}_{_SEED}"


_SEED = 0

# In units of the problem's radius. Adversarial training at that radius, the tightest there is.
_SETTINGS: dict[str, dict[str, float]] = {
    "plain": {},
    "secant": {"mu": 2.0, "tau": 1.5},
    "adversarial_1": {"eps": 1.0},
    "adversarial_2": {"eps": 1.0},
    "adversarial_7": {"eps": 1.0},
}
_ALL = tuple(_SETTINGS)
_SOME = ("secant", "adversarial_7")
_LINF = float("inf")

CASES: dict[str, Case] = {
    f"{problem}/{method}/{norm}": Case(problem, method, p, eps, images)
    for norm, p, problem, eps, methods, images in (
        ("l2", 2.0, "mnist_cnn", 2.0, _ALL, 500),
        ("l2", 2.0, "cifar_cnn", 0.5, _ALL, 500),
        ("linf", _LINF, "mnist_cnn", 0.15, _SOME, 500),
        ("linf", _LINF, "cifar_cnn", 4 / 255, ("adversarial_7",), 300),
        ("l1", 1.0, "mnist_cnn", 8.0, _SOME, 300),
        ("l1", 1.0, "cifar_cnn", 8.0, ("adversarial_7",), 300),
    )
    for method in methods
}


def load_case(
    case: Case, data: Path, networks: Path, first: int
) -> tuple[nn.Module, Tensor, Tensor]:
    """The network in eval mode, and test images [B, ...] with labels [B].

    Args:
        case: Which network.
        data: Folder with a folder for each data source, such as mnist; or one source's own.
        networks: Folder of the checkpoints; what is missing there is trained and kept there.
        first: Number of the first test image.
    """
    problem = PROBLEMS[case.problem]
    own = data / problem.data
    content = problem.load(own if own.is_dir() else data)
    path = networks / f"{case.network}.pt"
    model = problem.model(_SEED)
    if path.exists():
        load_checkpoint(model, path)
    else:
        networks.mkdir(parents=True, exist_ok=True)
        checkpoint = networks / f"{case.network}.checkpoint.pt"
        model = _trained(problem, case, content.train, checkpoint)
        torch.save(model.state_dict(), path)
    chosen = slice(first, first + case.images)
    return model.eval().requires_grad_(False), content.test[0][chosen], content.test[1][chosen]


def _trained(
    problem: Problem, case: Case, data: tuple[Tensor, Tensor], checkpoint: Path
) -> nn.Module:
    recipe = dataclasses.replace(problem.recipe, seed=_SEED)
    objective = METHODS[case.method].objective(problem.aim, _SETTINGS[case.method])
    training = TrainingLoop(problem.model(_SEED), data, objective, recipe, checkpoint)
    for _ in training.epochs():
        pass
    return training.model
