"""What the diagnosis says of robust accuracies, without a model."""

from __future__ import annotations

from margin_ext.measurement.masking import MaskingDiagnosis, diagnose


def judged(gap: list[float], cross_entropy: list[float]) -> MaskingDiagnosis:
    return diagnose(
        robust={"gap": gap, "cross_entropy": cross_entropy},
        random=[0.9] * len(gap),
        cross_entropy_underflow=0.0,
        gap_underflow=0.0,
        large_eps=10.0,
        at_large_eps=0.0,
        count=1000,
    )


def test_agreement_finds_nothing() -> None:
    assert judged([0.8, 0.4], [0.81, 0.41]).findings == ()


def test_a_weaker_gap_attack_at_one_radius_is_told_but_is_no_masking() -> None:
    found = judged([0.9, 0.6], [0.9, 0.5])
    assert "lower column counts" in found.findings[0]
    assert not found.gap_masked


def test_a_weaker_gap_attack_everywhere_is_masking() -> None:
    assert judged([0.9, 0.6], [0.8, 0.5]).gap_masked


def test_a_weaker_cross_entropy_attack_leaves_the_gap_column() -> None:
    found = judged([0.8, 0.3], [0.8, 0.9])
    assert found.cross_entropy_masked
    assert not found.gap_masked
    assert found.findings[-1] == "the gap column stands"
