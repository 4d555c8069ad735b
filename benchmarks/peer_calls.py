"""What the package and other libraries are asked, each behind one signature.

Settings of other libraries are their defaults or those of the papers, said in the title. Where a
library does not offer what is asked, the few lines that a user would write are here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.evaluation.instruments import OURS
from benchmarks.peer_problems import THREAT, Problem
from margin_ext.bounds import AllClasses, MinimumDistance, Sampled
from margin_ext.bounds.first_order import ClassRule, FirstOrderOptions, first_order_margins
from margin_ext.bounds.margin_sketch import MarginSketch
from margin_ext.integrations.attack_distance import AttackDistance
from margin_ext.threat import ThreatModel

DISTANCE, MARGIN, GRADIENT, CLEVER = "distance", "margins", "gradient", "clever"
TORCH = "torch"
ART = "adversarial-robustness-toolbox"
_FREE = ThreatModel(p=2)
# What is imported before any clock starts.
_MODULES = {
    "foolbox": ("foolbox",),
    "adv-lib": ("adv_lib.attacks",),
    ART: ("art.attacks.evasion", "art.estimators.classification", "art.metrics"),
    "captum": ("captum.attr",),
}
_CHUNK = 64


@dataclass(frozen=True)
class Call:
    """One way to answer one question.

    Attributes:
        task: The question.
        library: The distribution that it comes from.
        title: For tables: the function, with its settings.
        answers: Takes the problem and returns an answer for each image [B].
        images: The largest number of images by network; others get all that the network has.
        on: Networks that it runs on; None: all.
    """

    task: str
    library: str
    title: str
    answers: Callable[[Problem], Tensor]
    images: tuple[tuple[str, int], ...] = ()
    on: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return f"{self.library} {self.title}"

    def prepare(self) -> None:
        """Import what it needs."""
        for module in _MODULES.get(self.library, ()):
            importlib.import_module(module)

    def runs_on(self, network: str) -> bool:
        return self.on is None or network in self.on

    def most_images(self, network: str) -> int | None:
        return dict(self.images).get(network)


def _search(search: MinimumDistance, problem: Problem) -> Tensor:
    return search(problem.model, problem.x, problem.y, threat=THREAT).distance


def _judged(points: Callable[[nn.Module, Tensor, Tensor], Tensor], problem: Problem) -> Tensor:
    """Distances of another library's points that are adversarial and in the data range."""
    return AttackDistance(points, "points")(
        problem.model, problem.x, problem.y, threat=THREAT
    ).distance


def _foolbox(name: str, options: dict[str, Any], problem: Problem) -> Tensor:
    import foolbox

    wrapped = foolbox.PyTorchModel(problem.model, bounds=(0, 1), device=problem.x.device)
    attack = getattr(foolbox.attacks, name)(**options)
    return _judged(lambda _, x, y: attack(wrapped, x, y, epsilons=None)[1], problem)


def _adv_lib(name: str, options: dict[str, Any], problem: Problem) -> Tensor:
    from adv_lib import attacks

    return _judged(partial(getattr(attacks, name), **options), problem)


def _art_classifier(problem: Problem) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        problem.model,
        nn.CrossEntropyLoss(),
        tuple(problem.x.shape[1:]),
        problem.classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if problem.x.is_cuda else "cpu",
    )


def _art_deepfool(problem: Problem) -> Tensor:
    from art.attacks.evasion import DeepFool

    attack = DeepFool(_art_classifier(problem), batch_size=len(problem.y), verbose=False)
    return _judged(lambda _, x, __: torch.from_numpy(attack.generate(x.cpu().numpy())), problem)


@cache
def _sketch(_: int) -> MarginSketch:
    """For so many classes: a measurement has one, which learns at once whether it serves."""
    return MarginSketch(AllClasses(), [_FREE])


def _margins(classes: ClassRule, problem: Problem) -> Tensor:
    """As `measure` computes them for a batch."""
    options = FirstOrderOptions([_FREE], classes=classes, sketch=_sketch(problem.classes))
    return first_order_margins(problem.model, problem.x, problem.y, options).margin[0]


def _jacobian_margins(problem: Problem) -> Tensor:
    """All gradients by torch.func.jacrev: of all images at once where the Jacobian is small."""

    def logits(image: Tensor) -> Tensor:
        z: Tensor = problem.model(image.unsqueeze(0))[0]
        return z

    def both(image: Tensor) -> tuple[Tensor, Tensor]:
        z = logits(image)
        return z, z

    small = problem.classes <= _CHUNK
    jacobian = torch.func.jacrev(both, has_aux=True, chunk_size=None if small else _CHUNK)
    if small:
        slopes, z = torch.func.vmap(jacobian)(problem.x)
        return _smallest(slopes, z, problem.y)
    parts = []
    for image, label in zip(problem.x, problem.y, strict=True):
        slopes, z = jacobian(image)
        parts.append(_smallest(slopes[None], z[None], label[None]))
    return torch.cat(parts)


def _smallest(slopes: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """Margins [B] from the logits' gradients [B, C, ...] and the logits [B, C]."""
    rows = torch.arange(len(y), device=y.device)
    flat = slopes.flatten(2)
    norm = torch.linalg.vector_norm(flat[rows, y].unsqueeze(1) - flat, dim=2)
    margin = (z[rows, y].unsqueeze(1) - z) / norm
    margin[rows, y] = torch.inf
    return margin.amin(dim=1)


def _captum_margin(problem: Problem) -> Tensor:
    """The margin to the runner-up, from captum's gradient of the gap."""
    from captum.attr import Saliency

    kept = []
    rows = torch.arange(len(problem.y), device=problem.y.device)

    def gap(x: Tensor) -> Tensor:
        z = problem.model(x)
        others = z.clone()
        others[rows, problem.y] = -torch.inf
        found: Tensor = z[rows, problem.y] - others.amax(dim=1)
        kept.append(found.detach())
        return found

    x = problem.x.clone().requires_grad_()
    grad = Saliency(gap).attribute(x, abs=False)
    return kept[-1] / torch.linalg.vector_norm(grad.flatten(1), dim=1)


_CLEVER_RADIUS, _CLEVER_BLOCKS, _CLEVER_POINTS = 2.0, 10, 64


def _clever(problem: Problem) -> Tensor:
    found = Sampled(
        points=_CLEVER_POINTS,
        blocks=_CLEVER_BLOCKS,
        radius=_CLEVER_RADIUS,
        in_range=True,
        extreme_value=True,
    )
    return found.estimate(problem.model, problem.x, problem.y, threat=THREAT).estimate


def _art_clever(problem: Problem) -> Tensor:
    """As many points as ours, and 50 blocks drawn from them."""
    from art.metrics import clever_u

    classifier = _art_classifier(problem)
    scores = [
        clever_u(
            classifier,
            image,
            nb_batches=50,
            batch_size=_CLEVER_POINTS,
            radius=_CLEVER_RADIUS,
            norm=2,
            pool_factor=_CLEVER_BLOCKS,
            verbose=False,
        )
        for image in problem.x.cpu().numpy()
    ]
    return torch.tensor(scores)


def _distance(on: tuple[str, ...] | None = None, **options: int) -> Call:
    title = ", ".join(f"{name}={value}" for name, value in options.items()) or "default"
    return Call(DISTANCE, OURS, title, partial(_search, MinimumDistance(**options)), on=on)


_SMALL = ("mnist_cnn", "resnet18", "tiny_cnn")
_CNNS = ("mnist_cnn", "tiny_cnn")

# Quickest first. Toward single classes a search needs the first-order margins to all classes.
CALLS: tuple[Call, ...] = (
    _distance(steps=5, restarts=0, targets=0, bisections=6),
    _distance(steps=10, restarts=0, targets=0, bisections=8),
    _distance(steps=20, restarts=0, targets=0, bisections=10),
    _distance(steps=40, restarts=0, targets=0),
    _distance(_SMALL, steps=20, restarts=0, targets=1, bisections=10),
    _distance(_SMALL, steps=20, restarts=0, targets=2, bisections=10),
    _distance(_SMALL, steps=40, restarts=0, targets=2),
    _distance(_CNNS, steps=40, restarts=1, targets=3),
    _distance(_CNNS),
    *(
        Call(DISTANCE, library, title, partial(run, name, options), images, on)
        for library, run, title, name, options, images, on in (
            ("foolbox", _foolbox, "DeepFool, 50 steps", "L2DeepFoolAttack", {}, (), None),
            ("foolbox", _foolbox, "DDN, 100 steps", "DDNAttack", {"steps": 100}, (), None),
            ("foolbox", _foolbox, "DDN, 1000 steps", "DDNAttack", {"steps": 1000}, (), _CNNS),
            ("foolbox", _foolbox, "FMN, 100 steps", "L2FMNAttack", {"steps": 100}, (), None),
            ("foolbox", _foolbox, "FMN, 1000 steps", "L2FMNAttack", {"steps": 1000}, (), _CNNS),
            (
                "adv-lib",
                _adv_lib,
                "DDN, 100 steps",
                "ddn",
                {"steps": 100, "levels": None},
                (),
                None,
            ),
            ("adv-lib", _adv_lib, "FMN, 100 steps", "fmn", {"steps": 100, "norm": 2}, (), None),
            ("adv-lib", _adv_lib, "FMN, 1000 steps", "fmn", {"steps": 1000, "norm": 2}, (), _CNNS),
            ("adv-lib", _adv_lib, "ALMA, 100 steps", "alma", {"num_steps": 100}, (), None),
            ("adv-lib", _adv_lib, "ALMA, 1000 steps", "alma", {"num_steps": 1000}, (), _CNNS),
        )
    ),
    Call(DISTANCE, ART, "DeepFool, 100 steps", _art_deepfool),
    Call(MARGIN, OURS, "margins to all classes", partial(_margins, "all")),
    Call(MARGIN, TORCH, "torch.func.jacrev", _jacobian_margins),
    Call(GRADIENT, OURS, "margin to the runner-up", partial(_margins, "runner_up")),
    Call(GRADIENT, "captum", "Saliency of the gap", _captum_margin),
    Call(CLEVER, OURS, "Sampled, extreme value", _clever, (("mnist_cnn", 10),), _CNNS),
    Call(CLEVER, ART, "clever_u", _art_clever, (("mnist_cnn", 10),), _CNNS),
)
