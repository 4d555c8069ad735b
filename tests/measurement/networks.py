"""Small networks with known answers."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn


def linear_model(classes: int = 5, dims: int = 12, seed: int = 0) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(dims, classes).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, dims, generator=generator))
        model.bias.copy_(torch.randn(classes, generator=generator))
    return model


def relu_network(sizes: tuple[int, ...], seed: int = 0) -> nn.Sequential:
    """Random MLP in float64, weights of a scale that keeps the activations alive."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(fan_in, fan_out).double()
        with torch.no_grad():
            layer.weight.copy_(torch.randn(fan_out, fan_in, generator=generator) / fan_in**0.5)
            layer.bias.copy_(torch.randn(fan_out, generator=generator) * 0.5)
        layers += [layer] if number == 0 else [nn.ReLU(), layer]
    return nn.Sequential(*layers)


def exact_margin(model: nn.Sequential, x: Tensor, label: int, p: float) -> float:
    """Distance from x [2] to the nearest point of the plane not classified as the label.

    Every activation pattern of a ReLU network of two inputs is a polygon on which the network is
    affine; the nearest point of {gap <= 0} in it is one of finitely many candidates.
    """
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    hidden = [layer.out_features for layer in linears[:-1]]
    classes = linears[-1].out_features
    best = math.inf
    for pattern in itertools.product((0.0, 1.0), repeat=sum(hidden)):
        bits = torch.tensor(pattern, dtype=torch.float64).split(hidden)
        weight, bias = linears[0].weight.detach(), linears[0].bias.detach()
        normals, offsets = [], []  # normal @ x + offset >= 0
        for layer, active in zip(linears[1:], bits, strict=True):
            sign = 2 * active - 1
            normals.append(sign.unsqueeze(1) * weight)
            offsets.append(sign * bias)
            weight, bias = active.unsqueeze(1) * weight, active * bias
            weight, bias = (
                layer.weight.detach() @ weight,
                layer.weight.detach() @ bias + layer.bias.detach(),
            )
        for other in range(classes):
            if other != label:
                normal = torch.cat([*normals, (weight[other] - weight[label]).unsqueeze(0)])
                offset = torch.cat([*offsets, (bias[other] - bias[label]).unsqueeze(0)])
                best = min(best, _nearest_in_polygon(normal, offset, x, p))
    return best


def _nearest_in_polygon(normal: Tensor, offset: Tensor, x: Tensor, p: float) -> float:
    candidates = [x.unsqueeze(0)]
    pairs = torch.combinations(torch.arange(len(offset)))
    matrices = normal[pairs]
    crossing = torch.linalg.det(matrices).abs() > 1e-9
    if bool(crossing.any()):
        right = -offset[pairs][crossing].unsqueeze(2)
        candidates.append(torch.linalg.solve(matrices[crossing], right).squeeze(2))
    # Nearest point of each line: along the normal (l2), or where both coordinates move as far.
    directions = (
        [normal]
        if p == 2
        else [torch.tensor([[1.0, s]], dtype=torch.float64).expand_as(normal) for s in (1.0, -1.0)]
    )
    for direction in directions:
        slope = (normal * direction).sum(dim=1)
        usable = slope.abs() > 1e-9
        step = -(normal @ x + offset)[usable] / slope[usable]
        candidates.append(x + step.unsqueeze(1) * direction[usable])
    points = torch.cat(candidates)
    inside = (points @ normal.T + offset >= -1e-9).all(dim=1)
    if not bool(inside.any()):
        return math.inf
    return float(torch.linalg.vector_norm(points[inside] - x, p, dim=1).min())


def sample_plane(model: nn.Module, count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Points of the plane and the classes that the model gives them."""
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, model(x).argmax(dim=1).detach()
