"""Measuring margins and robustness: ``measure``, ``robust_accuracy``, ``MarginMonitor``."""

from __future__ import annotations

from margin_ext.measurement.margin_summary import MarginSummary
from margin_ext.measurement.masking import MaskingDiagnosis
from margin_ext.measurement.measure import measure
from margin_ext.measurement.monitor import MarginMonitor
from margin_ext.measurement.report import MarginReport, NormMargins
from margin_ext.measurement.resume import read_partial_results
from margin_ext.measurement.robust_accuracy import robust_accuracy
from margin_ext.measurement.robust_accuracy_result import RobustAccuracy
from margin_ext.measurement.robustness_curve import RobustnessCurve

__all__ = [
    "MarginMonitor",
    "MarginReport",
    "MarginSummary",
    "MaskingDiagnosis",
    "NormMargins",
    "RobustAccuracy",
    "RobustnessCurve",
    "measure",
    "read_partial_results",
    "robust_accuracy",
]
