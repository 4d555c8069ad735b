"""A working folder with small images and models."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.small_images import MODELS, write_images


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "images.npz")
    (folder / "small_models.py").write_text(MODELS)
    return folder


@pytest.fixture
def here(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(image_folder)
    monkeypatch.syspath_prepend(str(image_folder))
    return image_folder
