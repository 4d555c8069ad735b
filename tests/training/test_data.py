from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from margin_ext.data import DataError, load_data
from training.idx_files import write_idx, write_mnist

IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "t10k-labels-idx1-ubyte.gz"


def test_digits_are_split_without_overlap_and_always_alike() -> None:
    first, second = load_data("digits"), load_data("digits")
    parts = (first.train, first.validation, first.test)
    assert [len(y) for _, y in parts] == [1000, 297, 500]
    together = torch.cat([x for x, _ in parts])
    assert together.shape == (1797, 1, 8, 8)
    assert float(together.min()) == 0
    assert float(together.max()) == 1
    images = {image.numpy().tobytes() for image in together}
    assert len(images) == 1797
    assert torch.equal(first.test[0], second.test[0])
    assert set(first.test[1].tolist()) == set(range(10))


def test_limits_keep_the_first() -> None:
    data = load_data("digits")
    small = data.limited(train=7, held_out=None)
    assert torch.equal(small.train[0], data.train[0][:7])
    assert len(small.test[1]) == 500


def test_mnist_reads_what_was_written(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    data = load_data("mnist", tmp_path)
    assert data.shape == (1, 28, 28)
    assert len(data.train[1]) + len(data.validation[1]) == 40
    assert len(data.test[1]) == 20
    x, y = data.train
    assert x.dtype == torch.float32
    assert torch.equal(x[:, 0].mean(dim=2).argmax(dim=1), 2 * y + 4)


def _truncated(folder: Path) -> None:
    path = folder / IMAGES
    path.write_bytes(path.read_bytes()[:-200])


def _damaged_inside(folder: Path) -> None:
    path = folder / IMAGES
    content = bytearray(path.read_bytes())
    content[200:300] = bytes(100)
    path.write_bytes(bytes(content))


def _no_gzip(folder: Path) -> None:
    (folder / IMAGES).write_bytes(b"<html>not found</html>")


def _header_cut_off(folder: Path) -> None:
    (folder / IMAGES).write_bytes(gzip.compress(b"\0\0\x08\x03\0\0"))


def _fewer_labels(folder: Path) -> None:
    write_idx(folder / LABELS, np.zeros(3, dtype=np.uint8))


def _label_out_of_range(folder: Path) -> None:
    write_idx(folder / LABELS, np.full(20, 17, dtype=np.uint8))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_truncated, "training files .* damaged"),
        (_damaged_inside, "training files .* damaged"),
        (_no_gzip, "training files .* damaged"),
        (_header_cut_off, "training files .* damaged"),
        (_fewer_labels, "20 images, 3 labels"),
        (_label_out_of_range, "labels .* up to 17"),
        (lambda folder: (folder / IMAGES).unlink(), "must hold MNIST"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, spoil, said: str) -> None:
    write_mnist(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=said):
        load_data("mnist", tmp_path)
