"""torch.compile of the model and of a whole step, and torch.export of the ops."""

from __future__ import annotations

import copy
import zipfile

import pytest
import torch
from torch import nn
from torch._functorch import config

from compatibility.networks import (
    CLASSES,
    conv,
    criterion,
    images,
    mlp,
    relative,
    step,
    vectors,
)
from margin_ext import (
    AverageMarginLoss,
    Distance,
    FiniteDifference,
    Regularizer,
    functional,
    measure,
)

NO_DOUBLE_BACKWARD = "torch.compile with aot_autograd does not currently support double backward"

# Dynamo's own imports and torch's deprecations inside it are not ours.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_model():
    """BatchNorm's statistics, too, are kept in the second pass through the compiled graph."""
    model, (x, y) = conv(nn.BatchNorm2d(6)), images()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    for mode in ("detached", "finite_difference"):
        wanted = step(criterion(mode), model, x, y)
        found = step(criterion(mode), compiled, x, y)
        assert relative(found[0], wanted[0]) < 1e-6
        assert relative(found[1], wanted[1]) < 1e-5
        for one, other in zip(compiled.buffers(), model.buffers(), strict=True):
            torch.testing.assert_close(one, other)
    with pytest.raises(RuntimeError, match=NO_DOUBLE_BACKWARD):
        step(criterion("double_backward"), compiled, x, y)
    with pytest.warns(RuntimeWarning, match=NO_DOUBLE_BACKWARD):
        chosen = step(criterion("auto"), compiled, x, y)[1]
    assert relative(chosen, step(criterion("finite_difference"), model, x, y)[1]) < 1e-5


@pytest.mark.parametrize("mode", ["detached", "finite_difference"])
def test_a_second_batch_size(mode):
    """The graph for any batch size would give buffers away in the first of the two gradients."""
    model = nn.Sequential(nn.Linear(10, 16), nn.GELU(), *mlp()[2:])
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    with config.patch(donated_buffer=True):
        for size in (6, 4):
            x, y = vectors(size)
            found, wanted = (step(criterion(mode), m, x, y)[1] for m in (compiled, model))
            assert relative(found, wanted) < 1e-5
        torch._dynamo.reset()
        # The plain call does not run the model, and torch says what to set.
        compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")

        def plain_calls():
            for size in (6, 4):
                x, y = vectors(size)
                x.requires_grad_()
                criterion("detached")(compiled(x), y, x).backward()

        with pytest.raises(RuntimeError, match="donated_buffer=False"):
            plain_calls()


def gate(v):
    return v.tanh() * v.sigmoid()


class CallsCompiled(nn.Module):
    """Has no compiled module: its forward calls a function that is."""

    def __init__(self) -> None:
        super().__init__()
        layers = mlp()
        self.first, self.rest = layers[0], layers[2:]
        self.function = torch.compile(gate, backend="aot_eager")

    def forward(self, x):
        return self.rest(self.function(self.first(x)))


class CompiledMethod(CallsCompiled):
    def forward(self, x):
        return self.rest(self.gated(self.first(x)))

    @torch.compile(backend="aot_eager")
    def gated(self, x):
        return gate(x)


class InAList(CallsCompiled):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [torch.compile(nn.Tanh(), backend="aot_eager")]

    def forward(self, x):
        return self.rest(self.hidden[0](self.first(x)))


def own_compile():
    model = mlp()
    model[0].compile(backend="aot_eager")
    return model


def function_of_the_outputs():
    return {"logits_fn": torch.compile(gate, backend="aot_eager")}


def call_with_one():
    compiled = torch.compile(gate, backend="aot_eager")
    return {"call": lambda model, x: compiled(model(x))}


PARTS = {
    "function": (CallsCompiled, dict),
    "method": (CompiledMethod, dict),
    "module in a list": (InAList, dict),
    "module.compile()": (own_compile, dict),
    "logits_fn": (mlp, function_of_the_outputs),
    "call": (mlp, call_with_one),
}
MODES = [
    {"gradient": "detached"},
    {"gradient": "finite_difference"},
    {"gradient": FiniteDifference("central", 0.1, "absolute", deferred=False)},
    {"margin": "secant"},
    {"margin": Distance(form="envelope")},
    {"gradient": "finite_difference", "every": 2},
]


@pytest.mark.parametrize("settings", MODES, ids=str)
@pytest.mark.parametrize("name", PARTS)
def test_compiled_parts_of_an_eager_model_take_batches_of_several_sizes(name, settings):
    make, keywords = PARTS[name]
    model, given = make(), keywords()

    def gradients() -> list[torch.Tensor]:
        loss = AverageMarginLoss(regularizer="softplus", **settings)
        found = []
        for size in (6, 5, 4, 6, 5):
            torch.manual_seed(size)
            model.zero_grad()
            loss.run(model, *vectors(size), **given).loss.backward()
            found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        return found

    with config.patch(donated_buffer=True):
        found = gradients()
    with torch.compiler.set_stance("force_eager"):
        wanted = gradients()
    for one, other in zip(found, wanted, strict=True):
        assert relative(one, other) < 1e-4


def test_compiled_parts_can_be_measured():
    for make in (CallsCompiled, CompiledMethod, own_compile):
        model = make()
        with config.patch(donated_buffer=True):
            for size in (6, 5, 4):
                x, y = vectors(size)
                nn.functional.cross_entropy(model(x), y).backward()
            batches = [vectors(size) for size in (6, 5, 4)]
            found = measure(model, batches)
        with torch.compiler.set_stance("force_eager"):
            wanted = measure(model, batches)
        assert found.average_margin == pytest.approx(wanted.average_margin, rel=1e-5)


def test_a_compiled_step():
    """Without fullgraph the model's part is compiled; the rest of run() is eager."""
    model, (x, y) = mlp(), vectors()
    loss = criterion("finite_difference")

    def whole(x, y):
        out = loss.run(model, x, y)
        out.loss.backward()
        return out.loss

    wanted = step(loss, model, x, y)[1]
    torch.compile(whole, backend="aot_eager")(x, y)
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert relative(found, wanted) < 1e-5
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(whole, backend="aot_eager", fullgraph=True)(x, y)


def test_the_exact_mode_in_a_compiled_step_is_never_wrong_in_silence():
    """Torch 2.13 compiles double backward to wrong numbers; here it does not come to that."""
    model, (x, y) = mlp(), vectors()
    x.requires_grad_()
    loss = criterion("double_backward")

    def whole(x, y):
        return loss(model(x), y, x)

    with pytest.raises(RuntimeError, match=NO_DOUBLE_BACKWARD):
        torch.compile(whole, backend="aot_eager")(x, y).backward()
    torch._dynamo.reset()
    with (
        torch._dynamo.config.patch(trace_autograd_ops=True),
        pytest.raises(torch._dynamo.exc.Unsupported),
    ):
        torch.compile(whole, backend="aot_eager", fullgraph=True)(x, y)


def test_check_tells_that_a_compiled_model_lacks_double_backward():
    compiled = torch.compile(mlp(), backend="aot_eager")
    report = criterion("double_backward").check(compiled, *vectors())
    assert report.verdict == "wrong"
    assert NO_DOUBLE_BACKWARD in str(report)
    assert criterion("finite_difference").check(compiled, *vectors()).agrees


@pytest.mark.slow
def test_inductor_draws_the_same_dropout_mask_in_all_passes():
    """Its masks are its own; were they different in the two passes, 1 / step would blow up."""
    model = torch.compile(nn.Sequential(nn.Linear(10, 16), nn.Dropout(0.5), *mlp()[1:]))
    x, y = vectors()
    found = []
    for length in (0.02, 0.04):
        difference = FiniteDifference("central", length, "absolute")
        loss = AverageMarginLoss(gradient=difference, regularizer="softplus")
        found.append(step(loss, model, x, y)[1])
    assert relative(found[0], found[1]) < 1e-2


def test_ops_are_exported():
    class Gaps(nn.Module):
        def forward(self, logits, target, grad):
            gap, runner_up = functional.logit_gap(logits, target)
            margin, norm = functional.first_order_margin(gap, grad)
            return gap, runner_up, margin, norm, functional.dual_direction(grad, base=grad)

    logits, target, grad = torch.randn(4, CLASSES), torch.arange(4), torch.randn(4, 6)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {name: {0: batch} for name in ("logits", "target", "grad")}
    with torch.no_grad():
        program = torch.export.export(Gaps(), (logits, target, grad), dynamic_shapes=shapes)
    logits, target, grad = torch.randn(7, CLASSES), torch.arange(7) % CLASSES, torch.randn(7, 6)
    for found, wanted in zip(
        program.module()(logits, target, grad), Gaps()(logits, target, grad), strict=True
    ):
        torch.testing.assert_close(found, wanted)


class AllOps(nn.Module):
    def __init__(self, p) -> None:
        super().__init__()
        self.p = p

    def forward(self, logits, target, grad):
        loss = functional.average_margin_loss(
            logits, target, grad, p=self.p, regularizer=Regularizer.ramp(0.0, 1.0)
        )
        margin = functional.first_order_margin(loss.gap, grad, p=self.p)
        return loss.loss, margin.margin, functional.dual_direction(grad, p=self.p)


def exported(p):
    given = torch.randn(4, CLASSES), torch.arange(4), torch.randn(4, 6)
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        return torch.export.export(AllOps(p), given, dynamic_shapes=({0: batch},) * 3)


@pytest.mark.parametrize("p", [1, 2, 3, "inf"])
def test_exported_ops_are_stored_as_json_that_others_read(p, tmp_path):
    """JSON has no infinity, which is the dual exponent of p = 1."""
    torch.export.save(exported(p), tmp_path / "ops.pt2")
    with zipfile.ZipFile(tmp_path / "ops.pt2") as archive:
        texts = [archive.read(n).decode() for n in archive.namelist() if n.endswith(".json")]
    assert texts
    assert not any("Infinity" in text or "NaN" in text for text in texts)
    program = torch.export.load(tmp_path / "ops.pt2").module()
    given = torch.randn(7, CLASSES), torch.arange(7) % CLASSES, torch.randn(7, 6)
    for found, wanted in zip(program(*given), AllOps(p)(*given), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("p", [1, "inf"])
def test_ops_are_compiled_ahead_of_time(p, tmp_path):
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            exported(p), package_path=str(tmp_path / "ops.pt2")
        )
        program = torch._inductor.aoti_load_package(path)
    for size in (4, 9):
        given = torch.randn(size, CLASSES), torch.arange(size) % CLASSES, torch.randn(size, 6)
        for found, wanted in zip(program(*given), AllOps(p)(*given), strict=True):
            torch.testing.assert_close(found, wanted)
