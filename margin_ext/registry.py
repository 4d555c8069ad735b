"""Objects that a user can also name by a word, such as bounds and attacks."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from margin_ext.suggestion import suggestion

__all__ = ["Registry"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=_Named)
Class = TypeVar("Class", bound=type)


class Registry(Generic[Item]):
    """What makes each object that has a name, with its usual settings.

    Attributes:
        argument: The argument whose words these are, for messages.
        makers: Name to class or function.
        old_names: Words of earlier versions, and what they are called now.
    """

    def __init__(self, argument: str, old_names: Mapping[str, str] | None = None) -> None:
        self.argument = argument
        self.makers: dict[str, Callable[..., Item]] = {}
        self.old_names = dict(old_names or {})

    def register(self, made: Class) -> Class:
        """Make a class known by its ``name``; usable as a decorator."""
        self.makers[made.name] = made  # type: ignore[attr-defined]
        return made

    def resolve(self, items: Iterable[str | Item], *, seed: int = 0) -> tuple[Item, ...]:
        """Objects, made with their usual settings where only the name is given.

        Args:
            items: Names and objects, mixed as you like.
            seed: Seed of those that are given by name and take one; an object has its own.

        Raises:
            TypeError: A class is given in place of an object.
            ValueError: A name is unknown, or comes twice.
        """
        if isinstance(items, str):
            raise ValueError(f'{self.argument} must be a sequence, such as ["{items}"]')  # noqa: TRY004
        items = tuple(items)
        for one in items:
            if isinstance(one, type):
                raise TypeError(
                    f"{self.argument} must be names or objects, got the class {one.__name__}: "
                    f"write {one.__name__}(...)"
                )
        found = tuple(self._by_name(one, seed) if isinstance(one, str) else one for one in items)
        names = [one.name for one in found]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.argument} must have different names, got {', '.join(names)}")
        return found

    def _by_name(self, name: str, seed: int) -> Item:
        if name in self.old_names:
            new = self.old_names[name]
            warnings.warn(
                f'"{name}" in {self.argument} is called "{new}" now, in results too',
                FutureWarning,
                stacklevel=5,
            )
            name = new
        if name not in self.makers:
            raise ValueError(
                f"{self.argument} must be from {', '.join(sorted(self.makers))}, got {name!r}"
                f"{suggestion(name, self.makers)}"
            )
        make = self.makers[name]
        given: dict[str, Any] = {}
        if "seed" in inspect.signature(make).parameters:
            given["seed"] = seed
        return make(**given)
