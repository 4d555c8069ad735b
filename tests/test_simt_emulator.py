"""The emulator of the CUDA execution model: right programs pass it, planted bugs do not."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from simt import toolchain

pytestmark = pytest.mark.skipif(
    toolchain.missing() is not None, reason=toolchain.missing() or "everything is there"
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, ASAN_OPTIONS="detect_leaks=1:detect_stack_use_after_return=0")
    arguments = [str(part) for part in command]
    return subprocess.run(
        arguments, capture_output=True, text=True, check=False, timeout=120, env=environment
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("simt") / "selftest"
    return toolchain.build(toolchain.SIMT / "selftest.cpp", program, "-O1")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("simt") / "selftest_sanitized"
    return toolchain.build(toolchain.SIMT / "selftest.cpp", program, *toolchain.SANITIZE)


def test_conformance(plain: Path) -> None:
    done = run(plain, "conformance")
    assert (done.returncode, done.stdout) == (0, "")


def test_conformance_raises_no_false_alarm_under_sanitizers(sanitized: Path) -> None:
    done = run(sanitized, "conformance")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_fibers_of_other_processors(tmp_path: Path) -> None:
    source = toolchain.SIMT / "fallback.cpp"
    done = run(toolchain.build(source, tmp_path / "fallback", "-O0", "-DSIMT_USE_UCONTEXT"))
    assert (done.returncode, done.stdout) == (0, "")


@dataclass(frozen=True)
class Planted:
    """A bug of the gallery and what catches it.

    In the plain build a wrong program either gives wrong numbers ("wrong", "not repeatable",
    "write outside") or offends a rule that the emulator checks (its error message). `schedules`
    says under which configurations that shows:
      all           every one
      some          depends on which thread runs first, so one schedule alone may miss it
      interleaved   only where several blocks are under way at a time: never in schedules 0 and 1
      poison 0x7e   only where fresh shared memory holds a large number; a NaN drops out of fmax
      none          not seen in the plain build
    `sanitizer` is what AddressSanitizer or UBSan say where they add something: the very line.
    """

    number: int
    name: str
    schedules: str
    messages: tuple[str, ...] = ()
    sanitizer: str | None = None


GALLERY = [
    # one block per row
    Planted(1, "missing __syncthreads", "all", ("wrong",)),
    Planted(2, "read past the end", "all", ("wrong norm",), "heap-buffer-overflow"),
    Planted(3, "half a shuffle mask", "all", ("not in the mask", "is not in its mask")),
    Planted(4, "static overrun", "all", ("outside the arrays",), "use-after-poison"),
    Planted(5, "reduction misses a warp", "all", ("wrong norm",)),
    Planted(6, "uninitialised shared memory", "poison 0x7e", ("wrong largest element",)),
    Planted(7, "shuffle under a condition", "all", ("deadlock",)),
    Planted(8, "re-use without a barrier", "some", ("wrong",)),
    Planted(9, "unaligned vector load", "all", ("not a multiple of 16",)),
    Planted(10, "early return", "all", ("leaves the kernel", "names lanes that")),
    Planted(11, "two barriers", "all", ("divergent barrier",)),
    Planted(12, "narrow shuffle", "all", ("wrong norm",)),
    Planted(13, "write past the end", "all", ("wrong row", "outside"), "heap-buffer-overflow"),
    # the reduction by the last block
    Planted(20, "every block is last", "interleaved", ("wrong total",)),
    Planted(21, "counter not reset", "all", ("wrong total",)),
    Planted(22, "flag without a barrier", "some", ("leaves the kernel", "names lanes that")),
    Planted(23, "counter without atomics", "interleaved", ("wrong total",)),
    Planted(24, "counted before all have written", "interleaved", ("wrong total",)),
    Planted(25, "sum in order of arrival", "some", ("not repeatable",)),
    # one warp per row
    Planted(30, "missing __syncwarp", "all", ("wrong row",)),
    Planted(31, "dynamic overrun", "all", ("outside the arrays",), "use-after-poison"),
    Planted(32, "unaligned shared vector", "none", (), "misaligned address"),
    Planted(33, "lane leaves early", "all", ("leaves the kernel", "names lanes that")),
    # one cluster per row
    Planted(40, "missing first cluster.sync", "all", ("wrong norm",), "use-after-poison"),
    Planted(41, "missing last cluster.sync", "all", ("of the cluster has ended",)),
    Planted(42, "rank out of range", "all", ("but the cluster has 4 blocks",)),
    Planted(43, "one block skips a sync", "all", ("divergent barrier",), "use-after-poison"),
]


def verdicts(program: Path, bug: int) -> dict[tuple[int, int], str]:
    """What was wrong, by (schedule, poison)."""
    done = run(program, "gallery", str(bug))
    assert (done.returncode, done.stderr) == (0, "")
    found = {}
    for line in done.stdout.splitlines():
        schedule, poison, verdict = line.split(" ", 2)
        found[int(schedule), int(poison, 16)] = verdict
    assert len(found) == 15
    return found


def test_the_kernels_without_a_bug_pass(plain: Path) -> None:
    assert set(verdicts(plain, 0).values()) == {"ok"}


@pytest.mark.parametrize("schedule", [0, 4, 5])
def test_sanitizers_pass_the_kernels_without_a_bug(schedule: int, sanitized: Path) -> None:
    done = run(sanitized, "gallery", "0", str(schedule), "0x7e")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{schedule} 0x7e ok\n", "")


@pytest.mark.parametrize("bug", GALLERY, ids=lambda bug: bug.name)
def test_planted_bug_is_caught(bug: Planted, plain: Path) -> None:
    found = verdicts(plain, bug.number)
    caught = {where for where, verdict in found.items() if verdict != "ok"}
    for where in caught:
        assert any(message in found[where] for message in bug.messages), found[where]
    if bug.schedules == "all":
        assert caught == set(found)
    elif bug.schedules == "poison 0x7e":
        assert caught == {where for where in found if where[1] == 0x7E}
    elif bug.schedules == "interleaved":
        assert caught
        assert all(schedule >= 2 for schedule, _ in caught)
    elif bug.schedules == "some":
        assert caught
        assert caught != set(found)
    else:
        assert not caught
        assert bug.sanitizer is not None


@pytest.mark.parametrize("bug", [bug for bug in GALLERY if bug.sanitizer], ids=lambda bug: bug.name)
def test_sanitizers_name_the_line_of_a_planted_bug(bug: Planted, sanitized: Path) -> None:
    done = run(sanitized, "gallery", str(bug.number), "0", "0xff")
    assert done.returncode != 0
    assert str(bug.sanitizer) in done.stderr
    if "Sanitizer" in done.stderr:
        assert "simt: kernel" in done.stderr
        assert "thread (" in done.stderr


def test_the_gallery_is_complete() -> None:
    source = (toolchain.SIMT / "gallery" / "bugs.h").read_text()
    numbers = [int(line.split("=")[1].rstrip(",")) for line in source.splitlines() if " = " in line]
    assert sorted(numbers) == [0, *sorted(bug.number for bug in GALLERY)]


def test_schedule_and_poison_from_the_environment(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMT_SCHEDULE", "3")
    monkeypatch.setenv("SIMT_POISON", "0x7e")
    assert run(plain, "settings").stdout == "3 0x7e\n"
