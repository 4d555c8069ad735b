"""Random numbers that depend on the sample's index alone, not on how samples are batched."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ball_noise", "sample_generator"]


def sample_generator(seed: int, stream: str, index: int, device: torch.device) -> torch.Generator:
    """Generator of one sample's random numbers for one purpose ("stream")."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))


def ball_noise(like: Tensor, p: float, *, seed: int, stream: str, indices: Sequence[int]) -> Tensor:
    """One point a sample, uniform in the unit l_p ball; the shape and type of like [B, ...]."""
    flat = like.new_empty(like.shape[0], like[0].numel())
    for row, index in zip(flat, indices, strict=True):
        generator = sample_generator(seed, stream, index, like.device)
        row.copy_(unit_ball(1, row.shape[0], p, generator)[0])
    return flat.reshape(like.shape)


def unit_ball(points: int, dims: int, p: float, generator: torch.Generator) -> Tensor:
    """Points drawn uniformly in the unit l_p ball of R^dims, float32 [points, dims].

    p = inf: uniform coordinates. Otherwise coordinates with density proportional to
    exp(-|t|^p), scaled to the unit sphere, times U^(1/dims): for p = 2 the authors' sampling.
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
