"""Models that change their inputs in place, which a second pass would do once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from margin_ext.checks import values_readable

__all__ = ["changes_refused"]

_OUT_OF_PLACE = (
    "compute a new tensor, such as x = (x - mean) / std outside of no_grad, nn.ReLU() without "
    "inplace=True, or pass inputs that are normalised already"
)


@contextmanager
def changes_refused(inputs: Tensor, *, further_passes: bool) -> Iterator[None]:
    """Run the model's first pass, and refuse a model that changed the inputs meanwhile.

    Where no further pass is made, the change does no harm: the margin is that of the new values.

    Raises:
        RuntimeError: The inputs were changed, or the model tried to.
    """
    watched = further_passes and not torch.compiler.is_compiling() and not inputs.is_inference()
    version = inputs._version if watched else 0
    before = _ends(inputs) if watched else None
    try:
        yield
    except RuntimeError as error:
        if "leaf Variable that requires grad is being used in an in-place operation" in str(error):
            raise RuntimeError(
                "the model changes its inputs in place, and inputs whose margins are taken require "
                f"grad: {_OUT_OF_PLACE}"
            ) from error
        raise
    if not watched:
        return
    now = _ends(inputs)
    # A write through .data or NumPy leaves no mark in the version.
    silent = before is not None and now is not None and not torch.equal(before, now)
    if inputs._version != version or silent:
        raise RuntimeError(
            "the model changed its inputs in place, and the further passes of this mode would do "
            f"it once more: {_OUT_OF_PLACE}"
        )


def _ends(inputs: Tensor) -> Tensor | None:
    """The first and the last sample, where they can be looked at at no cost."""
    if not values_readable(inputs) or not inputs.numel():
        return None
    return inputs.detach()[:: max(inputs.shape[0] - 1, 1)].nan_to_num(0.0).clone()
