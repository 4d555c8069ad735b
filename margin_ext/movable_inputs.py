"""Which inputs have margins: dense real tensors, a row a sample, that can be moved a little."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from margin_ext.checks import FLOAT_TYPES, shape_text

__all__ = ["require_movable", "require_same_batch"]


def require_movable(inputs: Any) -> Tensor:
    """Require inputs [B, ...]: a dense tensor of a real floating type.

    Raises:
        TypeError: They are something else; the message says what to do.
        ValueError: They have no dimension beyond the batch.
    """
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"inputs must be one tensor [B, ...], got {type(inputs).__name__}: give the tensor "
            "that margins are measured in, and the rest by call=lambda model, x: model(x, rest)"
        )
    given: Tensor = inputs
    if inputs.is_nested or inputs.layout == torch.jagged:
        raise TypeError(
            "inputs must be a dense tensor [B, ...], got a nested one: pad it, "
            "inputs.to_padded_tensor(0.0), and give the model a mask by call="
        )
    if inputs.layout != torch.strided:
        raise TypeError(
            f"inputs must be a dense tensor [B, ...], got one of layout {inputs.layout}: pass "
            "inputs.to_dense(), and let call= make it sparse again where the model needs that"
        )
    if inputs.is_complex():
        raise TypeError(
            f"inputs must be real, got {inputs.dtype}: pass torch.view_as_real(inputs), with "
            "call=lambda model, x: model(torch.view_as_complex(x))"
        )
    if inputs.dtype not in FLOAT_TYPES:
        raise TypeError(
            "inputs must be float16, bfloat16, float32 or float64, so that they can be moved, got "
            f"{inputs.dtype}: {_advice(inputs)}"
        )
    if inputs.dim() < 2:
        raise ValueError(
            f"inputs must be [B, ...] with at least one dimension beyond the batch, got "
            f"{shape_text(inputs)}: pass inputs.unsqueeze(-1)"
        )
    return given


def _advice(inputs: Tensor) -> str:
    if inputs.dtype == torch.uint8:
        return "pass images as inputs.float() / 255"
    if inputs.dtype == torch.bool or inputs.is_floating_point() or inputs.is_quantized:
        return "pass inputs.float()"
    return (
        "token ids have no distances, so pass their embeddings as inputs, embedding(ids), with "
        "call=lambda model, x: model(inputs_embeds=x) or the layers behind the embedding as the "
        'model (other whole numbers: inputs.float()); margin="logit_gap" needs no inputs to move'
    )


def require_same_batch(inputs: Tensor, logits: Tensor) -> None:
    """Require a row of inputs [B, ...] for each row of logits.

    Raises:
        ValueError: The numbers differ.
    """
    if inputs.dim() < 2 or inputs.shape[0] != logits.shape[0]:
        raise ValueError(
            f"inputs must be [B, ...] with B = {logits.shape[0]} as in logits "
            f"{shape_text(logits)}, got {shape_text(inputs)}"
            + (
                ": the batch comes first, call=lambda model, x: model(x.transpose(0, 1))"
                if inputs.dim() > 2 and inputs.shape[1] == logits.shape[0]
                else ""
            )
        )
