"""Images that were normalised before they came: loss, margins and attacks stay in pixels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from training.small_images import SMALL, arrays, train, weights, write_images


def test_normalised_images_give_the_run_of_the_pixels(here: Path, tmp_path: Path) -> None:
    normalised = {
        name: (value.astype("float32") / 255 - 0.5) / 0.25
        for name, value in arrays().items()
        if name.endswith("inputs")
    }
    write_images(tmp_path / "normalised.npz", **normalised)
    words = ("--data-dir", str(tmp_path / "normalised.npz"), "--data-range", "-2", "2")
    words = (*words, "--input-std", "0.25", "--model", "small_models:OfNormalised")
    assert train(tmp_path / "pixels", *SMALL, "--model", "small_models:plain") == 0
    assert train(tmp_path / "normalised", *SMALL, *words) == 0
    pixels, other = weights(tmp_path / "pixels"), weights(tmp_path / "normalised")
    for name, value in pixels.items():
        torch.testing.assert_close(other[f"inner.{name}"], value, rtol=1e-3, atol=1e-4)
    one, two = (
        json.loads((tmp_path / name / "report.json").read_text())
        for name in ("pixels", "normalised")
    )
    for split in ("train", "held_out"):
        for quantity in ("minimum_margin", "average_margin"):
            assert two[split][quantity] == pytest.approx(one[split][quantity], rel=1e-2)
    distance = one["held_out"]["attack_distance"]["average"]
    assert two["held_out"]["attack_distance"]["average"] == pytest.approx(distance, rel=0.1)
    assert "in pixel units" in (tmp_path / "normalised" / "report.txt").read_text()
