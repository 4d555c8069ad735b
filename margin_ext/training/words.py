"""Settings that are one of a few words: `Literal` types are their only list."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

__all__ = ["check_words", "words_of"]


def words_of(owner: type) -> dict[str, tuple[str, ...]]:
    """The words that each field of a class can be, for fields of a `Literal` type."""
    hints = get_type_hints(owner)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


def check_words(settings: Any) -> None:
    """Raise ValueError where a field is none of the words of its type."""
    for name, words in words_of(type(settings)).items():
        value = getattr(settings, name)
        if value not in words:
            raise ValueError(f"{name} must be one of {', '.join(words)}, got {value!r}")
