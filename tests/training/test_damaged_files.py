"""Files that are damaged in any way: a message with the path, or the same content; no traceback."""

from __future__ import annotations

import gzip
import json
import os
import resource
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from margin_ext.data import load_data
from margin_ext.data.idx_files import read_idx
from margin_ext.data.npz_file import read_npz
from margin_ext.training import OtherSettingsError, trial_from_settings
from margin_ext.training.settings_file import read_settings
from training.mutations import mutations
from training.small_images import SMALL, same_weights, train, weights, write_images


def require_message(path: Path, read: Callable[[], Any], same: Callable[[Any], bool]) -> int:
    """Read every mutation of a file; returns how many were refused."""
    whole = path.read_bytes()
    refused = 0
    for content in mutations(whole):
        path.write_bytes(content)
        found, said = None, ""
        try:
            found = read()
        except (OtherSettingsError, ValueError) as error:
            said = str(error)
        if said:
            assert str(path.parent) in said
            refused += 1
        else:
            assert same(found), "read in silence, and not what was written"
    path.write_bytes(whole)
    assert same(read())
    return refused


def test_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    write_images(path)
    with np.load(path) as file:
        arrays = dict(file)

    def same(found: dict[str, Any]) -> bool:
        return found.keys() == arrays.keys() and all(
            np.array_equal(found[name], arrays[name]) for name in arrays
        )

    assert require_message(path, lambda: read_npz(path), same) > 20
    assert require_message(path, lambda: load_data(str(path)), lambda data: data.classes == 3) > 20


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(tmp_path: Path, packed: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8)
    raw = struct.pack(">4B3I", 0, 0, 8, 3, *values.shape) + values.tobytes()
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(raw) if packed else raw)

    def same(found: torch.Tensor) -> bool:
        # Without gzip there is no checksum: other values, or another shape of the same size.
        return found.numel() == values.size and (not packed or bool((found == values).all()))

    assert require_message(path, lambda: read_idx(path), same) > 15


def test_cifars_files(tmp_path: Path) -> None:
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        records = np.random.default_rng(0).integers(0, 10, (4, 3073), dtype=np.uint8)
        records.tofile(tmp_path / f"{name}.bin")
    path = tmp_path / "data_batch_2.bin"

    def same(data: Any) -> bool:  # no checksum
        return data.train[0].shape[1:] == (3, 32, 32)

    assert require_message(path, lambda: load_data("cifar10", tmp_path), same) > 10


def test_settings_files(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[loss]\nmu = 2.0\ntau = 1.5\n[train]\nepochs = 7\n")
    assert require_message(path, lambda: read_settings(path), lambda s: isinstance(s, dict)) > 5


@pytest.fixture
def finished(here: Path, tmp_path: Path) -> Path:
    assert train(tmp_path / "run", *SMALL, "--epochs", "2") == 0
    return tmp_path / "run"


def test_checkpoints(finished: Path) -> None:
    before = weights(finished)
    path = finished / "checkpoint.pt"

    def read() -> Any:
        return trial_from_settings(read_settings(finished / "settings.toml"), finished)

    def same(trial: Any) -> bool:
        found = trial.loop.model.state_dict()
        return trial.loop.epoch == 2 and all(torch.equal(found[n], before[n]) for n in before)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert require_message(path, read, same) > 20


def test_a_flipped_bit_among_the_weights(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    place = bytes(content).find(weights(finished)["1.weight"].numpy().tobytes())
    assert place > 0
    content[place + 3] ^= 0x40
    path.write_bytes(content)
    capsys.readouterr()
    assert train(finished, "--resume") == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert "damaged" in said
    assert len(said.splitlines()) == 1


def test_a_hash_that_does_not_fit(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    state["model_state_dict"]["1.weight"][0, 0] += 1
    torch.save(state, path)
    assert train(finished, "--resume") == 2
    assert "its hash does not fit" in capsys.readouterr().err
    del state["digest"]
    torch.save(state, path)
    assert train(finished, "--resume") == 2
    assert "an earlier version, which kept no hash" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["measured.json", "history.jsonl", "report.json", "report.txt"])
def test_what_the_checkpoint_knows_is_written_again(finished: Path, name: str) -> None:
    path = finished / name
    whole = path.read_text()
    for content in [b"", b"[1]\n", b"null\n", b'{"epoch": 1}\n', whole.encode()[:-30], b"\xff\xfe"]:
        path.write_bytes(content)
        assert train(finished, "--resume") == 0
        assert path.read_text() == whole


@pytest.mark.parametrize("name", ["checkpoint.pt", "settings.toml", "measured.json", "images.npz"])
def test_pipes_are_not_read(finished: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = finished / name
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    words = ("--data", str(pipe)) if name == "images.npz" else ()
    capsys.readouterr()
    status = train(finished, "--resume", *words)
    said = capsys.readouterr().err
    assert status == 2
    assert str(pipe) in said
    assert "Traceback" not in said


def test_folders_in_place_of_files(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("checkpoint.pt", "settings.toml", "history.jsonl"):
        path = finished / name
        content = path.read_bytes()
        path.unlink()
        path.mkdir()
        assert train(finished, "--resume") == 2
        assert str(path) in capsys.readouterr().err
        path.rmdir()
        path.write_bytes(content)


def test_a_small_gz_file_of_gigabytes(tmp_path: Path) -> None:
    """Under a limit of memory far below what the file would become."""
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    block = gzip.compress(bytes(64 << 20), 9)
    header = gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 10, 28, 28))
    path.write_bytes(header + 25 * block)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))
    try:
        with pytest.raises(ValueError, match=r"should hold \(10, 28, 28\) values, it holds more"):
            read_idx(path)
        path.write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 10**6, 28, 28)))
        with pytest.raises(ValueError, match="it is too small for them"):
            read_idx(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_an_array_that_states_a_size_it_has_not(tmp_path: Path) -> None:
    import io
    import zipfile

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**7, 10**5)}
    )
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inputs.npy", buffer.getvalue())
    with pytest.raises(ValueError, match="should hold 4000000000000 bytes, it holds 0"):
        read_npz(path)


def test_a_second_process_in_the_folder_is_refused(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from margin_ext.output.exclusive import exclusive

    with exclusive(finished):
        assert train(finished, "--resume") == 2
        assert "another run is writing to" in capsys.readouterr().err
        before = (finished / "checkpoint.pt").read_bytes()
        assert train(finished, *SMALL, "--fresh") == 2
        assert (finished / "checkpoint.pt").read_bytes() == before
    assert train(finished, "--resume") == 0


def test_a_training_becomes_longer(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(finished, "--resume", "--epochs", "5") == 0
    assert "5 epochs, 2 done before" in capsys.readouterr().err
    report = json.loads((finished / "report.json").read_text())
    assert report["epochs"] == 5
    assert report["epochs_planned"] == [[0, 2], [2, 5]]
    assert "epochs = 5" in (finished / "settings.toml").read_text()
    # Made longer in two processes or in one, it is the same.
    assert train(tmp_path / "again", *SMALL, "--epochs", "2") == 0
    assert train(tmp_path / "again", "--resume", "--epochs", "5", "--no-report") == 0
    assert same_weights(finished, tmp_path / "again")
    assert train(finished, "--resume", "--epochs", "3") == 2
    assert "a training can become longer, not shorter" in capsys.readouterr().err
