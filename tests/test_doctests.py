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


@pytest.mark.parametrize(
    "name",
    [
        "Additive",
        "AdversarialTraining",
        "Auto",
        "AverageMarginLoss",
        "BatchStatistics",
        "Detached",
        "Distance",
        "DoubleBackward",
        "FiniteDifference",
        "LossOptions",
        "Regularizer",
        "Secant",
        "average_margin_loss",
        "dual_direction",
        "first_order_margin",
        "linear_margin",
        "logit_gap",
        "orthogonality_penalty",
        "register_gradient_mode",
        "register_regularizer",
    ],
)
def test_public_names_have_an_example(name):
    assert ">>> " in (getattr(margin_ext, name).__doc__ or "")
