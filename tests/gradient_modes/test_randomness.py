"""Random numbers that are not torch's: the same in all passes of a step, or an error."""

from __future__ import annotations

import itertools
import random
import re
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from gradient_modes.networks import CLASSES
from margin_ext import AverageMarginLoss, Distance, FiniteDifference

SHORT = FiniteDifference("central", 0.01, "absolute")
DISTANCE = Distance(form="envelope")
NUMPY = np.random.default_rng(3)
PYTHON = random.Random(4)
SHORT_IN_RUN = FiniteDifference("central", 0.01, "absolute", deferred=False)


class Drawing(nn.Module):
    """Multiplies by what a function draws, once for each of its layers."""

    def __init__(self, draw) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head, self.draw = nn.Linear(6, CLASSES), draw

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).tanh() if self.draw() < 0.5 else 2 * x
        return self.head(x)


class NamesOne(Drawing):
    def __init__(self) -> None:
        super().__init__(lambda: 0.1)

    def forward(self, x):
        return super().forward(x) * float(NUMPY.random() + 0.5)


class HoldsThem(Drawing):
    def __init__(self) -> None:
        super().__init__(None)
        self.generators = {"numpy": np.random.default_rng(5), "torch": [torch.Generator()]}
        self.legacy = np.random.RandomState(6)
        self.draw = self.legacy.rand

    def forward(self, x):
        noise = torch.rand(x.shape, generator=self.generators["torch"][0], dtype=x.dtype)
        return super().forward(x + noise) * float(self.generators["numpy"].random() + 0.5)


def data():
    return torch.randn(8, 6).double(), torch.randint(CLASSES, (8,))


def states(model):
    """What puts all generators back to where they are now."""
    kept = [NUMPY.bit_generator.state, PYTHON.getstate(), random.getstate()]
    legacy, own = np.random.get_state(), []  # noqa: NPY002
    if isinstance(model, HoldsThem):
        held = model.generators
        own = [
            held["numpy"].bit_generator.state,
            held["torch"][0].get_state(),
            model.legacy.get_state(),
        ]

    def restore():
        NUMPY.bit_generator.state, _, _ = kept
        PYTHON.setstate(kept[1])
        random.setstate(kept[2])
        np.random.set_state(legacy)  # noqa: NPY002
        torch.manual_seed(0)
        if own:
            held["numpy"].bit_generator.state = own[0]
            held["torch"][0].set_state(own[1])
            model.legacy.set_state(own[2])

    return restore


def gradients(model, x, y, **settings):
    model.zero_grad()
    AverageMarginLoss(regularizer="softplus", **settings).run(model, x, y).loss.backward()
    zero = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([g.flatten() for g in zero])


def steps(count, *given, **settings):
    for _ in range(count):
        gradients(*given, **settings)


MODELS = {
    "torch": lambda: Drawing(lambda: float(torch.rand(()))),
    "random": lambda: Drawing(random.random),
    "random.choice": lambda: Drawing(lambda: random.choice([0.1, 0.9])),
    "numpy": lambda: Drawing(np.random.rand),
    "numpy permutation": lambda: Drawing(lambda: np.random.permutation(2)[0]),  # noqa: NPY002
    "random.Random": lambda: Drawing(PYTHON.random),
    "generator that forward names": NamesOne,
    "generators that layers hold": HoldsThem,
}


@pytest.mark.parametrize("mode", [SHORT, SHORT_IN_RUN], ids=["deferred", "in run"])
@pytest.mark.parametrize("name", MODELS)
def test_all_passes_draw_the_same_numbers(name, mode):
    model, (x, y) = MODELS[name]().double(), data()
    restore = states(model)
    for _ in range(3):  # each other numbers
        restore()
        wanted = gradients(model, x, y)
        restore()
        found = gradients(model, x, y, gradient=mode)
        assert (found - wanted).norm() < 1e-3 * wanted.norm()
        restore = states(model)


def test_afterwards_the_generators_stand_where_one_pass_leaves_them():
    model, (x, y) = MODELS["random"]().double(), data()
    random.seed(0)
    with torch.no_grad():
        model(x)
    wanted = random.getstate()
    for settings in ({}, {"gradient": SHORT}, {"margin": "secant"}, {"margin": DISTANCE}):
        random.seed(0)
        gradients(model, x, y, **settings)
        assert random.getstate() == wanted


@pytest.mark.parametrize(
    "settings", [{"gradient": SHORT}, {"margin": "secant"}, {"margin": DISTANCE}], ids=str
)
@pytest.mark.parametrize(
    "draw",
    [
        lambda: int.from_bytes(random.SystemRandom().randbytes(1), "big") / 255,
        lambda: (time.perf_counter_ns() // 100 % 1000) / 1000,
        itertools.cycle([0.1, 0.9, 0.9]).__next__,
    ],
    ids=["the system's", "the time", "a counter"],
)
def test_what_cannot_be_replayed_is_refused(draw, settings):
    model, (x, y) = Drawing(draw).double(), data()
    with pytest.raises(RuntimeError, match="other logits when it runs again on the same inputs"):
        steps(12, model, x, y, **settings)
    gradients(model, x, y)  # one pass is enough


def test_a_rare_difference_is_found_in_a_later_step():
    calls = itertools.count()
    model, (x, y) = Drawing(lambda: 0.1 if next(calls) > 100 and next(calls) % 3 else 0.9), data()
    with pytest.raises(RuntimeError, match="other logits when it runs again"):
        steps(120, model.double(), x, y, gradient=SHORT)


class Noting(nn.Dropout):
    def __init__(self) -> None:
        super().__init__(0.5)
        self.masks = []

    def forward(self, x):
        time.sleep(0.001)  # others may draw now
        mask = super().forward(torch.ones_like(x))
        self.masks.append(mask)
        return x * mask


def test_a_thread_that_draws_meanwhile_is_an_error_or_changes_nothing():
    layer = Noting()
    model, (x, y) = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, CLASSES)).double(), data()
    stop, refused = threading.Event(), 0

    def draw():
        while not stop.is_set():
            torch.rand(3)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(10):
            layer.masks.clear()
            try:
                gradients(model, x, y, gradient=SHORT)
            except RuntimeError as error:
                if not re.search("drew other random numbers|runs again", str(error)):
                    raise
                refused += 1
            else:
                assert all(torch.equal(mask, layer.masks[-1]) for mask in layer.masks[-3:])
    finally:
        stop.set()
        thread.join()
    assert refused > 0


def test_a_thread_that_draws_does_not_matter_to_a_model_that_does_not():
    model, (x, y) = (
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double(),
        data(),
    )
    wanted = gradients(model, x, y, gradient=SHORT)
    stop = threading.Event()

    def draw():
        while not stop.is_set():
            torch.rand(3)
            random.random()

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(5):
            assert torch.equal(gradients(model, x, y, gradient=SHORT), wanted)
    finally:
        stop.set()
        thread.join()
