"""Docstrings as the site shows them; read by mkdocstrings.

They are written for ``help()``: roles such as :class:`Name`, examples under "Example:", and code
after a double colon. Here they become links and code blocks.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod):`~?([^`]+)`")
_DOUBLE_BACKTICKS = re.compile(r"``([^`\n]+)``")
_EXAMPLE = re.compile(r"^(\s*)Example:$", flags=re.MULTILINE)
_PAGE = re.compile(r"\bdocs/([\w/-]+)\.md\b")


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.is_alias or obj.docstring is None:
            return
        text = _ROLE.sub(r"`\1`", obj.docstring.value)
        text = _DOUBLE_BACKTICKS.sub(r"`\1`", text)
        text = _EXAMPLE.sub(r"\1Examples:", text)
        text = _PAGE.sub(r"[\1](../\1.md)", text)
        obj.docstring.value = text.replace("::\n", ":\n")
