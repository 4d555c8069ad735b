"""What torch.compile asks of a step that goes through the graph of one pass twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["kept_for_two_gradients"]


@contextmanager
def kept_for_two_gradients(model: object) -> Iterator[None]:
    """Run a compiled model, and take its input gradient, so that a second gradient can follow.

    The graph that is compiled for any batch size otherwise gives its buffers away in its backward,
    and refuses to keep them for another one.
    """
    if torch.compiler.is_compiling() or not _has_compiled_parts(model):
        yield
        return
    from torch._functorch import config

    with config.patch(donated_buffer=False):
        yield


def _has_compiled_parts(model: object) -> bool:
    # torch.compile(module), module.compile(), torch.compile(function); told by their marks, since
    # the classes would import the compiler.
    if not isinstance(model, nn.Module):
        return hasattr(model, "_torchdynamo_orig_callable")
    return any(
        hasattr(part, "_orig_mod") or part._compiled_call_impl is not None
        for part in model.modules()
    )
