"""Names, settings and refusals of the regularizers. Formulas: reference/test_regularize.py."""

from __future__ import annotations

import math
import pickle

import pytest

from margin_ext.norms import dual_exponent
from margin_ext.regularizers import Regularizer, regularizer_names, resolve_regularizer


@pytest.mark.parametrize(
    ("name", "kind", "lo", "hi"),
    [
        ("ramp", "ramp", 0, 3),
        ("negative_ramp", "ramp", -3, 0),
        ("hinge", "hinge", 0, 3),
        ("linear", "linear", 0, 1),
        ("softplus", "softplus", 0, 3),
        ("exponential", "exponential", 0, 3),
    ],
)
def test_presets(name, kind, lo, hi):
    assert resolve_regularizer(name, 3) == Regularizer(kind, lo, hi)
    assert name in regularizer_names()


def test_codes_are_those_of_the_kernels():
    kinds = ["ramp", "hinge", "linear", "softplus", "exponential"]
    assert [resolve_regularizer(kind, 1).code for kind in kinds] == [0, 1, 2, 3, 4]


def test_a_regularizer_is_taken_as_it_is_and_pickles():
    phi = Regularizer.ramp(-1, 2)
    assert resolve_regularizer(phi, 99) is phi
    assert pickle.loads(pickle.dumps(phi)) == phi


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resolve_regularizer("lamp", 1), "must be a Regularizer or one of .* got 'lamp'"),
        (lambda: resolve_regularizer(None, 1), "must be a Regularizer or one of .* got None"),
        (lambda: resolve_regularizer([], 1), "must be a Regularizer or one of"),
        (lambda: Regularizer("lamp", 0, 1), "kind must be one of .* got 'lamp'"),
        (lambda: Regularizer.ramp(1, 1), "lo < hi, got lo=1.0, hi=1.0"),
        (lambda: resolve_regularizer("ramp", -1), "lo < hi, got lo=0.0, hi=-1.0"),
        (lambda: Regularizer.ramp(0, math.inf), "must be finite"),
        (lambda: Regularizer.hinge(math.nan), "must be finite"),
        (lambda: Regularizer.softplus(0), "softplus needs tau > 0, got 0.0"),
        (lambda: Regularizer.exponential(-1), "exponential needs tau > 0, got -1.0"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("p", "q"), [(1, math.inf), (2, 2), ("inf", 1), (math.inf, 1), (1.5, 3), (3, 1.5), ("2", 2)]
)
def test_dual_exponent(p, q):
    assert dual_exponent(p) == pytest.approx(q)


@pytest.mark.parametrize("p", [0.99, 0, -2, -math.inf, math.nan, "max", None, [2]])
def test_no_dual_exponent(p):
    with pytest.raises(ValueError, match="p must be a number >= 1"):
        dual_exponent(p)
