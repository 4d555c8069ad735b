"""Importing a library that an extra brings."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["required"]


def required(module: str, extra: str) -> ModuleType:
    """Import a module of another library.

    Raises:
        ImportError: It is missing; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this part of margin_ext needs {module.partition('.')[0]}, which cannot be imported "
            f"({error}): pip install 'margin_ext[{extra}]'"
        ) from error
