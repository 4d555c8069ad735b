"""The model is measured in evaluation mode, however it is given."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from margin_ext import MarginMonitor, measure, robust_accuracy
from margin_ext.bounds import Sampled
from margin_ext.modules_behind import modules_behind
from margin_ext.reference import linear_margin
from measurement.training_mode import (
    CLASSES,
    COMPILES,
    DIMS,
    exact_margins,
    labelled,
    normalised_linear,
)


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
def test_scripted_models_in_training_mode() -> None:
    net = normalised_linear()
    x, y = labelled(net)
    scripted = torch.jit.script(net)
    report = measure(scripted, (x, y))
    torch.testing.assert_close(torch.from_numpy(report.margin), exact_margins(net, x, y))
    assert scripted.training
