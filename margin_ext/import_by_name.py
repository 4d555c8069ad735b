"""Objects that a command line names as ``module:callable``."""

from __future__ import annotations

import importlib
import inspect
import operator
import sys
from pathlib import Path
from typing import Any

__all__ = ["call_with_known", "import_by_name"]


def import_by_name(name: str) -> Any:
    """The object that "module:attribute" names. Modules of the working folder count, after others.

    Raises:
        ValueError: The name has another form, or there is no such thing.

    >>> import_by_name("math:sqrt")(4.0)
    2.0
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"expected module:callable, got {name!r}")
    folder = str(Path.cwd())
    if folder not in sys.path:
        # At the end: a file of the working folder must not hide an installed package.
        sys.path.append(folder)
    try:
        found: Any = importlib.import_module(module_name)
    # Whatever the module's own code raises.
    except Exception as error:
        reason = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"cannot import {module_name}: {reason}") from error
    try:
        return operator.attrgetter(attribute)(found)
    except AttributeError:
        place = getattr(found, "__file__", None)
        raise ValueError(
            f"{module_name} has no {attribute}" + (f" ({place})" if place else "")
        ) from None


def call_with_known(function: Any, **offered: Any) -> Any:
    """Call a function with those of the offered arguments for which it has parameters."""
    try:
        known = inspect.signature(function).parameters
    except ValueError:  # builtins have none
        return function()
    return function(**{name: value for name, value in offered.items() if name in known})
