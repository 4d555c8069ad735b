"""Autocast, GradScaler and low-precision models."""

from __future__ import annotations

import pytest
import torch

from compatibility.networks import FIRST_ORDER_MODES, conv, criterion, images, relative, step
from margin_ext import AverageMarginLoss

# Of the whole gradient. Differences of 16-bit gaps need long steps: the default is one.
TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.02}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mode", FIRST_ORDER_MODES)
def test_autocast(mode, dtype):
    model, (x, y) = conv(), images()
    loss = AverageMarginLoss(gradient=mode, regularizer="softplus")
    wanted_value, wanted = step(loss, model, x, y)
    with torch.autocast("cpu", dtype):
        out = loss.run(model, x, y)
    assert out.logits.dtype == dtype
    assert out.loss.dtype == torch.float32
    model.zero_grad()
    out.loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert relative(out.loss.detach(), wanted_value) < TOLERANCE[dtype]
    assert relative(found, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("mode", FIRST_ORDER_MODES)
def test_grad_scaler_scales_all_of_the_gradient(mode):
    model, (x, y) = conv(), images()
    loss = criterion(mode)
    wanted = step(loss, model, x, y)[1]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler.scale(loss.run(model, x, y).loss).backward()
    scaler.unscale_(optimizer)
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert relative(found, wanted) < 1e-5


@pytest.mark.parametrize("mode", FIRST_ORDER_MODES)
def test_grad_scaler_skips_infinite_steps(mode):
    model, (x, y) = conv(), images()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [p.detach().clone() for p in model.parameters()]
    x[0, 0, 0, 0] = torch.inf
    scaler.scale(criterion(mode).run(model, x, y).loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**13
    for parameter, kept in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, kept)


@pytest.mark.parametrize("mode", FIRST_ORDER_MODES)
def test_a_model_in_bfloat16(mode):
    model, (x, y) = conv(), images()
    loss = AverageMarginLoss(gradient=mode, regularizer="softplus")
    wanted = step(loss, model, x, y)[1]
    found = step(loss, model.bfloat16(), x.bfloat16(), y)[1]
    assert found.dtype == torch.bfloat16
    assert relative(found.float(), wanted) < 0.15
