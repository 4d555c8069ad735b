"""The attacks that are compared, each behind one signature; a library that is missing is named."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.evaluation.targeted_gaps import targeted_gaps
from margin_ext.attacks import Nearest
from margin_ext.bounds import MinimumDistance
from margin_ext.threat import ThreatModel

__all__ = ["DISTANCES", "OURS", "RADIUS_ATTACKS", "REFERENCE", "Instrument", "why_missing"]

OURS = "margin_ext"
# Written for the comparison, with nothing of the search's.
REFERENCE = "reference"
# A fifth of AutoAttack's own number: after the other parts Square breaks next to nothing here.
SQUARE_QUERIES = 1000
# Of every attack that draws.
_SEED = 1

# Takes the model, images [B, ...], labels [B], the threat model and the radius; returns points.
Run = Callable[[nn.Module, Tensor, Tensor, ThreatModel, float], Tensor]


@dataclass(frozen=True)
class Instrument:
    """One attack of one library.

    Attributes:
        name: Its key in the results.
        title: For tables.
        library: The distribution that it comes from.
        run: The attack.
        norms: Where it exists.
        after: Instruments that have run before it in the same suite: samples that they broke are
            left out, as AutoAttack does. Its figure and its time include theirs.
    """

    name: str
    title: str
    library: str
    run: Run
    norms: tuple[float, ...] = (1.0, 2.0, math.inf)
    after: tuple[str, ...] = ()


def why_missing(library: str) -> str | None:
    """Why a library cannot be used, in words; None where it can."""
    if library in (OURS, REFERENCE):
        return None
    try:
        version(library)
        if library == "adv-lib":
            import adv_lib.attacks  # noqa: F401
    except (PackageNotFoundError, ImportError, RuntimeError) as error:
        return f"{library} is skipped: {error}"
    return None


def _nearest(
    search: MinimumDistance,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    eps: float,
) -> Tensor:
    return Nearest(search=search, seed=_SEED)(model, x, y, eps, threat=threat).point


def _minimum(
    search: MinimumDistance,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    eps: float,
) -> Tensor:
    search = dataclasses.replace(search, seed=_SEED)
    point = search(model, x, y, threat=threat).point
    return x if point is None else point


def _suite(model: nn.Module, threat: ThreatModel, eps: float) -> Any:
    """AutoAttack's standard version; in l1 it has more starts of APGD, and fewer classes."""
    from pyautoattack import AutoAttack

    norm = {1.0: "L1", 2.0: "L2"}.get(threat.p, "Linf")
    suite = AutoAttack(model, norm=norm, eps=eps, seed=_SEED, version="standard", device="cpu")
    suite.verbose = False
    suite.square.n_queries = SQUARE_QUERIES
    return suite


def _auto(
    attack: str, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, eps: float
) -> Tensor:
    """One part of AutoAttack's standard version."""
    suite = _suite(model, threat, eps)
    suite.attacks_to_run = [attack]
    found = suite.run_standard_evaluation(x, y, batch_size=len(y))
    points: Tensor = found[0] if isinstance(found, tuple) else found
    return points


def _fab(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, eps: float) -> Tensor:
    """Targeted FAB toward all classes: its own loop leaves an image after the first success."""
    fab = _suite(model, threat, eps).fab
    points, nearest = x.clone(), torch.full(y.shape, math.inf)
    torch.manual_seed(_SEED)
    with torch.no_grad():
        for number in range(fab.n_target_classes):
            # Counted from the class with the largest logit, the label itself.
            fab.target_class = number + 2
            found = fab.attack_single_run(x, y, is_targeted=True)
            broken = model(found).argmax(dim=1) != y
            distance = torch.where(broken, threat.distance(found, x), math.inf)
            better = distance < nearest
            points[better], nearest[better] = found[better], distance[better]
    return points


def _adv_lib(
    name: str,
    options: dict[str, Any],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    eps: float,
) -> Tensor:
    from adv_lib import attacks

    points: Tensor = getattr(attacks, name)(model, x, y, **options)
    return points


def _adv_lib_fmn(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, eps: float) -> Tensor:
    return _adv_lib("fmn", {"norm": threat.p, "steps": 1000}, model, x, y, threat, eps)


def _foolbox(
    names: dict[float, str],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    eps: float,
) -> Tensor:
    import foolbox

    attack = getattr(foolbox.attacks, names[threat.p])(steps=300)
    points: Tensor = attack(
        foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device), x, y, epsilons=None
    )[1]
    return points


_AUTO = ("apgd-ce", "apgd-t", "fab-t", "square")
_AUTO_TITLES = ("APGD-CE", "then APGD-T", "then FAB-T", "then Square")
_L2 = (2.0,)

_FMN = {1.0: "L1FMNAttack", 2.0: "L2FMNAttack", math.inf: "LInfFMNAttack"}

_FOOLBOX = (
    Instrument("ddn", "DDN, 300 steps", "foolbox", partial(_foolbox, {2.0: "DDNAttack"}), _L2),
    Instrument("fmn", "FMN, 300 steps", "foolbox", partial(_foolbox, _FMN)),
)

RADIUS_ATTACKS: tuple[Instrument, ...] = (
    Instrument("nearest", "`nearest` (default)", OURS, partial(_nearest, MinimumDistance())),
    Instrument(
        "thorough", "`nearest`, thorough", OURS, partial(_nearest, MinimumDistance.thorough())
    ),
    *(
        Instrument(name, title, "pyautoattack", partial(_auto, name), after=_AUTO[:i])
        for i, (name, title) in enumerate(zip(_AUTO, _AUTO_TITLES, strict=True))
    ),
    Instrument(
        "alma",
        "ALMA, 500 steps",
        "adv-lib",
        partial(_adv_lib, "alma", {"distance": "l2", "num_steps": 500}),
        _L2,
    ),
    *_FOOLBOX,
    Instrument("targeted", "gap to each class, 60 steps", REFERENCE, targeted_gaps),
)

DISTANCES: tuple[Instrument, ...] = (
    Instrument("minimum", "`MinimumDistance()`", OURS, partial(_minimum, MinimumDistance())),
    Instrument("thorough", "`.thorough()`", OURS, partial(_minimum, MinimumDistance.thorough())),
    Instrument("fab-t", "FAB-T", "pyautoattack", _fab),
    Instrument(
        "alma",
        "ALMA, 1000 steps",
        "adv-lib",
        partial(_adv_lib, "alma", {"distance": "l2", "num_steps": 1000}),
        _L2,
    ),
    Instrument("adv-fmn", "FMN, 1000 steps", "adv-lib", _adv_lib_fmn, (1.0, math.inf)),
    Instrument(
        "adv-ddn", "DDN, 300 steps", "adv-lib", partial(_adv_lib, "ddn", {"steps": 300}), _L2
    ),
    *_FOOLBOX,
)
