"""The settings of a run: read from a TOML file, completed, written to one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from margin_ext.data.data_source import find_data_source
from margin_ext.output.regular_file import require_regular_file
from margin_ext.suggestion import suggestion
from margin_ext.training.setting_table import OPTIONS, RECIPES, SECTIONS, defaults

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SettingsError", "complete_settings", "read_settings", "settings_text"]

_RATES: Final = {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3}


class SettingsError(ValueError):
    """A setting is unknown, or not what it should be."""


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that a TOML file holds, flat or in sections.

    Raises:
        SettingsError: It is missing or no TOML, or a key or value is none of a run's.
    """
    try:
        require_regular_file(path, "settings file")
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from error
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is no TOML: {error}") from error
    settings: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            if key not in SECTIONS:
                raise SettingsError(f"{path}: unknown section [{key}]{_nearest(key, SECTIONS)}")
            for name, inner in value.items():
                _take(settings, path, name, inner, key)
        else:
            _take(settings, path, key, value, None)
    return settings


def _take(settings: dict[str, Any], path: Path, key: str, value: Any, section: str | None) -> None:
    name = key.replace("-", "_")
    option = OPTIONS.get(name)
    if option is None:
        raise SettingsError(f"{path}: unknown key {key}{_nearest(name, OPTIONS)}")
    if section is not None and section != option.section:
        raise SettingsError(f"{path}: {key} belongs to [{option.section}], not to [{section}]")
    if name in settings:
        raise SettingsError(f"{path} has {key} twice")
    try:
        settings[name] = option.value(value)
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from error


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    return suggestion(name, known, cutoff=0.5) or f"; known are {', '.join(known)}"


def complete_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings, including those that were not given: what a run does on this machine.

    Raises:
        SettingsError: A setting is out of its range.

    >>> complete_settings({"data": "mnist", "optimizer": "adam"})["learning_rate"]
    0.001
    """
    import torch

    full = {**defaults(), **_recommended(settings), **settings}
    if full["data_dir"] is not None:
        full["data_dir"] = str(Path(full["data_dir"]).expanduser().resolve())
    if full["learning_rate"] is None:
        full["learning_rate"] = _RATES[full["optimizer"]]
    if full["device"] is None:
        full["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    if full["threads"] is None:
        full["threads"] = torch.get_num_threads()
    if full["measure_p"] is None:
        full["measure_p"] = "inf" if full["p"] == "inf" else 2
    if full["measure_p"] not in (2, "inf"):
        raise SettingsError(f"measure_p must be 2 or inf, got {full['measure_p']}")
    if full["eps_attack"] is None:
        source, _ = find_data_source(full["data"])
        full["eps_attack"] = list(source.radii[full["measure_p"]])
    return full


def _recommended(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the recipe."""
    recipe, radius = settings.get("recipe"), settings.get("radius")
    if (recipe is None) != (radius is None):
        raise SettingsError("recipe and radius need each other: --recipe robust --radius 0.5")
    if recipe is None or radius is None:
        return {}
    if not radius > 0:
        raise SettingsError(f"radius must be above 0, got {radius}")
    return RECIPES[recipe](radius)


def settings_text(settings: Mapping[str, Any], head: str) -> str:
    """Settings as TOML, in sections, after a comment; what is None is left out."""
    lines = [f"# {line}" for line in head.splitlines()]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        lines += [
            f"{option.name} = {_toml(settings[option.name])}"
            for option in OPTIONS.values()
            if option.section == section and settings.get(option.name) is not None
        ]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        # A TOML string escapes as JSON does, but for the one control character JSON leaves.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, bool) else repr(value)
