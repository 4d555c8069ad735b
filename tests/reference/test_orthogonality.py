"""The orthogonality penalty on matrices whose Gram matrix is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from margin_ext.reference import orthogonality_penalty


def test_matrices_by_hand():
    identity = torch.eye(3)
    assert float(orthogonality_penalty([identity])) == 0
    assert float(orthogonality_penalty([2 * identity])) == 27  # three times (4 - 1)^2
    assert float(orthogonality_penalty([identity, 2 * identity])) == 27
    assert float(orthogonality_penalty([torch.ones(1, 2)])) == 1  # (2 - 1)^2
    assert float(orthogonality_penalty([torch.ones(2, 1)])) == 1  # W^T W, the smaller one


def test_convolutions_count_as_matrices_and_biases_not():
    conv = nn.Conv2d(2, 3, 3)
    matrix = conv.weight.reshape(3, 18)
    expected = (matrix @ matrix.T - torch.eye(3)).square().sum()
    torch.testing.assert_close(orthogonality_penalty(conv), expected)
    model = nn.Sequential(conv, nn.BatchNorm2d(3))
    torch.testing.assert_close(orthogonality_penalty(model), expected)


def test_gradient_pulls_towards_orthogonality():
    weight = torch.diag(torch.tensor([2.0, 0.5])).requires_grad_()
    orthogonality_penalty([weight]).backward()
    assert weight.grad[0, 0] > 0 > weight.grad[1, 1]


def test_nothing_to_penalise():
    assert float(orthogonality_penalty(nn.ReLU())) == 0


def test_generator_of_weights():
    model = nn.Linear(3, 2)
    assert orthogonality_penalty(p for p in model.parameters()).item() == pytest.approx(
        orthogonality_penalty(model).item()
    )
