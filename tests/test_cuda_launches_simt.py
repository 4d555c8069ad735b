"""How the CUDA kernels are launched: the plan for each shape, and tickets of the reduction."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from backends.simt import BLOCK, REREAD, WARP, RefusedError, Simt, kernels
from hypothesis import given
from hypothesis import strategies as st
from simt_problems import EMULATED, Loss, restored_device  # noqa: F401

pytestmark = EMULATED


def test_what_does_not_exist_is_refused() -> None:
    for p, size, simt in (
        (2, 4097, Simt(WARP)),  # a row too long for a warp
        (3, 20, Simt(BLOCK)),  # general q is read twice
        (2, 20, Simt(REREAD)),  # and nothing else is
        (2, 20, Simt(BLOCK, 8)),  # blocks without a pack
    ):
        with pytest.raises(RefusedError):
            Loss(1, 3, size, p).run(simt)


def test_tickets() -> None:
    """Eager launches take turns; captured ones have counters of their own."""
    module = kernels()
    eager = [module.next_ticket() for _ in range(1100)]
    assert set(eager) == set(range(1024))
    assert all(b == (a + 1) % 1024 for a, b in itertools.pairwise(eager))
    module.device().capturing = True
    captured = [module.next_ticket() for _ in range(50)]
    assert len(set(captured)) == 50
    assert min(captured) >= 1024
    Loss(3, 3, 8).check(Simt())


H200: dict[str, Any] = {
    "multiprocessors": 132,
    "shared_per_block": 227 << 10,
    "shared_per_multiprocessor": 228 << 10,
    "max_cluster": 8,
}


@pytest.mark.parametrize(
    ("row_bytes", "batch", "variant", "cluster", "threads"),
    [
        (784 * 4, 128, WARP, 1, 32),  # MNIST: a warp on every multiprocessor
        (784 * 4, 60_000, WARP, 1, 128),
        (3072 * 4, 128, BLOCK, 1, 256),  # CIFAR
        (3072 * 4, 1024, WARP, 1, 128),
        (3072 * 2, 128, BLOCK, 1, 128),
        (12_288 * 4, 200, BLOCK, 1, 256),
        (12_288 * 4, 1024, BLOCK, 1, 128),
        (150_528 * 4, 128, BLOCK, 8, 256),  # ImageNet
        (150_528 * 4, 1, BLOCK, 8, 256),
        (10_000_000 * 4, 2, BLOCK, 8, 256),
    ],
)
def test_policy_on_an_h200(
    row_bytes: int, batch: int, variant: int, cluster: int, threads: int
) -> None:
    plan = kernels().plan(**H200, batch=batch, row_bytes=row_bytes, classes=10)
    assert (plan.variant, plan.cluster_size, plan.threads) == (variant, cluster, threads)


def test_policy_for_sixteen_bits_and_rows_that_are_read_again() -> None:
    plan = kernels().plan
    rows = {"row_bytes": 12_288 * 2, "batch": 8192, "classes": 10}
    assert plan(**H200, **rows, element_bytes=2).threads == 64
    # Three rows of 48 KB a sample: those of 396 do not fit half of the cache, of 198 they do.
    rows = {"row_bytes": 3 * 12_288 * 4, "batch": 8192, "classes": 0, "pack_bytes": 0}
    assert plan(**H200, **rows).cluster_size == 1
    assert plan(**H200, **rows, rereads=True).cluster_size == 2
    # No cluster is large enough.
    rows["row_bytes"] = 3 * 150_528 * 4
    assert plan(**H200, **rows, rereads=True).cluster_size == 1
    rows["row_bytes"] = 40 << 20
    small = H200 | {"multiprocessors": 1}
    assert plan(**small, **rows, rereads=True).cluster_size == 1


@given(
    shared=st.sampled_from([48, 64, 99, 163, 227]),
    max_cluster=st.sampled_from([1, 2, 4, 8]),
    multiprocessors=st.integers(1, 200),
    batch=st.integers(1, 2**40),
    row_bytes=st.integers(2, 2**34),
    classes=st.integers(0, 100_000),
    pack_bytes=st.sampled_from([0, 1, 2, 16]),
)
def test_every_plan_can_be_launched(
    shared: int,
    max_cluster: int,
    multiprocessors: int,
    batch: int,
    row_bytes: int,
    classes: int,
    pack_bytes: int,
) -> None:
    plan = kernels().plan(
        multiprocessors=multiprocessors,
        shared_per_block=shared << 10,
        shared_per_multiprocessor=(shared + 1) << 10,
        max_cluster=max_cluster,
        batch=batch,
        row_bytes=row_bytes,
        classes=classes,
        pack_bytes=pack_bytes,
    )
    assert plan.shared_bytes + 4096 <= shared << 10
    assert 1 <= plan.cluster_size <= max_cluster
    assert plan.blocks % plan.cluster_size == 0
    assert 1 <= plan.blocks // plan.cluster_size <= min(batch, 4096)
    assert plan.threads in (32, 64, 96, 128, 256)
    kept = -(-(row_bytes // 16) // plan.cluster_size) * pack_bytes
    if plan.variant == WARP:
        assert row_bytes <= 16_384
        assert plan.shared_bytes == -(-kept // 16) * 16 * (plan.threads // 32)
    else:
        # All of the slice, or what there is room for.
        assert plan.shared_bytes in (-(-kept // 16) * 16, plan.shared_bytes // 1024 * 1024)
        assert plan.shared_bytes <= kept + 16
