"""Dense labels: gaps of positions, the gap of a sample, and the loss that is made of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from margin_ext import Regularizer, functional, reference
from margin_ext.reference.labels import as_rows

BACKENDS = (reference, functional)
PHI = Regularizer.softplus(2.0)


def dense(*shape: int, dtype: torch.dtype = torch.float64):
    batch, classes, *spatial = shape
    return torch.randn(*shape).to(dtype), torch.randint(classes, (batch, *spatial))


@pytest.mark.parametrize("ops", BACKENDS)
@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 3, 2, 3), (2, 2, 1, 1, 2), (0, 4, 3), (2, 3, 0)])
def test_gaps_of_positions_are_those_of_rows(ops, shape):
    logits, target = dense(*shape)
    if target.numel() > 1:
        target.view(-1)[1] = -100
    found = ops.logit_gap(logits, target)
    rows = reference.logit_gap(*as_rows(logits, target))
    assert found.gap.shape == found.runner_up.shape == target.shape
    torch.testing.assert_close(found.gap.reshape(-1), rows.gap, equal_nan=True)
    assert torch.equal(found.runner_up.reshape(-1), rows.runner_up)
    again = ops.logit_gap(logits, target, nearest=found.runner_up)
    torch.testing.assert_close(again.gap, found.gap, equal_nan=True)


@pytest.mark.parametrize("ops", BACKENDS)
def test_means_leave_out_what_is_ignored(ops):
    logits, target = dense(4, 3, 2, 2)
    target[0, 0] = target[1] = -100
    gaps = ops.logit_gap(logits, target).gap
    found = ops.sample_gap(logits, target)
    expected = [gaps[0, 1].mean(), torch.tensor(math.nan), gaps[2].mean(), gaps[3].mean()]
    torch.testing.assert_close(found.gap, torch.stack(expected).double(), equal_nan=True)
    weight = torch.tensor([1.0, 0.5, 3.0])
    found = ops.sample_gap(logits, target, weight=weight)
    w = weight.double()[target[2]]
    torch.testing.assert_close(found.gap[2], (w * gaps[2]).sum() / w.sum())
    # Where all weights are 0 the sample still has a gap; its loss is 0.
    found = ops.sample_gap(logits, torch.zeros_like(target), weight=torch.tensor([0.0, 1, 1]))
    zero = ops.logit_gap(logits, torch.zeros_like(target)).gap.flatten(1).mean(1)
    torch.testing.assert_close(found.gap, zero)


@pytest.mark.parametrize("ops", BACKENDS)
def test_the_worst_position(ops):
    logits, target = dense(4, 3, 5)
    target[0, 2] = target[1] = -100
    gaps = ops.logit_gap(logits, target).gap
    found = ops.sample_gap(logits, target, aggregation="worst")
    expected = gaps.nan_to_num(math.inf).amin(1)
    torch.testing.assert_close(
        found.gap, torch.where(expected.isinf(), math.nan, expected), equal_nan=True
    )
    assert found.fraction.sum(1).tolist() == [1, 0, 1, 1]
    # Ties: the first position.
    logits = torch.tensor([[[2.0, 1, 1], [0, 0, 0]]])
    found = ops.sample_gap(logits, torch.zeros(1, 3, dtype=torch.int64), aggregation="worst")
    assert found.fraction.tolist() == [[0, 1, 0]]
    with pytest.raises(ValueError, match="aggregation must be one of mean, worst, got 'first'"):
        ops.sample_gap(logits, torch.zeros(1, 3, dtype=torch.int64), aggregation="first")


@pytest.mark.parametrize("ops", BACKENDS)
def test_the_worst_of_infinite_gaps_is_infinite(ops):
    """Where all other classes are masked, an ignored position is no smaller."""
    logits = torch.zeros(3, 2, 4)
    logits[:, 1] = -math.inf
    target = torch.tensor([[-100, 0, 0, -100], [-100, -100, -100, -100], [-100, 0, 0, -100]])
    logits[2, 1, 2] = 3.0
    found = ops.sample_gap(logits, target, aggregation="worst")
    torch.testing.assert_close(found.gap, torch.tensor([math.inf, math.nan, -3]), equal_nan=True)
    assert found.fraction.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]


def labels(soft: bool, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if not soft:
        return target
    return torch.softmax(torch.randn_like(logits, dtype=torch.float32), 1)


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "probabilities"])
@pytest.mark.parametrize("aggregation", ["mean", "worst"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_functional_layer_is_the_reference(soft, aggregation, dtype):
    logits, target = dense(3, 4, 2, 3, dtype=dtype)
    target[0, 0] = target[1] = -100
    label = labels(soft, logits, target)
    grad = torch.randn(3, 2, 5).to(dtype)
    weight = torch.tensor([1.0, 0.5, 2.0, 1.5])
    results = []
    for ops in BACKENDS:
        z, g = logits.clone().requires_grad_(), grad.clone().requires_grad_()
        settings = {"regularizer": PHI, "weight": weight, "label_smoothing": 0.1, "p": 3}
        out = ops.average_margin_loss(z, label, g, aggregation=aggregation, **settings)
        out.loss.backward()
        plain = ops.average_margin_loss(logits, label, aggregation=aggregation, **settings)
        results.append([*out[:4], out.statistics.values_tensor, z.grad, g.grad, *plain[:3]])
    for found, wanted in zip(results[1], results[0], strict=True):
        rounding = {"rtol": 1e-2, "atol": 1e-3} if dtype.itemsize == 2 else {}
        torch.testing.assert_close(found, wanted, equal_nan=True, **rounding)


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "probabilities"])
@pytest.mark.parametrize("aggregation", ["mean", "worst"])
def test_the_seed_is_the_gradient_of_the_gaps(soft, aggregation):
    logits, target = dense(3, 4, 2, 3)
    target[0, 0] = target[1] = -100
    label = labels(soft, logits, target)
    weight = torch.tensor([1.0, 0.5, 2.0, 1.5])
    logits.requires_grad_()
    for ops in BACKENDS:
        found = ops.sample_gap(logits, label, weight=weight, aggregation=aggregation)
        (grad,) = torch.autograd.grad(found.gap.nansum(), logits)
        seed = functional.sample_gap_cotangent(logits, label, found, 4.0)
        torch.testing.assert_close(seed / 4, grad)
        fixed = ops.sample_gap(logits, label, fixed=found)
        torch.testing.assert_close(fixed.gap, found.gap, equal_nan=True)


@pytest.mark.parametrize("ops", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_by_hand(ops, reduction, smoothing):
    logits, target = dense(3, 4, 2, 3)
    target[0, 0] = target[1] = -100
    grad = torch.randn(3, 7, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.5, 2.0, 1.5]).double()
    settings = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    out = ops.average_margin_loss(logits, target, grad, regularizer=PHI, mu=0.7, **settings)
    known = target != -100
    w = torch.where(known, weight[target.clamp_min(0)], 0.0)
    gaps = reference.logit_gap(logits, target).gap.nan_to_num(0.0)
    margin = (w * gaps).flatten(1).sum(1) / w.flatten(1).sum(1) / grad.norm(dim=1)
    torch.testing.assert_close(out.margin, margin, equal_nan=True)
    phi = 2 * torch.nn.functional.softplus(-margin.nan_to_num(0.0) / 2)
    term = 0.7 * w * phi[:, None, None]
    ce = cross_entropy(logits, target, **settings)
    expected = ce + (term if reduction == "none" else term.sum())
    if reduction == "mean":
        expected = ce + term.sum() / w.sum()
    torch.testing.assert_close(out.loss, expected)
    statistics = out.statistics.as_floats()
    assert statistics["count"] == 2
    assert statistics["minimum_margin"] == pytest.approx(float(margin[[0, 2]].min()))
    assert statistics["accuracy"] == pytest.approx(
        float((logits.argmax(1) == target)[known].double().mean())
    )


@pytest.mark.parametrize("ops", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_soft_labels_follow_torchs_cross_entropy(ops, reduction):
    for shape in ((6, 4), (3, 4, 5)):
        logits, _ = dense(*shape)
        q = torch.softmax(torch.randn_like(logits), 1)
        weight = torch.tensor([1.0, 0.5, 2.0, 1.5]).double()
        settings = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction}
        out = ops.average_margin_loss(logits, q, regularizer=PHI, mu=0.0, **settings)
        torch.testing.assert_close(out.loss, cross_entropy(logits, q, **settings))
        # The regularizer's weight is that of the expected class, and the mean divides alike.
        one = ops.average_margin_loss(logits, q, regularizer=Regularizer.linear(), **settings)
        w = (q.movedim(1, -1) * weight).sum(-1)
        term = -w * one.gap
        wanted = {"mean": term.mean(), "sum": term.sum(), "none": term}[reduction]
        torch.testing.assert_close(one.loss - out.loss, wanted)
        assert out.statistics.accuracy == (logits.argmax(1) == q.argmax(1)).double().mean()


@pytest.mark.parametrize("ops", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("with_grad", [True, False])
def test_one_position_is_a_plain_label(ops, reduction, with_grad):
    logits, target = dense(8, 4)
    target[3] = -100
    grad = torch.randn(8, 6, dtype=torch.float64) if with_grad else None
    settings = {
        "regularizer": PHI,
        "weight": torch.tensor([1.0, 0.5, 2.0, 0.0]),
        "label_smoothing": 0.1,
        "reduction": reduction,
    }
    wanted = ops.average_margin_loss(logits, target, grad, **settings)
    for spatial in ((1,), (1, 1)):
        positions = ("mean", "worst")
        z, y = logits.reshape(8, 4, *spatial), target.reshape(8, *spatial)
        for name in positions:
            found = ops.average_margin_loss(z, y, grad, aggregation=name, **settings)
            torch.testing.assert_close(found.loss.reshape(wanted.loss.shape), wanted.loss)
            for one, other in ((found.gap, wanted.gap), (found.margin, wanted.margin)):
                assert torch.equal(one.reshape(8).nan_to_num(9), other.nan_to_num(9))
            values = found.statistics.values_tensor[:-1], wanted.statistics.values_tensor[:-1]
            torch.testing.assert_close(*values, equal_nan=True)
    if reduction != "mean":  # which divides by the weights of classes, not of probabilities
        known = target != -100
        y = one_hot(target[known], 4).double()
        g = None if grad is None else grad[known]
        found = ops.average_margin_loss(logits[known], y, g, **settings)
        wanted = ops.average_margin_loss(logits[known], target[known], g, **settings)
        torch.testing.assert_close(found.loss, wanted.loss)
        assert torch.equal(found.margin, wanted.margin)


@pytest.mark.parametrize("ops", BACKENDS)
def test_bad_labels_are_told(ops):
    logits = torch.randn(4, 5, 8, 8)
    y = torch.zeros(4, 8, 8, dtype=torch.int64)
    bad = y.clone()
    bad[2:, :, 3:] = 7

    def refused(error, message, z, target, **settings):
        with pytest.raises(error, match=message):
            ops.average_margin_loss(z, target, regularizer=PHI, **settings)

    refused(
        ValueError,
        r"target must be \[B, d1, ...\] = \[4, 8, 8\] \(logits are \[4, 5, 8, 8\]\), got \[4, 8\]",
        logits,
        y[..., 0],
    )
    refused(
        ValueError,
        r"target must be \[B, C, d1, ...\] = \[4, 5, 8, 8\] .* got \[4, 8, 8\]",
        logits,
        y.float(),
    )
    refused(ValueError, r"target must be \[B, C\] = \[4, 5\]", logits[..., 0, 0], torch.rand(4, 4))
    refused(TypeError, "int64 class indices or .* probabilities, got torch.int32", logits, y.int())
    refused(
        ValueError,
        r"target must lie in 0..4 .* got 7 at index \[2, 0, 3\]",
        logits,
        bad,
    )
    with pytest.raises(ValueError, match=r"got 7 at index \[2, 0, 3\]"):
        ops.logit_gap(logits, bad)
    with pytest.raises(ValueError, match=r"got 7 at index \[2, 0, 3\]"):
        ops.sample_gap(logits, bad)
    refused(
        ValueError,
        r"target must be \[B, d1, ...\] = \[4, 8, 8\] \(logits are \[4, 5, 8, 8\]\), got \[4\]",
        logits,
        y[:, 0, 0],
    )
    refused(
        ValueError, "target must be on the device of logits, cpu, got meta", logits, y.to("meta")
    )
    elsewhere = torch.ones(5, device="meta")
    refused(ValueError, "class_weight must be on the device of", logits, y, weight=elsewhere)
    elsewhere = torch.ones(4, 2, device="meta")
    refused(ValueError, "grad must be on the device of logits", logits, y, grad=elsewhere)
    refused(ValueError, r"class_weight must be \[5\], got \[4\]", logits, y, weight=torch.ones(4))
    soft = torch.softmax(logits, 1)
    twice = soft.clone()
    twice[2:, :, :, 3:] *= 2
    refused(
        ValueError,
        r"must hold probabilities.* got the sum 2 and .* at index \[2, 0, 3\]",
        logits,
        twice,
    )
    refused(ValueError, r"at index 2\.", logits[..., 0, 3], twice[..., 0, 3])
    refused(ValueError, "must not require grad", logits, soft.requires_grad_())
    refused(ValueError, "nearest goes with class labels", logits, y, nearest=y)
    with pytest.raises(ValueError, match="nearest must have the shape of target"):
        ops.logit_gap(logits, y, nearest=y[0])
    with pytest.raises(ValueError, match="nearest does not go with a target of probabilities"):
        ops.logit_gap(logits, soft.detach(), nearest=y)
