"""Layers that make trouble for second derivatives: mode by feature, works or raises this."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend
from torch.nn.utils import parametrizations

from compatibility.networks import (
    CLASSES,
    FIRST_ORDER_MODES,
    Attention,
    MultiheadAttention,
    Recurrent,
    conv,
    criterion,
    images,
    mlp,
    relative,
    sequences,
    step,
    vectors,
)

TWICE = {
    "lstm": (lambda: Recurrent(nn.LSTM), sequences),
    "gru": (lambda: Recurrent(nn.GRU), sequences),
    "attention, math": (lambda: Attention(SDPBackend.MATH), sequences),
    "multihead attention with weights": (lambda: MultiheadAttention(True), sequences),
    "layer norm": (lambda: conv(nn.LayerNorm(6)), images),
    "group norm": (lambda: conv(nn.GroupNorm(2, 6)), images),
    "instance norm": (lambda: conv(nn.InstanceNorm2d(6)), images),
    "batch norm": (lambda: conv(nn.BatchNorm2d(6)), images),
    "batch norm, no running statistics": (
        lambda: conv(nn.BatchNorm2d(6, track_running_stats=False)),
        images,
    ),
    "dropout": (lambda: conv(nn.Dropout(0.4)), images),
    "dropout2d": (lambda: conv(nn.Dropout2d(0.4)), images),
    "weight norm": (lambda: nn.Sequential(weight_normed(), *mlp()[1:]), vectors),
    "spectral norm": (lambda: nn.Sequential(spectral_normed(), *mlp()[1:]), vectors),
    "spectral norm, older interface": (
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(10, 16)), *mlp()[1:]),
        vectors,
    ),
}


def weight_normed() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(10, 16))


def spectral_normed() -> nn.Module:
    return parametrizations.spectral_norm(nn.Linear(10, 16))


@pytest.mark.parametrize("name", TWICE)
def test_all_modes_agree_on_smooth_layers(name):
    make, data = TWICE[name]
    model, (x, y) = make(), data()
    frozen = copy.deepcopy(model).double()
    wanted_loss, wanted = step(criterion("double_backward"), frozen, x.double(), y)
    without = step(criterion("detached"), copy.deepcopy(model).double(), x.double(), y)[1]
    for mode in ("double_backward", "finite_difference", "auto"):
        twin = copy.deepcopy(model).double()
        loss, found = step(criterion(mode), twin, x.double(), y)
        assert relative(loss, wanted_loss) < 1e-9
        assert float((found - wanted).norm() / (wanted - without).norm()) < 1e-2, mode


ONCE = {
    "attention, flash": (
        lambda: Attention(SDPBackend.FLASH_ATTENTION),
        r"derivative for aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "attention, chosen by torch": (
        Attention,
        r"derivative for aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "multihead attention without weights": (
        lambda: MultiheadAttention(False),
        r"derivative for aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "transformer layer": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True),
            nn.Flatten(),
            nn.Linear(40, CLASSES),
        ),
        r"derivative for aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "hardsigmoid": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(40, 8), nn.Hardsigmoid(), nn.Linear(8, 4)),
        r"derivative for aten::hardsigmoid_backward",
    ),
}


@pytest.mark.parametrize("name", ONCE)
def test_layers_without_a_second_derivative(name):
    """double_backward raises in torch's words; the others serve, and auto finds its way."""
    make, error = ONCE[name]
    model, (x, y) = make(), sequences()
    with pytest.raises(RuntimeError, match=error):
        step(criterion("double_backward"), model, x, y)
    loss, found = step(criterion("finite_difference"), model, x, y)
    assert relative(step(criterion("detached"), model, x, y)[0], loss) < 1e-6
    with pytest.warns(RuntimeWarning, match="goes on with finite_difference"):
        chosen = step(criterion("auto"), model, x, y)[1]
    assert relative(chosen, found) < 1e-5


def test_flash_attention_by_differences_is_the_gradient_of_plain_attention():
    flash, (x, y) = Attention(SDPBackend.FLASH_ATTENTION).double(), sequences()
    plain = Attention(SDPBackend.MATH).double()
    plain.load_state_dict(flash.state_dict())
    wanted = step(criterion("double_backward"), plain, x.double(), y)[1]
    found = step(criterion("finite_difference"), flash, x.double(), y)[1]
    assert relative(found, wanted) < 1e-4


@pytest.mark.parametrize("backend", [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION])
def test_backends_that_the_cpu_lacks_raise_as_ever(backend):
    x, y = sequences()
    with pytest.raises(RuntimeError, match="No viable backend"):
        criterion("finite_difference").run(Attention(backend), x, y)


@pytest.mark.parametrize("mode", FIRST_ORDER_MODES)
def test_frozen_layers(mode):
    model, (x, y) = mlp(), vectors()
    whole = step(criterion(mode), model, x, y)[1]
    model[0].requires_grad_(False)
    found = step(criterion(mode), model, x, y)[1]
    assert model[0].weight.grad is None
    torch.testing.assert_close(found, whole[-found.numel() :])


@pytest.mark.parametrize("mode", FIRST_ORDER_MODES)
def test_channels_last(mode):
    model, (x, y) = conv(), images()
    wanted = step(criterion(mode), model, x, y)[1]
    model = model.to(memory_format=torch.channels_last)
    found = step(criterion(mode), model, x.to(memory_format=torch.channels_last), y)[1]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", FIRST_ORDER_MODES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(mode, reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = mlp(), nn.Linear(CLASSES, CLASSES)

        def forward(self, x):
            made = torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=reentrant)
            return self.head(made)

    model, (x, y) = Checkpointed(), vectors()
    if reentrant:
        with pytest.raises(RuntimeError, match="use_reentrant=True"):
            step(criterion(mode), model, x, y)
        return
    plain = nn.Sequential(model.body, model.head)
    wanted = step(criterion(mode), plain, x, y)[1]
    assert relative(step(criterion(mode), model, x, y)[1], wanted) < 1e-5
