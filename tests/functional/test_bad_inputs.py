"""What does not fit is refused with words that say what was expected and what came."""

from __future__ import annotations

import math

import pytest
import torch
from backends import Backend

from margin_ext.regularizers import Regularizer

Z = torch.zeros(3, 4)
Y = torch.tensor([0, 1, 2])
G = torch.ones(3, 2, 5)


def call(backend: Backend, op: str, **changes):
    arguments = {
        "logit_gap": {"logits": Z, "target": Y},
        "first_order_margin": {"gap": torch.ones(3), "grad": G},
        "dual_direction": {"grad": G},
        "average_margin_loss": {
            "logits": Z,
            "target": Y,
            "grad": G,
            "regularizer": Regularizer.linear(),
        },
    }[op]
    placed = {
        name: backend.place(value)
        if isinstance(value, torch.Tensor) and not value.is_meta
        else value
        for name, value in {**arguments, **changes}.items()
    }
    return getattr(backend.ops, op)(**placed)


LABELS = "target must lie in 0..3 or equal ignore_index = -100, got {} at index 1"
LOGITS = [
    ({"logits": Z[0]}, r"logits must be \[B, C\], got \[4\]"),
    ({"logits": Z[:, :1]}, r"logits must have at least 2 classes, got \[3, 1\]"),
    ({"logits": Z.long()}, "logits must be float16, .* got torch.int64"),
    ({"target": Y.int()}, "target must be int64 class indices, got torch.int32"),
    ({"target": Y.float()}, "target must be int64 class indices, got torch.float32"),
    ({"target": Y[:2]}, r"target must be \[B\] = \[3\] \(logits are \[3, 4\]\), got \[2\]"),
    ({"target": Y[:, None]}, r"target must be \[B\] = \[3\] .*, got \[3, 1\]"),
    ({"nearest": Y[:2] + 1}, r"nearest must be .*\[3\], got \[2\]"),
]
# Read before the kernel on CPU only; on CUDA with validate=True (see test_validate_on_cuda).
LABEL_VALUES = [
    ({"target": torch.tensor([0, 4, 2])}, LABELS.format(4)),
    ({"target": torch.tensor([0, -1, 2])}, LABELS.format(-1)),
    ({"target": torch.tensor([0, 2**40, 2])}, LABELS.format(2**40)),
    ({"nearest": torch.tensor([1, 4, 3])}, "nearest must lie in 0..3, got 4 at index 1"),
    ({"nearest": torch.tensor([1, -1, 3])}, "nearest must lie in 0..3, got -1 at index 1"),
    ({"nearest": Y}, "nearest must differ from target in every sample"),
]
GRADS = [
    ({"grad": G[:, 0, 0]}, r"grad must be \[B, ...\] with B = 3, got \[3\]"),
    ({"grad": torch.tensor(1.0)}, r"grad must be \[B, ...\].*, got \[\]"),
    ({"grad": G[:, :, :0]}, r"grad must have at least one element a sample, got \[3, 2, 0\]"),
    ({"grad": G.int()}, "grad must be float16, .* got torch.int32"),
    ({"p": 0.5}, "p must be a number >= 1"),
    ({"p": math.nan}, "p must be a number >= 1"),
    ({"p": "two"}, "p must be a number >= 1 or \"inf\", got 'two'"),
    ({"input_std": [1.0, 2.0, 3.0]}, r"input_std must .* \[2\] for inputs \[3, 2, 5\], got \[3\]"),
    ({"input_std": torch.ones(2, 1)}, r"input_std must .*, got \[2, 1\]"),
]
EPS = [({"eps": eps}, f"eps must be above 0, got {eps}") for eps in (0, -1.0, math.nan)]
SETTINGS = [
    ({"weight": torch.ones(3)}, r"class_weight must be \[4\], got \[3\]"),
    ({"mu": -1.0}, "mu must be at least 0, got -1.0"),
    ({"mu": math.nan}, "mu must be at least 0, got nan"),
    ({"label_smoothing": 1.5}, r"label_smoothing must lie in 0..1, got 1.5"),
    ({"label_smoothing": math.nan}, r"label_smoothing must lie in 0..1, got nan"),
    ({"reduction": "average"}, "reduction must be one of none, mean, sum, got 'average'"),
    ({"grad": G[:2]}, r"grad must be \[B, ...\] with B = 3, got \[2, 2, 5\]"),
]
CASES = [
    *(("logit_gap", *case) for case in LOGITS + LABEL_VALUES),
    *(("first_order_margin", *case) for case in GRADS + EPS),
    ("first_order_margin", {"gap": torch.ones(2)}, r"gap must be .*\[3\], got \[2\]"),
    *(("dual_direction", *case) for case in GRADS),
    ("dual_direction", {"factor": torch.ones(4)}, r"factor must be .*\[3\], got \[4\]"),
    ("dual_direction", {"base": G[:2]}, r"base must have the shape .*, got \[2, 2, 5\]"),
    ("dual_direction", {"base": G.double()}, "base must .* torch.float32, got .* torch.float64"),
    *(("average_margin_loss", *case) for case in LOGITS + LABEL_VALUES + GRADS + EPS + SETTINGS),
]


@pytest.mark.parametrize(
    ("op", "changes", "message"), CASES, ids=[str(i) for i in range(len(CASES))]
)
def test_refused(backend, op, changes, message):
    if backend.device == "cuda" and any(changes is of_labels for of_labels, _ in LABEL_VALUES):
        pytest.skip("labels are not read on CUDA")
    with pytest.raises((ValueError, TypeError), match=message):
        call(backend, op, **changes)


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("logit_gap", "target"),
        ("logit_gap", "nearest"),
        ("first_order_margin", "gap"),
        ("dual_direction", "factor"),
        ("dual_direction", "base"),
        ("average_margin_loss", "target"),
        ("average_margin_loss", "grad"),
        ("average_margin_loss", "nearest"),
        ("average_margin_loss", "weight"),
    ],
)
def test_devices_do_not_mix(backend, op, name):
    """Memory of another device would be read as if it were this one's."""
    values = {"target": Y, "nearest": (Y + 1) % 4, "grad": G, "base": G, "weight": torch.ones(4)}
    elsewhere = values.get(name, torch.ones(3)).to("meta")
    device = backend.place(Z).device
    with pytest.raises(
        ValueError, match=rf"{name} must be on the device of \w+, {device}, got meta"
    ):
        call(backend, op, **{name: elsewhere})


def test_bad_labels_of_a_large_batch_are_found(backend):
    """The last of many, past every vector and group."""
    if backend.device == "cuda":
        pytest.skip("labels are not read on CUDA")
    target = torch.zeros(5000, dtype=torch.int64)
    target[-1] = 7
    with pytest.raises(ValueError, match=r"got 7 at index 4999"):
        backend.ops.logit_gap(torch.zeros(5000, 7), target)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_bad_labels_on_cuda_poison_their_sample_or_are_refused():
    from margin_ext import functional

    logits, target = Z.cuda(), torch.tensor([0, 4, 2], device="cuda")
    found = functional.logit_gap(logits, target)
    assert found.gap.isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match="got 4 at index 1"):
        functional.logit_gap(logits, target, validate=True)
