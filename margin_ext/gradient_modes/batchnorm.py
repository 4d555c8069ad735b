"""BatchNorm in the passes beyond the first one: which statistics it uses, and that it keeps them.

In training it couples the samples of a batch, and every pass would move its running statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["BATCHNORM_POLICIES", "statistics_kept", "training_batchnorms"]

# batch: all passes normalise by the batch's own statistics, as the cross-entropy's does.
# running: the margin is that of the network as it will be used, with the running statistics.
BATCHNORM_POLICIES: Final = ("batch", "running")


def training_batchnorms(model: object) -> list[_BatchNorm]:
    """The layers that normalise by the statistics of the batch at hand."""
    if not isinstance(model, nn.Module):
        return []
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    ]


@contextmanager
def statistics_kept(model: object, policy: str) -> Iterator[None]:
    """Run the model without an update of running statistics.

    Under policy "running", layers that have such statistics also use them.
    """
    # Turning the tracking off gives the layer no statistics to update; writing old values back
    # would clash with autograd, which has saved the buffers.
    flag = "training" if policy == "running" else "track_running_stats"
    changed = [layer for layer in training_batchnorms(model) if layer.running_mean is not None]
    before = [getattr(layer, flag) for layer in changed]
    for layer in changed:
        setattr(layer, flag, False)
    try:
        yield
    finally:
        for layer, value in zip(changed, before, strict=True):
            setattr(layer, flag, value)
