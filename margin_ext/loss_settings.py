"""The settings that the formula of the loss depends on, each once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, Literal, TypedDict, TypeVar, cast, get_args

import torch
from torch import Tensor

from margin_ext.checks import (
    check_eps,
    check_loss_settings,
    check_weight_values,
    values_known,
)
from margin_ext.input_std import InputStd
from margin_ext.norms import dual_exponent
from margin_ext.regularizers import Regularizer

__all__ = [
    "Aggregation",
    "FormulaKeywords",
    "LossKeywords",
    "LossSettings",
    "Reduction",
    "check_word",
    "formula_settings",
    "refuse_renamed",
    "refuse_unknown",
    "settings_from",
    "shows_fields_of",
]

# The order is that of `Reduction` in csrc/core/statistics.h.
Reduction = Literal["none", "mean", "sum"]
# How the gaps of a sample's positions become its own: their weighted mean, or the smallest.
Aggregation = Literal["mean", "worst"]

# Types of settings that never change.
_FIXED = frozenset({int, float, str, Regularizer})

_Function = TypeVar("_Function", bound=Callable[..., Any])

# What keywords of version 0.1 are called now.
_RENAMED = {
    "positions": "aggregation",
    "critical": "nearest",
    "difference": 'gradient=FiniteDifference("backward", ...)',
    "secant": "margin=Secant(...)",
}


class FormulaKeywords(TypedDict, total=False):
    """The fields of LossSettings without the regularizer, as keywords, for type checkers."""

    p: float | str
    mu: float
    eps: float
    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    reduction: Reduction
    input_std: InputStd
    aggregation: Aggregation


class LossKeywords(FormulaKeywords):
    """The fields of LossSettings as keywords, for type checkers."""

    regularizer: Regularizer


@dataclass(frozen=True)
class LossSettings:
    """The settings that the formula of the loss depends on.

    Attributes:
        p: Threat norm that margins are measured in: 1, 2, "inf" or any real number above 1.
        mu: Weight of the regularizer.
        regularizer: phi.
        eps: Floor of the gradient norm; below it the norm has no gradient.
        weight: Class weights [C]; they weight the whole loss of a sample. They may be 0 or
            negative, with the results of ``torch.nn.CrossEntropyLoss``.
        ignore_index: Samples (positions) with this label do not count; for class labels.
        label_smoothing: As in ``torch.nn.CrossEntropyLoss``; it applies to the cross-entropy only.
        reduction: "mean", "sum" or "none".
        input_std: The standard deviation(s) by which the loader divides, a number or one a
            channel: p, tau and margins are then in pixel units.
        aggregation: How the gaps of the positions of dense logits become one gap a sample: their
            "mean", weighted as the cross-entropy is, or the "worst", which is the smallest.

    Raises:
        ValueError: A setting is out of its range.
    """

    p: float | str = 2
    mu: float = 1.0
    _: KW_ONLY
    regularizer: Regularizer | str
    eps: float = 1e-6
    weight: Tensor | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    reduction: Reduction = "mean"
    input_std: InputStd = None
    aggregation: Aggregation = "mean"

    def __post_init__(self) -> None:
        dual_exponent(self.p)
        check_loss_settings(self.mu, self.eps, self.label_smoothing)
        if self.weight is not None and values_known(self.weight):
            check_weight_values(self.weight)
        check_word("reduction", self.reduction, Reduction)
        check_word("aggregation", self.aggregation, Aggregation)

    @cached_property
    def derived(self) -> dict[Any, Any]:
        """What functions have computed from these settings, for their next call."""
        return {}

    def check_type(self, dtype: torch.dtype, *, with_grad: bool) -> None:
        """Require settings that the type of the margins can hold.

        Raises:
            ValueError: A setting is too large for it, or so small that it would divide by 0.
        """
        if self.mu > torch.finfo(dtype).max:
            raise ValueError(f"mu must be finite in {dtype}, got {self.mu}")
        if with_grad:
            check_eps(self.eps, dtype)
        self.phi.check_type(dtype)

    def keywords(self) -> LossKeywords:
        """As keywords of the functional ops."""
        found = {field.name: getattr(self, field.name) for field in fields(LossSettings)}
        return cast("LossKeywords", {**found, "regularizer": self.phi})

    def formula_keywords(self) -> FormulaKeywords:
        """As keywords of the functional ops without a regularizer."""
        found = {**self.keywords()}
        del found["regularizer"]
        return cast("FormulaKeywords", found)

    def cross_entropy_keywords(self) -> dict[str, Any]:
        """Those of torch's cross_entropy, without its class weights and reduction."""
        return {name: getattr(self, name) for name in ("ignore_index", "label_smoothing")}

    def label_keywords(self) -> dict[str, Any]:
        """Those that say how labels count, as keywords of ``sample_gap``."""
        return {name: getattr(self, name) for name in ("weight", "ignore_index", "aggregation")}

    @property
    def phi(self) -> Regularizer:
        """The regularizer as a function of the margin."""
        if not isinstance(self.regularizer, Regularizer):
            raise TypeError(f"regularizer must be a Regularizer, got {self.regularizer!r}")
        return self.regularizer


def check_word(name: str, value: object, words: Any) -> None:
    """Require one of the words of a Literal."""
    if value not in get_args(words):
        raise ValueError(f"{name} must be one of {', '.join(get_args(words))}, got {value!r}")


def refuse_renamed(keywords: Mapping[str, object]) -> None:
    """Raise TypeError where a keyword of version 0.1 has another name now."""
    for name in keywords:
        if name in _RENAMED:
            raise TypeError(f"{name}= is now {_RENAMED[name]}")


def refuse_unknown(keywords: Mapping[str, object]) -> None:
    """Raise TypeError for any keyword that a function gathers beyond its own."""
    refuse_renamed(keywords)
    for name in keywords:
        raise TypeError(f"unexpected keyword argument {name!r}")


@lru_cache(maxsize=64, typed=True)
def _settings_of_numbers(**keywords: Any) -> LossSettings:
    return _checked_settings(keywords)


def _checked_settings(keywords: Mapping[str, Any]) -> LossSettings:
    refuse_renamed(keywords)
    return LossSettings(**keywords)


def settings_from(keywords: LossKeywords) -> LossSettings:
    """The settings of a functional op, from its keywords."""
    # A tensor or a list may change, so only settings without them are checked once for all calls.
    if torch.compiler.is_compiling() or not _FIXED.issuperset(map(type, keywords.values())):
        return _checked_settings(keywords)
    return _settings_of_numbers(**keywords)


def formula_settings(keywords: FormulaKeywords) -> LossSettings:
    """The settings of an op without a regularizer, from its keywords."""
    if "regularizer" in keywords:
        raise TypeError("unexpected keyword argument 'regularizer': this loss has none")
    return settings_from({**keywords, "regularizer": Regularizer.ramp(0.0, 1.0)})


def shows_fields_of(settings: type) -> Callable[[_Function], _Function]:
    """Let help() and inspect show the fields of a dataclass in place of ``**keywords``."""
    fields = list(inspect.signature(settings).parameters.values())

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        own = [
            p
            for p in signature.parameters.values()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        positional = [p for p in own if p.kind != p.KEYWORD_ONLY]
        named = [p for p in own if p.kind == p.KEYWORD_ONLY]
        if any(p.kind == p.VAR_POSITIONAL for p in signature.parameters.values()):
            positional += [p for p in fields if p.kind != p.KEYWORD_ONLY]
            named += [p for p in fields if p.kind == p.KEYWORD_ONLY]
        else:
            named += [p.replace(kind=p.KEYWORD_ONLY) for p in fields]
        function.__signature__ = signature.replace(parameters=positional + named)  # type: ignore[attr-defined]
        return function

    return decorate
