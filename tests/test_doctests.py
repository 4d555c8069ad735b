"""The examples in docstrings run, and the public functions and classes have one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import margin_ext

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(margin_ext.__path__, "margin_ext.")
    if not module.name.endswith("__main__")
)

# Modules whose examples use a package that is optional.
NEEDS = {
    f"margin_ext.integrations.{package}": package
    for package in ("foolbox", "lightning", "torchmetrics", "transformers")
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if (error.name or "margin_ext").startswith("margin_ext"):
            raise
        pytest.skip(f"needs {error.name}")
    found = doctest.testmod(
        module,
        # As if a user had written them.
        extraglobs={"torch": torch, "__name__": "__main__"},
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
    )
    assert found.failed == 0


_PUBLIC = [name for name in margin_ext.__all__ if callable(getattr(margin_ext, name))]


@pytest.mark.parametrize("name", _PUBLIC)
def test_public_names_have_an_example(name):
    assert ">>> " in (getattr(margin_ext, name).__doc__ or "")
