"""Labelled data: what `train` trains on and `measure` measures, by name or from files."""

from __future__ import annotations

from margin_ext.data.data_source import (
    DataError,
    DataSource,
    Part,
    data_forms,
    data_sources,
    load_data,
    load_part,
    register_data_source,
)
from margin_ext.data.per_rank import PerRank

__all__ = [
    "DataError",
    "DataSource",
    "Part",
    "PerRank",
    "data_forms",
    "data_sources",
    "load_data",
    "load_part",
    "register_data_source",
]
