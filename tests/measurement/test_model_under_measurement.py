"""The model is measured in evaluation mode, however it is given, or refused in words."""

from __future__ import annotations

import functools
import math
import random
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from margin_ext import MarginMonitor, measure, robust_accuracy
from margin_ext.bounds import Certified, Sampled
from margin_ext.bounds.linear import is_linear
from margin_ext.models.evaluation_mode import evaluation_mode
from margin_ext.modules_behind import modules_behind
from margin_ext.reference import linear_margin
from margin_ext.threat import ThreatModel

DIMS, CLASSES, COUNT = 5, 3, 40

# Torch's own, when its compiler is imported.
COMPILES = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def normalised_linear() -> nn.Sequential:
    """BatchNorm and a linear layer in training mode, with running statistics of their own."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(DIMS), nn.Linear(DIMS, CLASSES)).double()
    norm = net[0]
    assert isinstance(norm, nn.BatchNorm1d)
    with torch.no_grad():
        norm.running_mean.copy_(torch.arange(float(DIMS)))  # type: ignore[union-attr]
        norm.running_var.fill_(4.0)  # type: ignore[union-attr]
    return net.train()


def labelled(net: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.randn(COUNT, DIMS, generator=torch.Generator().manual_seed(1)).double() * 2
    with evaluation_mode(net), torch.no_grad():
        return x, net(x).argmax(dim=1)


def exact_margins(net: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    norm, linear = net
    weight = linear.weight / torch.sqrt(norm.running_var + norm.eps)  # type: ignore[operator]
    bias = linear.bias - weight @ norm.running_mean  # type: ignore[operator]
    return linear_margin(weight.detach(), bias.detach(), x, y, p=2)  # type: ignore[arg-type]


class Holder:
    """An object that is called, and holds a module under other names."""

    __slots__ = ("inner",)

    def __init__(self, net: nn.Module) -> None:
        self.inner = {"nets": [net]}

    def __call__(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner["nets"][0](x)
        return z

    def predict(self, x: Tensor) -> Tensor:
        return self(x)


class Unregistered(nn.Module):
    """Keeps its layers where nn.Module does not see them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.layers = [net]

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layers[0](x)
        return z


GLOBAL: dict[str, nn.Module] = {}


def through_a_global(x: Tensor) -> Tensor:
    return helper(x)


def helper(x: Tensor) -> Tensor:
    z: Tensor = GLOBAL["net"](x)
    return z


def with_default(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor, *, used: nn.Module = net) -> Tensor:
        z: Tensor = used(x)
        return z

    return function


def around(net: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        return net(x)

    return function


def in_a_namespace(net: nn.Module) -> Callable[[Tensor], Tensor]:
    held = SimpleNamespace(net=net)

    def function(x: Tensor) -> Tensor:
        z: Tensor = held.net(x)
        return z

    return function


def decorated(net: nn.Module) -> Callable[[Tensor], Tensor]:
    @functools.cache
    def first(x: Tensor) -> Tensor:
        z: Tensor = net(x)
        return z

    @functools.wraps(first)
    def second(x: Tensor) -> Tensor:
        return first.__wrapped__(x)

    return second


WAYS: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "module": lambda net: net,
    "closure": around,
    "forward": lambda net: net.forward,
    "__call__": lambda net: net.__call__,
    "partial": lambda net: functools.partial(lambda n, x: n(x), net),
    "partial of forward": lambda net: functools.partial(net.forward),
    "object": Holder,
    "method": lambda net: Holder(net).predict,
    "unregistered": Unregistered,
    "namespace": in_a_namespace,
    "default": with_default,
    "decorated": decorated,
    "vmap": lambda net: torch.func.vmap(lambda v: net(v.unsqueeze(0))[0]),
    "data parallel": nn.DataParallel,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_in_training_mode_is_measured_in_evaluation_mode(way: str) -> None:
    net = normalised_linear()
    x, y = labelled(net)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    report = measure(WAYS[way](net), (x, y))
    torch.testing.assert_close(torch.from_numpy(report.margin), exact_margins(net, x, y))
    assert report.accuracy == 1.0
    assert robust_accuracy(WAYS[way](net), (x, y), 1e-4).accuracy == 1.0
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_modules_that_global_names_lead_to_are_found() -> None:
    net = normalised_linear()
    GLOBAL["net"] = net
    try:
        assert modules_behind(through_a_global) == [net]
        assert measure(through_a_global, labelled(net)).accuracy == 1.0
    finally:
        GLOBAL.clear()


def test_a_module_that_cannot_be_found_is_refused_before_it_runs() -> None:
    net = normalised_linear()
    data = labelled(net)
    before = net[0].running_mean.clone()  # type: ignore[union-attr, operator]
    nets = iter(lambda: net, None)  # an iterator tells nobody what it gives

    def hidden(x: Tensor) -> Tensor:
        z: Tensor = next(nets)(x)
        return z

    with pytest.raises(ValueError, match="runs a Sequential in training mode"):
        measure(hidden, data)
    assert torch.equal(net[0].running_mean, before)  # type: ignore[arg-type]
    net.eval()
    assert measure(hidden, data).accuracy == 1.0


def test_call_and_logits_fn() -> None:
    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = normalised_linear()

        def forward(self, *, values: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(values)}

    model = Output()
    data = labelled(model.net)
    options: dict[str, Any] = {
        "call": lambda net, x: net(values=x),
        "logits_fn": lambda output: output["logits"],
    }
    report = measure(model, data, **options)
    assert (report.margin == measure(model.net, data).margin).all()
    assert robust_accuracy(model, data, 1e-4, **options).accuracy == 1.0
    monitor = MarginMonitor(data, **options)
    assert monitor.epoch(model, 1)["data"].average_margin == report.average_margin
    with pytest.raises(TypeError, match="must return a tensor of logits"):
        measure(model, data, call=options["call"])
    with pytest.raises(TypeError, match="logits_fn must be callable"):
        measure(model, data, logits_fn="logits")  # type: ignore[arg-type]


class Noisy(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(DIMS, CLASSES).double()
        self.how = how
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        noise = {
            "dropout": lambda: nn.functional.dropout(x, 0.1) - x,
            "torch": lambda: 0.01 * torch.randn_like(x),
            "numpy": lambda: 0.01 * float(np.random.rand()),  # noqa: NPY002
            "python": lambda: 0.01 * random.random(),
            "state": lambda: 0.01 * self.calls,
        }[self.how]()
        z: Tensor = self.layer(x + noise)
        return z


@pytest.mark.parametrize("how", ["dropout", "torch", "numpy", "python", "state"])
def test_random_models_are_named(how: str) -> None:
    data = torch.rand(12, DIMS).double(), torch.zeros(12, dtype=torch.int64)
    for call in (measure, functools.partial(robust_accuracy, eps=0.1)):
        with pytest.raises(ValueError, match="other logits when it runs again"):
            call(Noisy(how), data)


class Dependent(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(DIMS, CLASSES).double()
        self.norm = nn.BatchNorm1d(DIMS, track_running_stats=False).double()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        h = {
            "batch norm": lambda: self.norm(x),
            "functional": lambda: nn.functional.batch_norm(x, None, None, training=True),
            "mean": lambda: x - x.mean(dim=0),
            "largest": lambda: x / x.abs().amax(),
            "attention": lambda: torch.softmax(x @ x.T, dim=1) @ x,
            "neighbour": lambda: x + 0.1 * x.roll(1, dims=0),
        }[self.how]()
        z: Tensor = self.layer(h)
        return z


@pytest.mark.parametrize("size", [1, 2, 20])
@pytest.mark.parametrize(
    "how", ["batch norm", "functional", "mean", "largest", "attention", "neighbour"]
)
def test_models_whose_samples_depend_on_each_other_are_named(how: str, size: int) -> None:
    torch.manual_seed(3)
    x, y = torch.randn(20, DIMS).double(), torch.arange(20) % CLASSES
    for call in (measure, functools.partial(robust_accuracy, eps=0.1)):
        with pytest.raises(ValueError, match=r"other samples are in its batch|fails on inputs"):
            call(Dependent(how), (x, y), batch_size=size)


@pytest.mark.parametrize("kind", [nn.Softmax(1), nn.Sigmoid()])
def test_probabilities_are_named(kind: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(DIMS, CLASSES), kind).double()
    x, y = torch.randn(20, DIMS).double(), torch.arange(20) % CLASSES
    with pytest.warns(UserWarning, match="seems to return probabilities"):
        measure(net, (x, y))
    with pytest.warns(UserWarning, match="seems to return probabilities"):
        robust_accuracy(net, (x, y), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(net, (x, y), logits_fn=torch.log)
        measure(nn.Sequential(net[0], nn.LogSoftmax(1)), (x, y))


@pytest.mark.parametrize("how", ["sub_", "data", "numpy", "index"])
def test_models_that_change_their_inputs_are_named(how: str) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(DIMS, CLASSES).double()

        def forward(self, x: Tensor) -> Tensor:
            if how == "sub_":
                x.sub_(0.5)
            elif how == "data":
                x.data.sub_(0.5)
            elif how == "numpy":
                x.detach().numpy()[:] -= 0.5
            else:
                x[:, 0] = 0.0
            z: Tensor = self.layer(x)
            return z

    x, y = torch.rand(10, DIMS).double(), torch.zeros(10, dtype=torch.int64)
    before = x.clone()
    for call in (measure, functools.partial(robust_accuracy, eps=0.1)):
        with pytest.raises(ValueError, match="changes its inputs in place"):
            call(InPlace(), (x, y))
    assert torch.equal(x, before)


def test_a_failing_model_is_told_in_one_line() -> None:
    x, y = torch.rand(4, DIMS + 1).double(), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"fails on inputs \[4, 6\] in torch.float64.*RuntimeErr"):
        measure(nn.Linear(DIMS, CLASSES).double(), (x, y))
    with pytest.raises(ValueError, match="KeyError"):
        measure(lambda v: {}["logits"], (x, y))


def hooked(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, inputs, output: 2 * output.abs())


def patched(layer: nn.Module) -> None:
    layer.forward = lambda x: x.abs()  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [hooked, patched])
@pytest.mark.parametrize("at", [0, 1, None])
def test_layers_that_do_more_are_neither_exact_nor_certified(
    change: Callable[[nn.Module], None], at: int | None
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(DIMS, CLASSES)).double()
    data = labelled(net)
    assert is_linear(net)
    change(net if at is None else net[at])
    assert not is_linear(net)
    if change is hooked:
        assert not measure(net, data).exact
    x, y = data
    with pytest.raises(TypeError, match=r"has hooks|is replaced"):
        Certified()(net, x, y, threat=ThreatModel())


def test_hooks_on_all_modules_and_patched_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(DIMS, CLASSES)).double()
    handle = register_module_forward_hook(lambda module, inputs, output: 2 * output)
    assert not is_linear(net)
    handle.remove()
    assert is_linear(net)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x[:, :CLASSES].abs())
    assert not is_linear(net)
    with pytest.raises(TypeError, match="forward of a Linear is replaced"):
        Certified()(net, torch.rand(1, DIMS), torch.tensor([0]), threat=ThreatModel())


@COMPILES
def test_wrappers_are_looked_through_for_exactness() -> None:
    net = nn.Sequential(nn.Linear(DIMS, CLASSES)).double()
    assert is_linear(torch.compile(net))
    assert is_linear(nn.DataParallel(net))


@COMPILES
def test_compiled_models_give_what_the_module_gives() -> None:
    net = nn.Sequential(nn.Linear(DIMS, 8), nn.GELU(), nn.Linear(8, CLASSES)).double()
    data = labelled(net)
    bounds = ["minimum_distance", Sampled(points=4)]
    right = measure(net, data, bounds=bounds)
    inside = nn.Sequential(torch.compile(net[0]), net[1], net[2])  # type: ignore[list-item]
    for model in (torch.compile(net), torch.compile(around(net)), inside):
        report = measure(model, data, bounds=bounds)  # type: ignore[arg-type]
        for name, column in right.columns().items():
            assert (report.columns()[name] == column).all()


@pytest.mark.parametrize("inside", [True, False])
def test_inference_tensors(inside: bool) -> None:
    net = normalised_linear()
    with torch.inference_mode():
        x, y = labelled(net)
        x, y = x.clone(), y.clone()
    assert x.is_inference()
    with torch.inference_mode(inside):
        report = measure(net, (x, y), bounds=["minimum_distance", Sampled(points=4)])
        assert robust_accuracy(net, (x, y), 1e-4).accuracy == report.accuracy == 1.0


def test_parameters_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    data = torch.rand(3, DIMS), torch.zeros(3, dtype=torch.int64)
    with torch.inference_mode():
        made = nn.Linear(DIMS, CLASSES)
    for model, message in (
        (made, "is an inference tensor"),
        (nn.LazyLinear(CLASSES), "has no values yet"),
        (nn.Linear(DIMS, CLASSES, device="meta"), "is on the meta device"),
    ):
        for file in (None, tmp_path / "partial.npz"):
            with pytest.raises(ValueError, match=f"the parameter weight of .* {message}"):
                measure(model, data, resume=file)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_changes_nothing(device: str) -> None:
    net = nn.Sequential(nn.Linear(DIMS, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    data = torch.randn(12, DIMS), torch.arange(12) % CLASSES
    bounds = ["minimum_distance", "certified", Sampled(points=4)]
    options: dict[str, Any] = {"data_range": (-9.0, 9.0), "input_std": [0.5] * DIMS}
    right = measure(net, data, bounds=bounds, **options)
    robust = robust_accuracy(net, data, [0.1, 0.5], **options)
    torch.set_default_device(device)
    try:
        report = measure(net, data, bounds=bounds, **options)
        again = robust_accuracy(net, data, [0.1, 0.5], **options)
    finally:
        torch.set_default_device(None)
    for name, column in right.columns().items():
        assert (report.columns()[name] == column).all(), name
    assert again.curve() == robust.curve()
    assert again.diagnosis == robust.diagnosis


def test_a_default_type_changes_nothing() -> None:
    net = nn.Sequential(nn.Linear(DIMS, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    data = torch.randn(12, DIMS), torch.arange(12) % CLASSES
    bounds = ["minimum_distance", "certified", Sampled(points=4)]
    right = measure(net, data, bounds=bounds, p=[2, "inf"])
    robust = robust_accuracy(net, data, [0.1, 0.5], data_range=(-9, 9))
    torch.set_default_dtype(torch.float64)
    try:
        report = measure(net, data, bounds=bounds, p=[2, "inf"])
        again = robust_accuracy(net, data, [0.1, 0.5], data_range=(-9, 9))
    finally:
        torch.set_default_dtype(torch.float32)
    for name, column in right.columns().items():
        assert (report.columns()[name] == column).all(), name
        assert report.columns()[name].dtype == column.dtype
    assert again.curve() == robust.curve()


@pytest.mark.parametrize("model", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.float16])
def test_data_and_model_of_other_types(model: torch.dtype, given: torch.dtype) -> None:
    net = nn.Linear(DIMS, CLASSES).to(model)
    x, y = torch.randn(12, DIMS).to(given), torch.arange(12) % CLASSES
    expected = linear_margin(net.weight.double(), net.bias.double(), x.double(), y, p=2).detach()
    report = measure(net, (x, y))
    torch.testing.assert_close(
        torch.from_numpy(report.margin).double(), expected, rtol=1e-3, atol=1e-5
    )
    robust_accuracy(net, (x, y), 0.1)


def test_a_half_precision_model_with_wider_data_is_told() -> None:
    x, y = torch.randn(4, DIMS), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"in torch.float32, of a model in torch.bfloat16"):
        measure(nn.Linear(DIMS, CLASSES).bfloat16(), (x, y))
    measure(nn.Linear(DIMS, CLASSES).bfloat16(), (x.bfloat16(), y))


def test_several_threads_measure_one_model() -> None:
    net = normalised_linear()
    x, y = labelled(net)
    expected = exact_margins(net, x, y)
    errors: list[float] = []
    start = threading.Barrier(4)

    def run() -> None:
        start.wait()
        for _ in range(5):
            found = torch.from_numpy(measure(net, (x, y), batch_size=7).margin)
            errors.append(float((found - expected).abs().max()))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 20
    assert max(errors) < 1e-9
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_distributed_model_runs_its_module_on_one_rank(tmp_path: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        net = normalised_linear()
        ddp = nn.parallel.DistributedDataParallel(net)
        x, y = labelled(net)
        own = ddp.forward
        calls: list[int] = []
        for model in (ddp, around(ddp), ddp.forward):
            ddp._pre_forward = lambda *args, **kwargs: calls.append(1)  # type: ignore[assignment]
            report = measure(model, (x, y))
            del ddp._pre_forward
            torch.testing.assert_close(torch.from_numpy(report.margin), exact_margins(net, x, y))
            assert not calls
            assert report.exact == (model is ddp or model == own)
        assert ddp.forward == own
    finally:
        torch.distributed.destroy_process_group()


def test_buffers_that_move_in_evaluation_mode_are_put_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(DIMS, CLASSES).double()
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("other", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.seen += x.shape[0]
            self.other = self.other + 1
            z: Tensor = self.layer(x)
            return z

    model = Counting()
    measure(model, (torch.rand(4, DIMS).double(), torch.zeros(4, dtype=torch.int64)))
    assert float(model.seen) == 0
    assert float(model.other) == 0


class Merging(nn.Module):
    """Adds a correction to its weight in evaluation mode, as low-rank adapters do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layer = nn.Linear(DIMS, CLASSES)
        self.correction = nn.Parameter(torch.randn(CLASSES, DIMS) / 3)
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged == mode:
            self.layer.weight.data += -self.correction if mode else self.correction
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        if not self.merged:
            raise RuntimeError("runs in evaluation mode only")
        z: Tensor = self.layer(x)
        return z


def test_modules_with_an_evaluation_mode_of_their_own() -> None:
    net = nn.Sequential(Merging()).train()
    x, y = torch.randn(12, DIMS), torch.arange(12) % CLASSES
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    weight = net[0].layer.weight + net[0].correction  # type: ignore[operator, union-attr]
    expected = linear_margin(weight.detach(), net[0].layer.bias.detach(), x, y, p=2)  # type: ignore[union-attr]
    report = measure(net, (x, y))
    torch.testing.assert_close(torch.from_numpy(report.margin), expected, rtol=1e-4, atol=1e-5)
    assert net.training
    assert net[0].training
    assert not net[0].merged
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_autocast_of_the_caller_is_off() -> None:
    net = nn.Sequential(nn.Linear(DIMS, 16), nn.GELU(), nn.Linear(16, CLASSES))
    data = torch.randn(12, DIMS), torch.arange(12) % CLASSES
    right = measure(net, data, bounds=["minimum_distance"])
    robust = robust_accuracy(net, data, [0.1, 0.5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = measure(net, data, bounds=["minimum_distance"])
        assert robust_accuracy(net, data, [0.1, 0.5]).curve() == robust.curve()
    for name, column in right.columns().items():
        assert (report.columns()[name] == column).all(), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_statistics_that_move_inside_an_exported_module_are_put_back() -> None:
    net = normalised_linear()
    x, y = labelled(net)
    before = net[0].running_mean.clone()  # type: ignore[union-attr, operator]
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(net, (x,), dynamic_shapes=shapes).module()
    with pytest.raises(ValueError, match="other samples are in its batch"):
        measure(exported, (x, y))
    assert torch.equal(net[0].running_mean, before)  # type: ignore[arg-type]
    exported = torch.export.export(net.eval(), (x,), dynamic_shapes=shapes).module()
    report = measure(exported, (x, y))
    torch.testing.assert_close(torch.from_numpy(report.margin), exact_margins(net, x, y))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_model_traced_in_training_mode_is_refused_and_left_as_it_was() -> None:
    net = normalised_linear()
    x, y = labelled(net)
    traced = torch.jit.trace(net, x, check_trace=False)
    before = {name: tensor.clone() for name, tensor in traced.state_dict().items()}
    with pytest.raises(ValueError, match="other samples are in its batch"):
        measure(traced, (x, y))
    for name, tensor in traced.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 7])
def test_half_precision_is_no_dependence_between_samples(dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64), nn.GELU()] * 6
    net = nn.Sequential(nn.Linear(DIMS, 64), *layers, nn.Linear(64, CLASSES)).to(dtype)
    x, y = torch.randn(14, DIMS).to(dtype), torch.arange(14) % CLASSES
    assert len(measure(net, (x, y), batch_size=size)) == 14


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_in_training_mode() -> None:
    net = normalised_linear()
    x, y = labelled(net)
    scripted = torch.jit.script(net)
    report = measure(scripted, (x, y))
    torch.testing.assert_close(torch.from_numpy(report.margin), exact_margins(net, x, y))
    assert scripted.training


def test_the_gradient_mode_of_the_caller_does_not_matter() -> None:
    net = normalised_linear()
    data = labelled(net)
    right = measure(net, data).average_margin
    with torch.no_grad():
        assert measure(net, data).average_margin == right
    assert math.isfinite(right)


def test_an_affine_model_in_training_mode_is_exact() -> None:
    net = nn.Sequential(nn.Dropout(0.5), *normalised_linear()).train()
    report = measure(net, labelled(net))
    assert report.exact
    assert not is_linear(net)
    assert is_linear(net.eval())
