"""Networks, their checkpoints, and the state in which they are measured."""

from __future__ import annotations

from margin_ext.models.named_model import model_names, named_model, register_model

__all__ = ["model_names", "named_model", "register_model"]
