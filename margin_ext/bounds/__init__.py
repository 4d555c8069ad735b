"""Bounds on the margin: minimum distances from above, certificates from below, and estimates."""

from __future__ import annotations

from margin_ext.bounds.all_classes import AllClasses
from margin_ext.bounds.bound import (
    BOUNDS,
    Bound,
    BoundKind,
    BoundResult,
    register_bound,
    resolve_bounds,
)
from margin_ext.bounds.certified import Certified
from margin_ext.bounds.foolbox_distance import FoolboxDistance
from margin_ext.bounds.minimum_distance import MinimumDistance
from margin_ext.bounds.sampled import Sampled, SampledMargins

__all__ = [
    "BOUNDS",
    "AllClasses",
    "Bound",
    "BoundKind",
    "BoundResult",
    "Certified",
    "FoolboxDistance",
    "MinimumDistance",
    "Sampled",
    "SampledMargins",
    "register_bound",
    "resolve_bounds",
]
