"""The registry of data sources: everything that ``--data`` can name.

Each module of `margin_ext.data.sources` registers one source. A source of your own does the same in
a module of yours::

    from margin_ext.data import DataSource, register_data_source

    @register_data_source
    class Stripes(DataSource):
        name = "stripes"
        summary = "synthetic stripes of three widths"

        def load(self, place):
            return ImageData("stripes", train, validation, test)

Command lines, settings files and messages read their names from here. This module imports torch
only when data are loaded, so that ``margin-ext train --help`` is quick.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args

from margin_ext.suggestion import suggestion

if TYPE_CHECKING:
    from pathlib import Path

    from margin_ext.data.image_data import ImageData

__all__ = [
    "DataError",
    "DataSource",
    "Part",
    "data_forms",
    "data_sources",
    "find_data_source",
    "load_data",
    "load_part",
    "register_data_source",
]

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)


class DataError(ValueError):
    """Data are missing, damaged or do not fit together; the message says what to do.

    Example:
        >>> from margin_ext.data import load_data
        >>> load_data("digit")
        Traceback (most recent call last):
            ...
        margin_ext.data.data_source.DataError: data must be one of ...; did you mean digits?
    """


class DataSource(Protocol):
    """Where labelled data come from. Inherit from it, or write a class with the same members.

    Attributes:
        name: The word that selects the source.
        summary: One line for ``--help``.
        place: What its data are read from, such as "FOLDER"; "" if it needs nothing. The command
            line takes it as ``--data NAME:FOLDER``.
        suffix: Paths that end with this belong to the source, without a name before them.
        radii: Radii of attacks at which a well-trained small network loses part of its accuracy,
            by threat norm (2 or "inf").

    Example:
        >>> class Squares(DataSource):
        ...     name = "squares"
        ...     summary = "four images of two classes"
        ...     def load(self, place):
        ...         from margin_ext.data.image_data import ImageData
        ...         part = torch.ones(4, 1, 2, 2), torch.tensor([0, 0, 1, 1])
        ...         return ImageData("squares", train=part, validation=part, test=part)
        >>> inputs, target = Squares().load_part("", "test")
        >>> inputs.shape
        torch.Size([4, 1, 2, 2])
    """

    name: str
    summary: str
    place: str = ""
    suffix: str = ""
    radii: Mapping[float | str, tuple[float, ...]] = {
        2: (0.25, 0.5, 1.0),
        "inf": (2 / 255, 4 / 255, 8 / 255),
    }

    def load(self, place: str) -> ImageData:
        """All three parts, for training.

        Args:
            place: Where the files are; "" if the source needs none.

        Raises:
            DataError: The data are missing or damaged, or there is no part to train on.
        """
        ...

    def load_part(self, place: str, part: Part) -> Any:
        """One part for `measure`: a pair of tensors (inputs [N, ...], target [N]), a Dataset or a
        DataLoader. Override it where a part can be read alone, or where there is only one.

        Raises:
            DataError: As `load`.
        """  # noqa: D205
        return getattr(self.load(place), part)


_Source = TypeVar("_Source", bound=type[DataSource])
_REGISTERED: dict[str, DataSource] = {}


def register_data_source(source: _Source) -> _Source:
    """Class decorator that makes a source known to ``--data`` under its name.

    Raises:
        ValueError: Another source has the name.

    >>> from margin_ext.data import DataSource, data_sources, register_data_source
    >>> @register_data_source
    ... class Stripes(DataSource):
    ...     name = "stripes"
    ...     summary = "synthetic stripes"
    >>> "stripes" in data_sources()
    True
    """
    # A module that is reloaded registers its class a second time.
    known = _REGISTERED.get(source.name)
    if known is not None and type(known).__qualname__ != source.__qualname__:
        raise ValueError(f"there is a data source {source.name} already: {type(known).__name__}")
    _REGISTERED[source.name] = source()
    return source


def data_sources() -> Mapping[str, DataSource]:
    """Every source by its name, in alphabetical order.

    Example:
        >>> data_sources()["mnist"].place
        'FOLDER'
    """
    package = importlib.import_module("margin_ext.data.sources")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_REGISTERED.items()))


def data_forms() -> str:
    """What ``--data`` can be, in words: "cifar10:FOLDER, digits, ...".

    Example:
        >>> "mnist:FOLDER" in data_forms()
        True
    """
    forms = []
    for name, source in data_sources().items():
        form = f"{name}:{source.place}" if source.place and ":" not in name else name
        forms.append(form + (f" (or FILE{source.suffix})" if source.suffix else ""))
    return ", ".join(forms)


def find_data_source(text: str) -> tuple[DataSource, str]:
    """The source that a text such as "mnist:FOLDER" names, and the place in it ("" if none).

    Raises:
        DataError: There is no such source.

    >>> source, place = find_data_source("mnist:/data/mnist")
    >>> source.name, place
    ('mnist', '/data/mnist')
    >>> find_data_source("images.npz")[0].name
    'npz'
    """
    sources = data_sources()
    name, colon, place = text.partition(":")
    if name in sources:
        return sources[name], place
    for source in sources.values():
        if source.suffix and text.endswith(source.suffix):
            return source, text
    for source in sources.values():
        # "module:callable" is a form, not a word.
        if colon and ":" in source.name:
            return source, text
    raise DataError(f"data must be one of {data_forms()}, got {text!r}{suggestion(name, sources)}")


def load_data(
    text: str, place: str | Path | None = None, value_range: tuple[float, float] = (0.0, 1.0)
) -> ImageData:
    """All three parts of a data set.

    Args:
        text: As `find_data_source` reads it.
        place: Where its files are, if the text does not say so.
        value_range: Lowest and highest value that images can have, where they are not bytes.

    Raises:
        DataError: There is no such source, its data are missing or damaged, or their values lie
            outside of the range.

    >>> data = load_data("digits")
    >>> data.train[0].shape, data.test[1].shape
    (torch.Size([1000, 1, 8, 8]), torch.Size([500]))
    """
    source, place = _placed(text, place)
    data = source.load(place)
    data.require_range(value_range)
    return data


def load_part(text: str, part: Part = "test", place: str | Path | None = None) -> Any:
    """One part of a data set, for `margin_ext.measure`.

    Args:
        text: As `find_data_source` reads it.
        part: Which part. A source that has only one gives that one.
        place: Where its files are, if the text does not say so.

    Raises:
        DataError: As `load_data`, or there is no such part.

    >>> inputs, target = load_part("digits", "validation")
    >>> inputs.shape
    torch.Size([297, 1, 8, 8])
    """
    if part not in PARTS:
        raise DataError(f"the part must be one of {', '.join(PARTS)}, got {part!r}")
    source, place = _placed(text, place)
    return source.load_part(place, part)


def _placed(text: str, place: str | Path | None) -> tuple[DataSource, str]:
    source, found = find_data_source(text)
    if place and found:
        raise DataError(f"{text} says where the data are; {place} says it a second time")
    found = found or str(place or "")
    if source.place and not found:
        raise DataError(
            f"{source.name} needs a place: {source.name}:{source.place}, or --data-dir to train "
            f"({source.summary})"
        )
    if found and not source.place:
        raise DataError(f"{source.name} needs no place, got {found}")
    return source, found
