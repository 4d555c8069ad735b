"""Measuring margins and robustness: ``measure``, ``robust_accuracy``, ``MarginMonitor``."""

from __future__ import annotations

from margin_ext.attacks.minimum_distance import (
    DistanceAttack,
    NearestAdversarial,
    nearest_adversarial,
)
from margin_ext.attacks.pgd import PGDSettings, pgd
from margin_ext.bounds.certified import Certification, certified_margins
from margin_ext.bounds.sampled import SampledMargins, Sampling, sampled_margins
from margin_ext.measurement.margin_summary import MarginSummary
from margin_ext.measurement.masking import MaskingDiagnosis
from margin_ext.measurement.measure import measure
from margin_ext.measurement.monitor import MarginMonitor
from margin_ext.measurement.report import MarginReport, NormMargins
from margin_ext.measurement.robust_accuracy import RobustAccuracy, robust_accuracy
from margin_ext.measurement.robustness_curve import RobustnessCurve

__all__ = [
    "Certification",
    "DistanceAttack",
    "MarginMonitor",
    "MarginReport",
    "MarginSummary",
    "MaskingDiagnosis",
    "NearestAdversarial",
    "NormMargins",
    "PGDSettings",
    "RobustAccuracy",
    "RobustnessCurve",
    "SampledMargins",
    "Sampling",
    "certified_margins",
    "measure",
    "nearest_adversarial",
    "pgd",
    "robust_accuracy",
    "sampled_margins",
]
