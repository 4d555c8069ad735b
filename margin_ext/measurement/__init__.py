"""Measuring margins and robustness: ``measure``, ``robust_accuracy``, ``MarginMonitor``."""

from __future__ import annotations

from margin_ext.measurement.masking import MaskingDiagnosis
from margin_ext.measurement.measure import measure
from margin_ext.measurement.monitor import MarginMonitor
from margin_ext.measurement.report import MarginReport, MarginSummary, NormMargins
from margin_ext.measurement.robust_accuracy import RobustAccuracy, robust_accuracy

__all__ = [
    "MarginMonitor",
    "MarginReport",
    "MarginSummary",
    "MaskingDiagnosis",
    "NormMargins",
    "RobustAccuracy",
    "measure",
    "robust_accuracy",
]
