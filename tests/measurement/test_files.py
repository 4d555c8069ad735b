"""Damaged, foreign and contested files: one clear line, whatever has become of them."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from torch import nn

from margin_ext import MarginMonitor, measure
from margin_ext.measurement.monitor import read_history
from margin_ext.models.checkpoint import load_checkpoint, read_checkpoint
from margin_ext.output.atomic_write import write_atomically, write_text
from margin_ext.output.exclusive import InUseError, hold
from margin_ext.output.json_file import read_json, write_json

MUTATIONS = 60


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 4)


DATA = torch.rand(30, 6, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 4


def mutations(content: bytes, count: int = MUTATIONS) -> Iterator[bytes]:
    """Cut, flipped, swapped, overwritten, repeated and foreign bytes; the same ones every time."""
    draw = random.Random(0)
    size = len(content)
    for number in range(count):
        damaged = bytearray(content)
        first, second = sorted(draw.sample(range(size), 2))
        kind = number % 6
        if kind == 0:
            damaged = damaged[:first]
        elif kind == 1:
            for _ in range(draw.choice((1, 1, 3))):
                damaged[draw.randrange(size)] ^= 1 << draw.randrange(8)
        elif kind == 2:
            length = min(second - first, size - second, 32) or 1
            one, other = damaged[first : first + length], damaged[second : second + length]
            damaged[first : first + length], damaged[second : second + length] = other, one
        elif kind == 3:
            damaged[first:second] = bytes(draw.randrange(256) for _ in range(second - first))
        elif kind == 4:
            damaged = damaged[:second] + damaged[first:]
        else:
            damaged = bytearray(draw.randrange(256) for _ in range(draw.randrange(200)))
        yield bytes(damaged)


def survives(read: Callable[[], object], path: Path) -> bool:
    """Whether the file is read; otherwise the error must be one line that names the file."""
    try:
        read()
    except (ValueError, OSError) as error:
        told = str(error)
    else:
        return True
    assert path.name in told
    assert "\n" not in told
    return False


def same(one: object, other: object) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def test_damaged_results_are_never_served(tmp_path: Path) -> None:
    path = tmp_path / "partial.npz"
    right = measure(linear(), DATA, resume=path)
    whole = path.read_bytes()
    for damaged in mutations(whole):
        path.write_bytes(damaged)

        def read() -> None:
            report = measure(linear(), DATA, resume=path)
            for name, column in right.columns().items():
                assert (report.columns()[name] == column).all(), name

        survives(read, path)


def test_damaged_checkpoints_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": linear().state_dict(), "epoch": 3}, path)
    whole = path.read_bytes()
    expected = linear().state_dict()
    refused = 0
    for damaged in mutations(whole):
        path.write_bytes(damaged)
        model = nn.Linear(6, 4)

        def read() -> None:
            assert load_checkpoint(model, path) == {"epoch": 3}  # noqa: B023
            for name, tensor in model.state_dict().items():  # noqa: B023
                assert torch.equal(tensor, expected[name]), name

        refused += not survives(read, path)
    assert refused > 0.8 * MUTATIONS


def test_every_bit_of_the_weights_counts(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    model = linear()
    torch.save(model.state_dict(), path)
    whole = path.read_bytes()
    start = whole.find(model.weight.detach().numpy().tobytes())
    for bit in range(0, 8 * 24 * 4, 61):
        damaged = bytearray(whole)
        damaged[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checksum of .* does not fit"):
            read_checkpoint(path)


def test_checkpoints_without_checksums_and_of_the_old_format_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(linear().state_dict(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_checkpoint(nn.Linear(6, 4), path) == {}
    torch.save(linear().state_dict(), path, _use_new_zipfile_serialization=False)
    assert load_checkpoint(nn.Linear(6, 4), path) == {}


def test_damaged_histories_are_told(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    monitor = MarginMonitor({"train": DATA, "test": DATA}, path=path)
    for epoch in range(3):
        monitor.epoch(linear(), epoch)
    whole = path.read_bytes()
    for damaged in mutations(whole):
        path.write_bytes(damaged)
        if survives(lambda: read_history(path), path):
            again = MarginMonitor(DATA, path=path)
            assert all(isinstance(split, str) for split in again.splits)
            again.series("train", "average_margin")


@pytest.mark.parametrize(
    "content",
    ["[1]\n", "null\n", '{"epoch": 1}\n', '{"split": 3, "step": 1, "epoch": 1}\n',
     '{"split": "a", "step": "x", "epoch": 1}\n', '{"split": "a", "step": [1], "epoch": 1}\n',
     '{"split": "a", "step": 1}\n', "not JSON\n{}\n", "[" * 100_000 + "\n"],
)  # fmt: skip
def test_json_that_is_no_history_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"history.jsonl, line 1 is no") as told:
        MarginMonitor(DATA, path=path)
    assert "\n" not in str(told.value)


def test_damaged_json_is_told(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, {"a": [1.0, float("nan")], "b": {"c": "text"}})
    assert read_json(path) == {"a": [1.0, "nan"], "b": {"c": "text"}}
    whole = path.read_bytes()
    for damaged in mutations(whole):
        path.write_bytes(damaged)
        survives(lambda: read_json(path), path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        read_json(path)


def foreign(tmp_path: Path) -> dict[str, Callable[[Path], object]]:
    return {
        "resume": lambda path: measure(linear(), DATA, resume=path),
        "checkpoint": read_checkpoint,
        "history": lambda path: MarginMonitor(DATA, path=path),
        "json": read_json,
    }


@pytest.mark.parametrize("what", ["resume", "checkpoint", "history", "json"])
def test_pipes_folders_and_devices_are_refused_without_waiting(tmp_path: Path, what: str) -> None:
    read = foreign(tmp_path)[what]
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder, Path("/dev/zero")):
        with pytest.raises((ValueError, OSError), match=path.name):
            read(path)


def test_nothing_is_written_into_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="no regular file"):
        write_text(pipe, "text")


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    script = f"""
        import os, signal
        from pathlib import Path
        from margin_ext.output.atomic_write import write_atomically
        def killed(file):
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        write_atomically(Path({str(path)!r}), killed)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    other = tmp_path / ".result.json.notes"
    other.write_text("of the user")

    def during(file: object) -> None:
        # A writer that lives is left alone.
        write_text(path, "inner")
        file.write(b"outer")  # type: ignore[attr-defined]

    write_atomically(path, during)
    assert path.read_text() == "outer"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".result.json.notes", "result.json"]


def test_a_history_has_one_process_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    script = f"""
        import time
        from pathlib import Path
        from margin_ext.output.exclusive import hold
        hold(Path({str(path)!r}))
        print("held", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        monitor = MarginMonitor(DATA, path=path)
        with pytest.raises(InUseError, match="another run is writing"):
            monitor.epoch(linear(), 1)
        other.kill()
    time.sleep(0.1)
    hold(path)
    hold(path)
    MarginMonitor(DATA, path=path).epoch(linear(), 1)
    MarginMonitor(DATA, path=path).epoch(linear(), 2)
    assert [record["epoch"] for record in read_history(path)] == [1, 2]


def wrapped(kind: str) -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    own = nn.ModuleDict({"module": net})
    return {
        "plain": lambda: net,
        "data parallel": lambda: nn.DataParallel(net),
        "compiled": lambda: torch.compile(net),
        "averaged": lambda: torch.optim.swa_utils.AveragedModel(net),
        "averaged and compiled": lambda: torch.optim.swa_utils.AveragedModel(torch.compile(net)),  # type: ignore[arg-type]
        "own name": lambda: own,
        "lightning": lambda: nn.ModuleDict({"model": net}),
        "compiled inside": lambda: nn.Sequential(torch.compile(net[0]), net[1], net[2]),  # type: ignore[arg-type]
    }[kind]()


KINDS = [
    "plain", "data parallel", "compiled", "averaged", "averaged and compiled", "own name",
    "lightning", "compiled inside",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("saved", KINDS)
def test_checkpoints_fit_whatever_wraps_the_model(tmp_path: Path, saved: str, target: str) -> None:
    torch.manual_seed(1)
    source = wrapped(saved)
    torch.save({"state_dict": source.state_dict(), "epoch": 2}, tmp_path / "c.pt")
    model = wrapped(target)
    assert load_checkpoint(model, tmp_path / "c.pt") == {"epoch": 2}
    weights = [t for n, t in source.state_dict().items() if n.endswith("weight")]
    loaded = [t for n, t in model.state_dict().items() if n.endswith("weight")]
    assert len(weights) == len(loaded) == 2
    assert all(torch.equal(a, b) for a, b in zip(weights, loaded, strict=True))


@pytest.mark.parametrize(
    ("extra", "named"),
    [(np.float64(0.9), "numpy"), (Path("a"), "pathlib"), (linear(), "Linear"), (print, "print")],
)
def test_a_refused_checkpoint_names_the_class(tmp_path: Path, extra: object, named: str) -> None:
    path = tmp_path / "c.pt"
    for content in ({"state_dict": linear().state_dict(), "extra": extra}, extra):
        torch.save(content, path)
        with pytest.raises(ValueError, match=named) as told:
            read_checkpoint(path)
        assert "c.pt" in str(told.value)
        assert "\n" not in str(told.value)
        assert "\x1b" not in str(told.value)


def test_errors_name_the_file_itself(tmp_path: Path) -> None:
    """The temporary file next to it is nobody's business, and a long name does not exceed it."""
    place = Path("/proc/report.json")
    with pytest.raises(OSError, match=re.escape(f"'{place}'")) as told:
        write_text(place, "x")
    assert told.value.filename == str(place)

    def full(file: IO[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: .*report\.json'") as told:
        write_atomically(tmp_path / "report.json", full)
    assert told.value.errno == errno.ENOSPC
    long = tmp_path / ("a" * 245 + ".json")
    write_text(long, "x")
    assert [file.name for file in tmp_path.iterdir()] == [long.name]
