"""Inputs and targets of other kinds: taken, or refused by name with what to do."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from margin_ext import AverageMarginLoss, FiniteDifference

F = nn.functional
MODES = [
    {},
    {"gradient": "detached"},
    {"gradient": "auto"},
    {"gradient": "finite_difference"},
    {"gradient": FiniteDifference(deferred=False)},
    {"margin": "secant"},
    {"margin": "distance"},
    {"margin": "additive"},
    {"fraction": 0.5},
    {"every": 2},
    {"batchnorm": "running"},
]


class Any(nn.Module):
    """Takes whatever it is given: what is wrong has to be seen before."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.scale * torch.arange(24.0).reshape(8, 3)


IDS = torch.randint(9, (8, 5))


def parts() -> list[torch.Tensor]:
    return [torch.randn(n + 1) for n in range(8)]


# Made in the test: tests that look at all tensors that are alive cannot look at some of these.
INPUTS = {
    "token ids": (lambda: IDS, r"torch\.int64: token ids have no distances.*inputs_embeds=x"),
    "int32": (IDS.int, r"torch\.int32: token ids"),
    "uint8": (IDS.byte, r"torch\.uint8: pass images as inputs\.float\(\) / 255"),
    "bool": (lambda: IDS > 3, r"torch\.bool: pass inputs\.float\(\)"),
    "complex": (lambda: torch.randn(8, 5) + 0j, r"real, got torch\.complex64.*view_as_real"),
    "sparse": (lambda: torch.randn(8, 5).to_sparse(), r"dense.*torch\.sparse_coo.*to_dense\(\)"),
    "csr": (lambda: torch.randn(8, 5).to_sparse_csr(), r"dense.*torch\.sparse_csr.*to_dense\(\)"),
    "mkldnn": (lambda: torch.randn(8, 5).to_mkldnn(), r"dense.*torch\._mkldnn"),
    "nested": (lambda: torch.nested.nested_tensor(parts()), r"dense.*nested one: pad it"),
    "jagged": (
        lambda: torch.nested.nested_tensor(parts(), layout=torch.jagged),
        r"dense.*nested one: pad it",
    ),
    "float8": (
        lambda: torch.randn(8, 5).to(torch.float8_e4m3fn),
        r"float8_e4m3fn: pass inputs\.float",
    ),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.randn(8, 5), 0.1, 0, torch.quint8),
        r"quint8: pass inputs\.float",
    ),
    "numpy": (lambda: np.zeros((8, 5), np.float32), r"one tensor \[B, \.\.\.\], got ndarray"),
    "dictionary": (lambda: {"x": torch.randn(8, 5)}, r"got dict.*call=lambda model, x"),
    "one number a sample": (lambda: torch.randn(8), r"got \[8\]: pass inputs\.unsqueeze\(-1\)"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("settings", MODES, ids=str)
def test_inputs_that_cannot_be_moved_are_refused_by_name(name, settings):
    make, words = INPUTS[name]
    inputs = make()
    criterion = AverageMarginLoss(**settings)
    for _ in range(2):  # with every=2 also where it is not the turn of margins
        with pytest.raises((TypeError, ValueError), match=f"^inputs must be.*{words}"):
            criterion.run(Any(), inputs, torch.arange(8) % 3)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", INPUTS)
def test_the_plain_call_refuses_them_too(name):
    make, words = INPUTS[name]
    inputs = make()
    with pytest.raises((TypeError, ValueError), match=f"^inputs must be.*{words}"):
        AverageMarginLoss()(Any()(None), torch.arange(8) % 3, inputs)


def test_logit_gaps_need_no_inputs_to_move():
    AverageMarginLoss(margin="logit_gap").run(Any(), IDS, torch.arange(8) % 3).loss.backward()


@pytest.mark.parametrize("settings", MODES, ids=str)
def test_the_way_out_for_token_ids(settings):
    """Embeddings as inputs; their gradient reaches the table."""
    table, rest = nn.Embedding(9, 4), nn.Sequential(nn.Flatten(), nn.Linear(20, 3))
    AverageMarginLoss(**settings).run(rest, table(IDS), torch.arange(8) % 3).loss.backward()
    assert float(table.weight.grad.norm()) > 0


def test_a_batch_that_does_not_come_first_is_refused():
    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0][-1])

    x, y = torch.randn(7, 8, 4), torch.arange(8) % 3
    with pytest.raises(ValueError, match=r"inputs must be.*transpose\(0, 1\)"):
        AverageMarginLoss().run(SequenceFirst(), x, y)
    call = lambda model, x: model(x.transpose(0, 1))  # noqa: E731
    AverageMarginLoss().run(SequenceFirst(), x.transpose(0, 1), y, call=call).loss.backward()


Y = torch.arange(8) % 3
MANY_HOT = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).repeat(4, 1)
SEVERAL = r"several labels a sample pass logits\.unsqueeze\(1\)"
TARGETS = {
    "numpy": (Y.numpy(), r"a tensor, got numpy\.ndarray: pass torch\.as_tensor"),
    "list": (Y.tolist(), r"a tensor, got builtins\.list"),
    "int32": (Y.int(), r"int64 class indices, got torch\.int32: pass target\.long\(\)"),
    "uint8": (Y.byte(), r"got torch\.uint8: pass target\.long\(\)"),
    "bool": (Y > 0, r"got torch\.bool: pass target\.long\(\)"),
    "several labels, int64": (MANY_HOT.long(), SEVERAL),
    "several labels, bool": (MANY_HOT.bool(), SEVERAL),
    "several labels, float": (MANY_HOT, SEVERAL),
    "one-hot int64": (F.one_hot(Y, 3), r"one-hot labels pass target\.argmax\(1\)"),
    "regression": (torch.randn(8), r"regression target has no classes"),
    "regression column": (torch.randn(8, 1), r"regression target has no classes"),
    "regression on all outputs": (torch.randn(8, 3), r"regression needs another loss"),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("settings", [*MODES, {"margin": "logit_gap"}], ids=str)
def test_targets_without_classes_are_refused_by_name(name, settings):
    target, words = TARGETS[name]
    with pytest.raises(
        (TypeError, ValueError), match=f"^target must be .*{words}|^target must hold .*{words}"
    ):
        AverageMarginLoss(**settings).run(nn.Linear(6, 3), torch.randn(8, 6), target)
    if not settings:
        x = torch.randn(8, 6, requires_grad=True)
        with pytest.raises(
            (TypeError, ValueError), match=f"^target must be .*{words}|^target must hold .*{words}"
        ):
            AverageMarginLoss()(nn.Linear(6, 3)(x), target, x)


@pytest.mark.parametrize("target", [torch.randn(8), torch.randn(8, 1)], ids=["row", "column"])
def test_regression_with_one_output_is_refused(target):
    with pytest.raises(ValueError, match=r"probabilities.*regression needs another loss"):
        AverageMarginLoss().run(nn.Linear(6, 1), torch.randn(8, 6), target)


@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
@pytest.mark.parametrize("settings", [*MODES[:6], {"margin": "logit_gap"}], ids=str)
def test_the_way_out_for_several_labels(kind, settings):
    """Each label as a position with one logit: the cross-entropy is the binary one."""
    net, x, y = nn.Linear(6, 3).double(), torch.randn(8, 6).double(), MANY_HOT.to(kind)
    y = y.double() if kind.is_floating_point else y
    out = AverageMarginLoss(mu=0.0, **settings).run(net, x, y, logits_fn=lambda z: z.unsqueeze(1))
    wanted = F.binary_cross_entropy_with_logits(net(x), MANY_HOT.double())
    torch.testing.assert_close(out.loss, wanted)
    AverageMarginLoss(**settings).run(net, x, y, logits_fn=lambda z: z.unsqueeze(1)).loss.backward()
    assert bool(net.weight.grad.isfinite().all())


def binary() -> tuple[nn.Sequential, nn.Sequential]:
    """A network with one logit z, and one with the logits 0 and z."""
    one = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1)).double()
    two = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2)).double()
    two[0].load_state_dict(one[0].state_dict())
    with torch.no_grad():
        for ours, theirs in zip(two[2].parameters(), one[2].parameters(), strict=True):
            ours.zero_()
            ours[1:] = theirs
    return one, two


FORMS = {
    "classes": lambda y: y,
    "column of classes": lambda y: y[:, None],
    "float": lambda y: y.double(),
    "float column": lambda y: y.double()[:, None],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize(
    "settings", [*MODES[:6], {"margin": "logit_gap"}, {"reduction": "none"}], ids=str
)
def test_one_logit_is_two_classes(form, squeezed, settings):
    one, two = binary()
    x, y = torch.randn(8, 6).double(), torch.arange(8) % 2
    model = nn.Sequential(one, nn.Flatten(0)) if squeezed else one
    criterion = AverageMarginLoss(regularizer="softplus", **settings)
    out, wanted = criterion.run(model, x, FORMS[form](y)), criterion.run(two, x, y)
    torch.testing.assert_close(out.loss, wanted.loss)
    torch.testing.assert_close(out.margin, wanted.margin)
    torch.testing.assert_close(out.statistics["accuracy"], wanted.statistics["accuracy"])
    assert out.logits.shape == ((8,) if squeezed else (8, 1))
    out.loss.sum().backward()
    wanted.loss.sum().backward()
    torch.testing.assert_close(one[0].weight.grad, two[0].weight.grad)
    torch.testing.assert_close(one[2].weight.grad, two[2].weight.grad[1:])


def test_one_logit_in_the_plain_call_and_in_check():
    one, two = binary()
    x, y = torch.randn(8, 6).double().requires_grad_(), torch.arange(8) % 2
    criterion = AverageMarginLoss(regularizer="softplus")
    torch.testing.assert_close(criterion(one(x), y, x), criterion(two(x), y, x))
    assert criterion.check(one, x.detach(), y.double()).agrees


def test_one_logit_at_every_position():
    net = nn.Conv2d(2, 1, 3, padding=1).double()
    x, y = torch.randn(4, 2, 5, 5).double(), torch.randint(2, (4, 5, 5))
    for target in (y, y[:, None], y.double(), y.double()[:, None]):
        out = AverageMarginLoss(mu=0.0).run(net, x, target)
        wanted = F.binary_cross_entropy_with_logits(net(x)[:, 0], y.double())
        torch.testing.assert_close(out.loss, wanted)


def test_a_label_beyond_two_classes_is_named():
    with pytest.raises(ValueError, match=r"target must lie in 0\.\.1.*got 2"):
        AverageMarginLoss().run(nn.Linear(6, 1), torch.randn(8, 6), Y)


ModelOutput = namedtuple("ModelOutput", ["logits"])


@pytest.mark.parametrize("wrap", [ModelOutput, lambda z: (z, z), lambda z: {"logits": z}])
@pytest.mark.parametrize("settings", [{}, {"margin": "logit_gap"}], ids=str)
def test_outputs_that_are_no_logits_are_refused_by_name(wrap, settings):
    x = torch.randn(8, 6, requires_grad=True)
    net, criterion = nn.Linear(6, 3), AverageMarginLoss(**settings)
    with pytest.raises(TypeError, match=r"not the logits.*output\.logits"):
        criterion(wrap(net(x)), Y, x)
    with pytest.raises(TypeError, match=r"not the logits: pass logits_fn="):
        criterion.run(lambda x: wrap(net(x)), x, Y)


@pytest.mark.parametrize("tau", [-1, 0, float("nan"), float("inf")])
def test_a_bad_tau_is_named(tau):
    with pytest.raises(ValueError, match=r"^tau(=-?\d does not fit regularizer='ramp'| must be)"):
        AverageMarginLoss(tau=tau)
