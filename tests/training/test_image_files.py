"""Images in npz files and in CIFAR-10's binary files, whole and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from margin_ext.data import DataError, load_data
from training.small_images import arrays, write_images


def test_bytes_become_pixels_and_the_last_tenth_is_for_validation(tmp_path: Path) -> None:
    write_images(tmp_path / "images.npz")
    data = load_data("npz", tmp_path / "images.npz")
    given = arrays()
    assert [len(part[1]) for part in (data.train, data.validation, data.test)] == [54, 6, 20]
    assert data.shape == (1, 6, 6)
    assert data.classes == 3
    images = torch.cat([data.train[0], data.validation[0]])
    torch.testing.assert_close(images, torch.from_numpy(given["train_inputs"]).float() / 255)
    labels = torch.cat([data.train[1], data.validation[1]])
    assert labels.tolist() == given["train_target"].tolist()
    assert labels.dtype == torch.int64
    # A folder with one such file is as good.
    assert torch.equal(load_data("npz", tmp_path).test[0], data.test[0])


def test_forms_of_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    grey = rng.integers(0, 256, (60, 6, 5), dtype=np.uint8)
    write_images(path, train_inputs=grey, test_inputs=grey[:20])
    assert torch.equal(
        load_data("npz", path).train[0][:, 0], torch.from_numpy(grey[:54]).float() / 255
    )
    color = rng.random((60, 6, 5, 3))
    write_images(
        path,
        train_inputs=color,
        test_inputs=color[:20],
        train_target=np.zeros((60, 1), dtype=np.int32),
        val_inputs=color[:7].astype(np.float16),
        val_target=np.ones(7, dtype=np.int64),
        class_names=np.array(["a", "b", "c", "d"]),
    )
    data = load_data("npz", path)
    assert data.shape == (3, 6, 5)
    assert data.classes == 4
    assert [len(part[1]) for part in (data.train, data.validation, data.test)] == [60, 7, 20]
    torch.testing.assert_close(data.train[0][2, 1], torch.from_numpy(color[2, :, :, 1]).float())


def test_normalised_images_need_their_range(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    images = np.linspace(-2, 3, 60 * 36, dtype=np.float32).reshape(60, 1, 6, 6)
    write_images(path, train_inputs=images, test_inputs=images[:20])
    with pytest.raises(
        DataError, match=r"lie in \[-2, 2\.4\d*\], outside \[0, 1\]: say with --data-r"
    ):
        load_data("npz", path)
    assert float(load_data("npz", path, (-2.0, 3.0)).train[0].min()) == -2
    write_images(path)
    with pytest.raises(DataError, match="lie in 0 to 1: leave out --data-range"):
        load_data("npz", path, (-2.0, 3.0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_inputs": None}, "must hold train_inputs.* it holds train_inputs, train_target"),
        ({"train_target": None}, "must hold train_inputs"),
        ({"train_target": np.zeros(7, dtype=np.int64)}, r"are \[60, 1, 6, 6\], with 7 labels"),
        ({"train_target": np.zeros(60)}, "must be whole numbers"),
        (
            {"train_target": -np.ones(60, dtype=np.int64)},
            "must lie in 0 to .*, they go from -1 to -1",
        ),
        ({"train_inputs": np.zeros((60, 36))}, r"must be \[N, height, width\].* got \[60, 36\]"),
        ({"train_inputs": np.zeros((60, 6, 6), dtype=np.int64)}, "bytes or of a floating type"),
        ({"train_inputs": np.full((60, 6, 6), np.nan)}, "hold NaN"),
        ({"test_inputs": np.zeros((20, 1, 6, 7))}, r"test images .* \[1, 6, 7\], the training"),
        ({"class_names": np.array(["a"])}, "go up to 2, for 1 class_names"),
        ({"train_inputs": np.array([{}])}, "no whole npz file of plain arrays"),
        (
            {"train_inputs": np.zeros((5, 6, 6)), "train_target": np.zeros(5, dtype=np.int64)},
            "5 training images are too few",
        ),
    ],
)
def test_what_is_wrong_in_an_npz_file_is_told(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    path = tmp_path / "images.npz"
    write_images(path, **changed)
    with pytest.raises(DataError, match=message) as told:
        load_data("npz", path)
    assert str(path) in str(told.value)


@pytest.mark.parametrize("kept", [0, 10, 200, -30])
def test_a_file_that_is_cut_off(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "images.npz"
    write_images(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="no whole npz file"):
        load_data("npz", path)


def test_bytes_that_were_changed(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    write_images(path)
    content = bytearray(path.read_bytes())
    content[1000:1010] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(DataError, match="no whole npz file"):
        load_data("npz", path)


def test_a_folder_with_several_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds none"):
        load_data("npz", tmp_path)
    for name in ("a.npz", "b.npz"):
        write_images(tmp_path / name)
    with pytest.raises(DataError, match=r"holds a\.npz, b\.npz"):
        load_data("npz", tmp_path)


def write_cifar(folder: Path, images: int = 4) -> None:
    rng = np.random.default_rng(0)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        records = rng.integers(0, 256, (images, 3073), dtype=np.uint8)
        records[:, 0] = number
        records[:, 1] = 10 * number
        records.tofile(folder / f"{name}.bin")


def test_cifars_binary_files(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    write_cifar(folder)
    for place in (tmp_path, folder):
        data = load_data("cifar10", place)
        assert data.shape == (3, 32, 32)
        assert data.train[1].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 2
        assert data.validation[1].tolist() == [4] * 2
        assert data.test[1].tolist() == [5] * 4
        assert data.test[0][:, 0, 0, 0].tolist() == pytest.approx([50 / 255] * 4)
    raw = np.fromfile(folder / "test_batch.bin", dtype=np.uint8).reshape(4, 3073)
    wanted = torch.from_numpy(raw[2, 1:].reshape(3, 32, 32)).float() / 255
    assert torch.equal(data.test[0][2], wanted)


def test_cifars_files_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no CIFAR-10: it must hold data_batch_1"):
        load_data("cifar10", tmp_path)
    write_cifar(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin is damaged"):
        load_data("cifar10", tmp_path)
    path.write_bytes(b"\x11" + whole[1:])
    with pytest.raises(DataError, match="go up to 17, not 9"):
        load_data("cifar10", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin is missing"):
        load_data("cifar10", tmp_path)


def test_cifar_in_an_npz_file(tmp_path: Path) -> None:
    images = np.zeros((60, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(60, dtype=np.uint8) % 10
    path = tmp_path / "small.npz"
    write_images(path, train_inputs=images, train_target=labels)
    with pytest.raises(DataError, match="test images"):
        load_data("cifar10", path)
    write_images(path, train_inputs=images, train_target=labels, test_inputs=images[:20])
    assert load_data("cifar10", tmp_path).classes == 10
    write_images(path)
    with pytest.raises(DataError, match=r"images \[1, 6, 6\] of 3 classes, not CIFAR-10's"):
        load_data("cifar10", path)
