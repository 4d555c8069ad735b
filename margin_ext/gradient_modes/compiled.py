"""What torch.compile asks of a step that goes through the graph of one pass twice."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["kept_for_two_gradients"]


@contextmanager
def kept_for_two_gradients() -> Iterator[None]:
    """Run a model with compiled parts, and take its input gradient, for a second one to follow.

    The graph that is compiled for any batch size otherwise gives its buffers away in its backward,
    and refuses to keep them for another one. Compiled parts may be anywhere: a function that a
    layer calls is not seen from outside.

    Raises:
        RuntimeError: A part was compiled before, by a call outside of this package.
    """
    # Nothing is compiled before the compiler is loaded.
    if torch.compiler.is_compiling() or "torch._dynamo" not in sys.modules:
        yield
        return
    from torch._functorch import config

    with config.patch(donated_buffer=False):
        try:
            yield
        except RuntimeError as error:
            if "donated buffers" not in str(error):
                raise
            raise RuntimeError(
                "a compiled part of the model was compiled, for this batch size, outside of "
                "criterion.run, as a graph that gives its buffers away in its first backward; a "
                "step takes two gradients. Set torch._functorch.config.donated_buffer = False "
                "before the model runs for the first time, or call torch.compiler.reset() before "
                "the training with margins begins"
            ) from error
