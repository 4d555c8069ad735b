"""The options of the criterion as attributes of it, which a schedule can change."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from margin_ext.loss_options import LossOptions
from margin_ext.loss_settings import shows_fields_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin_ext.loss import AverageMarginLoss

__all__ = ["add_option_attributes", "takes_options"]

_Options = ParamSpec("_Options")


def takes_options(
    options: Callable[_Options, LossOptions],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, _Options], None]]:
    """Give a constructor the parameters of the options, for type checkers, editors and help()."""
    return shows_fields_of(options)  # type: ignore[arg-type]


class _Option:
    """An attribute of the criterion that is one of its options: a change is checked and whole."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, criterion: AverageMarginLoss | None, owner: type) -> Any:
        return self if criterion is None else getattr(criterion._options, self.name)

    def __set__(self, criterion: AverageMarginLoss, value: Any) -> None:
        criterion.options = replace(criterion.options, **{self.name: value})


def add_option_attributes(criterion: type[AverageMarginLoss]) -> None:
    """Give the class an attribute for each field of LossOptions; the weight is its buffer."""
    for field in fields(LossOptions):
        if field.name != "weight":
            setattr(criterion, field.name, _Option(field.name))
