"""Random numbers that depend on the sample's index alone, not on how samples are batched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from margin_ext.per_sample import per_sample

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Draws", "ball_noise", "sample_generator", "sphere_noise", "unit_ball"]


@dataclass(frozen=True)
class Draws:
    """The random numbers of some samples for one purpose.

    Attributes:
        seed: Seed of the whole run.
        stream: Names the purpose; other purposes get other numbers.
        indices: The samples' indices in the whole data [B]: a sample's numbers depend on its index
            and not on its batch.

    Example:
        >>> whole, second = Draws(0, "start", [0, 1]), Draws(0, "start", [1])
        >>> like = torch.empty(2, 3)
        >>> torch.equal(ball_noise(like, 2.0, whole)[1:], ball_noise(like[1:], 2.0, second))
        True
    """

    seed: int
    stream: str
    indices: Sequence[int]

    def generators(self, device: torch.device) -> list[torch.Generator]:
        """One for each sample."""
        return [sample_generator(self.seed, self.stream, index, device) for index in self.indices]


def sample_generator(seed: int, stream: str, index: int, device: torch.device) -> torch.Generator:
    """Generator of one sample's random numbers for one purpose ("stream").

    Example:
        >>> one = sample_generator(0, "start", 7, torch.device("cpu"))
        >>> again = sample_generator(0, "start", 7, torch.device("cpu"))
        >>> torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=again))
        True
    """
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))


def ball_noise(like: Tensor, p: float, draws: Draws) -> Tensor:
    """One point a sample, uniform in the unit l_p ball; the shape and type of like [B, ...].

    Example:
        >>> noise = ball_noise(torch.empty(2, 3, 4), 2.0, Draws(0, "start", [0, 1]))
        >>> noise.shape, bool((noise.flatten(1).norm(dim=1) <= 1).all())
        (torch.Size([2, 3, 4]), True)
    """
    flat = like.new_empty(like.shape[0], like[0].numel())
    for row, generator in zip(flat, draws.generators(like.device), strict=True):
        row.copy_(unit_ball(1, row.shape[0], p, generator)[0])
    return flat.reshape(like.shape)


def sphere_noise(like: Tensor, p: float, draws: Draws) -> Tensor:
    """One point a sample on the unit l_p sphere (p = inf: a corner of the cube), as ball_noise.

    Example:
        >>> noise = sphere_noise(torch.empty(1, 5), torch.inf, Draws(0, "start", [0]))
        >>> noise.abs()
        tensor([[1., 1., 1., 1., 1.]])
    """
    noise = ball_noise(like, p, draws)
    if p == torch.inf:
        return noise.sign()
    size = torch.linalg.vector_norm(noise.flatten(1), p, dim=1)
    return noise / per_sample(size, noise)


def unit_ball(points: int, dims: int, p: float, generator: torch.Generator) -> Tensor:
    """Points drawn uniformly in the unit l_p ball of R^dims, float32 [points, dims].

    p = inf: uniform coordinates. Otherwise coordinates with density proportional to
    exp(-|t|^p), scaled to the unit sphere, times U^(1/dims): for p = 2 the authors' sampling.

    Example:
        >>> points = unit_ball(100, 3, 1.0, torch.Generator().manual_seed(0))
        >>> points.shape, bool((points.abs().sum(dim=1) <= 1 + 1e-6).all())
        (torch.Size([100, 3]), True)
    """
    # Whatever torch's default type is.
    kind: dict[str, Any] = {"device": generator.device, "dtype": torch.float32}
    if p == torch.inf:
        return torch.rand(points, dims, generator=generator, **kind).mul_(2).sub_(1)
    if p == 2:
        x = torch.randn(points, dims, generator=generator, **kind)
    elif p == 1:
        u = torch.rand(points, dims, generator=generator, **kind).mul_(2).sub_(1)
        # torch.rand draws an exact 0 now and then, whose logarithm would be infinite.
        x = u.sign() * -torch.log1p(-u.abs().clamp_max(1 - 2**-24))
    else:
        # |t|^p has the Gamma(1 / p) distribution.
        shape = torch.full((points, dims), 1 / p, **kind)
        magnitude = torch._standard_gamma(shape, generator=generator).pow_(1 / p)
        x = magnitude * (torch.rand(points, dims, generator=generator, **kind) - 0.5).sign()
    radius = torch.rand(points, 1, generator=generator, **kind).pow_(1 / dims)
    return x.mul_(radius / torch.linalg.vector_norm(x, p, dim=1, keepdim=True))
