"""Certified lower bounds on the margin of small networks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from margin_ext.bounds.bound import BoundKind, BoundResult, register_bound
from margin_ext.bounds.relaxation import Relaxation
from margin_ext.bounds.relaxed_network import relaxed_network
from margin_ext.bounds.slope_ascent import ascend, usual_choice
from margin_ext.models.checked_logits import checked_logits
from margin_ext.models.evaluation_mode import Model
from margin_ext.modules_behind import modules_behind
from margin_ext.threat import ThreatModel

__all__ = ["Certified"]

# The logits' rounding that the sample shows, times this, is taken off in the whole ball, where
# that is more than what the rounding of float32 or float64 explains.
_ROUNDINGS = 4.0
_DOUBLINGS = 20

_TOO_NARROW = (
    "certified bounds are for float32 and float64: a narrower type's rounding can exceed them. "
    "Measure model.float() on inputs.float()"
)


@register_bound
@dataclass(frozen=True, kw_only=True)
class Certified:
    bisections: int = 10
    rows: int = 4096
    slopes: int = 0
    split_seconds: float = 0.0

    name: ClassVar[str] = "certified"
    title: ClassVar[str] = "certified (lower bound)"
    kind: ClassVar[BoundKind] = "lower"

    def check(self, threat: ThreatModel) -> None:
        """Any norm will do."""

    def settings(self) -> dict[str, Any]:
        """Everything that the radii depend on."""
        return dataclasses.asdict(self)

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        label: Tensor,
        *,
        threat: ThreatModel,
        indices: Sequence[int] | None = None,
    ) -> BoundResult:
        stages = relaxed_network(model, inputs)
        parameters = [p for module in modules_behind(model) for p in module.parameters()]
        unit = max(torch.finfo(tensor.dtype).eps / 2 for tensor in (inputs, *parameters))
        if unit > 2.0**-24:
            raise TypeError(_TOO_NARROW)
        with torch.no_grad():
            logits = checked_logits(model, inputs).double()
            radii, norms = [], None
            for x, y, z in zip(inputs.double().split(1), label, logits.split(1), strict=True):
                relaxation = Relaxation(
                    stages, x, threat, rows=self.rows, unit=unit, first_norms=norms
                )
                norms = relaxation.first_norms
                radii.append(_Sample(relaxation, int(y), z).radius(self.bisections, self.slopes))
                if self.split_seconds:
                    s = _Sample(relaxation, int(y), z)
                    from margin_ext.bounds.minimum_distance import MinimumDistance
                    with torch.enable_grad():
                        d = float(MinimumDistance()(model, x.to(inputs.dtype), y.view(1), threat=threat.without_range()).distance[0])
                    import margin_ext.bounds.branch_and_bound as bb
                    radii[-1] = bb.branch_and_bound(relaxation, s.spec, s.slack(None), certified=radii[-1], farthest=d, seconds=self.split_seconds)
        found = torch.tensor(radii, dtype=torch.float64)
        return BoundResult(found)


class _Sample:
    """The certified radius of one sample."""

    def __init__(self, relaxation: Relaxation, label: int, logits: Tensor) -> None:
        self.relaxation = relaxation
        x = relaxation.x
        self.own = relaxation.logits(x)
        # Rows e_label - e_k.
        classes = logits.shape[1]
        self.rivals = torch.tensor([k for k in range(classes) if k != label], device=x.device)
        self.spec = -torch.eye(classes, dtype=x.dtype, device=x.device)[self.rivals]
        self.spec[:, label] += 1
        self.label = label
        self.observed = _ROUNDINGS * float((self.own - logits).abs().max())

    def slack(self, ball: Ball) -> Tensor:
        return self.spec.new_full((len(self.spec),), self.observed)

    def radius(self, bisections: int, slopes: int) -> float:
        center = self.relaxation.ball(0.0)
        gaps = self.spec @ self.own[0] - self.slack(center)
        if not bool((gaps > 0).all()):
            return 0.0
        tangent = float((gaps / self._norms()).min())
        first = tangent if 0 < tangent < math.inf else 1.0
        def plain(eps):
            ball = self.relaxation.ball(eps)
            forms = self.relaxation.forms(self.spec, ball, self.relaxation.lines(ball))
            return float(forms.reach(self.slack(ball)).min())
        r = _fixed_point(plain, first, 2.0**-bisections)
        if slopes and r > 0:
            ball = self.relaxation.ball(r * 1.05)
            choice, reach = ascend(self.relaxation, self.spec, ball, usual_choice(self.relaxation, self.spec, ball), self.slack(ball), slopes)
            def tuned(eps):
                ball = self.relaxation.ball(eps)
                forms = self.relaxation.forms(self.spec, ball, self.relaxation.lines(ball, choice.positions))
                return float(forms.reach(self.slack(ball)).min())
            r = max(r, _fixed_point(tuned, r*1.05, 2.0**-bisections))
        return r

    def _norms(self) -> Tensor:
        x = self.relaxation.x
        points = x.repeat(len(self.spec), *[1] * (x.dim() - 1)).requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad((self.relaxation.logits(points) * self.spec).sum(), points)
        return self.relaxation.threat.dual_norm(grad)


def _fixed_point(reach, first, tolerance):
    low, high = 0.0, math.inf
    eps = first
    n=0
    a=b=None
    for i in range(60):
        r = reach(eps); n+=1
        if math.isnan(r): r = 0.0
        r = max(r,0.0)
        low = max(low, min(eps, r))
        if r >= eps:
            a=(eps,r-eps)
        else:
            b=(eps,r-eps); high=min(high,eps)
        high_=min(high, max(r,eps) if r>=eps else high)
        if r>=eps: high=min(high,r)
        if high <= low*(1+tolerance): break
        if b is None:
            if i >= 20: break
            eps=min(high,2*eps); continue
        if a is None:
            # r < eps : fixed point in [r, eps]
            eps = (r+eps)/2 if r>0 else eps/4
            if i>=40: break
            continue
        t=a[1]/(a[1]-b[1])
        eps=a[0]+t*(b[0]-a[0])
        w=high-low
        eps=min(max(eps,low+0.02*w),high-0.02*w)
    return low
