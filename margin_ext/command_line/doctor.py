"""``margin-ext doctor``: what is there, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from margin_ext.command_line import Subparsers

__all__ = ["Extra", "add_parser", "extras", "run"]

_FOR_DEVELOPERS = ("all", "dev", "docs", "integrations", "test")
_OPTIONAL_REQUIREMENT = re.compile(
    r"^(?P<name>[\w.-]+)(?P<rest>.*?);.*extra == ['\"](?P<extra>[\w-]+)"
)


@dataclass(frozen=True)
class Extra:
    """One optional part of the package.

    Attributes:
        name: As in ``margin_ext[demo]``.
        installed: Its requirements that are there, with their versions.
        missing: Its requirements that are not there.
    """

    name: str
    installed: dict[str, str]
    missing: tuple[str, ...]

    @property
    def mend(self) -> str:
        """The command that installs what is missing."""
        return f"pip install {' '.join(self.missing)}" if self.missing else ""


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def extras() -> list[Extra]:
    """Return the optional parts, as the installed package's own metadata lists them."""
    try:
        requirements = importlib.metadata.requires("margin_ext") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    wanted: dict[str, list[str]] = {}
    for requirement in requirements:
        match = _OPTIONAL_REQUIREMENT.match(requirement)
        if match and match["extra"] not in _FOR_DEVELOPERS:
            wanted.setdefault(match["extra"], []).append(match["name"])
    found = []
    for name, distributions in sorted(wanted.items()):
        versions = {distribution: _version(distribution) for distribution in distributions}
        installed = {key: version for key, version in versions.items() if version is not None}
        missing = tuple(key for key, version in versions.items() if version is None)
        found.append(Extra(name, installed, missing))
    return found


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "doctor",
        help="tell what is installed, what is missing, and what mends it",
        description="Tell what is installed, what is missing, and what mends it. The exit status "
        "is 1 where this machine could run compiled ops and does not.",
    )
    parser.add_argument("--json", action="store_true", help="for programs, not for people")


def _extras_text(found: list[Extra]) -> str:
    lines = []
    for extra in found:
        there = ", ".join(f"{name} {version}" for name, version in extra.installed.items())
        state = f"missing: {', '.join(extra.missing)}" if extra.missing else there
        lines.append(f"{'extra ' + extra.name:<19}{state}")
        if extra.missing:
            lines.append(f"  mend {extra.mend}")
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> int:
    """Write the report; return 1 where something needed is missing or broken."""
    from margin_ext import _backend_info

    info = _backend_info.backend_info()
    found = extras()
    if arguments.json:
        listed = [{**asdict(extra), "mend": extra.mend} for extra in found]
        text = json.dumps({**info.as_dict(), "extras": listed}, indent=2)
    else:
        verdict = "All is well." if info.healthy else "Something needed is missing: see above."
        text = "\n\n".join(part for part in (str(info), _extras_text(found), verdict) if part)
    sys.stdout.write(text + "\n")
    return 0 if info.healthy else 1
