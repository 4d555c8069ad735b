"""The fields of a settings class, read from its source.

`margin-ext train --help` lists the options of the loss with their defaults and help. Importing the
class for that would import torch, which takes seconds; its source has the same words.
"""

from __future__ import annotations

import ast
import functools
import pkgutil
import re
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MISSING", "DeclaredField", "declared_fields"]

MISSING: Any = object()


@dataclass(frozen=True)
class DeclaredField:
    """One field of a settings class.

    Attributes:
        name: Its name.
        type: Its annotation.
        words: What it can be, if its type is a `Literal`; else empty.
        default: Its default; `MISSING` if it has none, or none that is a plain value.
        help: The first sentence about it in the class's docstring, without markup.
    """

    name: str
    type: str
    words: tuple[str, ...]
    default: Any
    help: str


def declared_fields(module: str, name: str) -> dict[str, DeclaredField]:
    """The public fields of a class, those of its bases first.

    Words must be a `Literal` in the annotation or under a name of its own.

    >>> field = declared_fields("margin_ext.training.recipe", "Recipe")["optimizer"]
    >>> field.words, field.default
    (('sgd', 'adam', 'adamw'), 'sgd')
    """
    source = _source(module)
    node = source.classes[name]
    found: dict[str, DeclaredField] = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            owner = module if base.id in source.classes else source.imports.get(base.id, "")
            if owner.startswith("margin_ext") and base.id in _source(owner).classes:
                found.update(declared_fields(owner, base.id))
    told = _told(ast.get_docstring(node) or "")
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        kind = ast.unparse(item.annotation)
        if item.target.id.startswith("_") or kind.startswith("ClassVar"):
            continue
        found[item.target.id] = DeclaredField(
            item.target.id,
            kind,
            _words(source, item.annotation),
            _default(item.value),
            told.get(item.target.id, ""),
        )
    return found


def _default(value: ast.expr | None) -> Any:
    try:
        return MISSING if value is None else ast.literal_eval(value)
    except ValueError:  # made by a call
        return MISSING


@dataclass(frozen=True)
class _Source:
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)
    assigned: dict[str, ast.expr] = field(default_factory=dict)


@functools.cache
def _source(module: str) -> _Source:
    found = _Source()
    for node in ast.walk(ast.parse(_text(module))):
        if isinstance(node, ast.ClassDef):
            found.classes[node.name] = node
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.imports.update({alias.asname or alias.name: node.module for alias in node.names})
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.assigned[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            found.assigned.setdefault(node.target.id, node.value)
    return found


def _text(module: str) -> str:
    package, _, inner = module.partition(".")
    # Without importing the packages around it, which may import torch.
    text = pkgutil.get_data(package, inner.replace(".", "/") + ".py")
    assert text is not None
    return text.decode()


def _words(source: _Source, annotation: ast.expr) -> tuple[str, ...]:
    if isinstance(annotation, ast.Name):
        if annotation.id in source.assigned:
            return _words(source, source.assigned[annotation.id])
        owner = source.imports.get(annotation.id, "")
        if owner.startswith("margin_ext"):
            other = _source(owner)
            return (
                _words(other, other.assigned[annotation.id])
                if annotation.id in (other.assigned)
                else ()
            )
        return ()
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        words = ast.literal_eval(annotation.slice)
        return words if isinstance(words, tuple) else (words,)
    return ()


_ENTRY = re.compile(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |^\S|\Z)", re.MULTILINE | re.DOTALL)


def _told(docstring: str) -> dict[str, str]:
    """The first sentence about each attribute."""
    _, _, attributes = docstring.partition("Attributes:\n")
    found = {}
    for name, text in _ENTRY.findall(attributes):
        line = " ".join(text.partition("\n\n")[0].split())
        sentence = re.split(r"\.(?: |$)", line)[0]
        sentence = re.sub(r"(?::\w+:)?`+([^`]*)`+", r"\1", sentence)
        found[name] = sentence[:1].lower() + sentence[1:]
    return found
