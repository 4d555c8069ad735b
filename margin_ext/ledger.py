"""``MarginLedger``: one account per training sample, kept over the whole training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from margin_ext.output.atomic_write import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MarginLedger"]

_VERSION = 1
# What the values of several ranks add up to; "first" and "last" belong to the rank that saw them.
_SUMS = ("count", "skipped", "total", "area", "forgotten")
_ENDS = ("first", "last")


class MarginLedger:
    """The history of every training sample's gap, summed up on the device.

    A sample whose label is wrong is learnt late or never, so its gap, averaged over the training,
    is low ("area under the margin", Pleiss et al., arXiv 2001.10528). An easy sample is learnt
    once; a hard one is learnt and forgotten again ("forgetting events", Toneva et al., arXiv
    1812.05159).

    Give it the raw gap (``out.gap`` of :meth:`AverageMarginLoss.run`, or
    :func:`margin_ext.logit_gap`) rather than the margin, which divides the gap by the norm of its
    gradient: ranked by margins, more wrong labels were missed. docs/tasks/label-errors.md has
    figures.

    Nothing here waits for a GPU until a result is read or saved. It takes 56 bytes a sample.

    Attributes:
        count: Values recorded for each sample, int64 [n].
        skipped: Values that were not finite and were left out, int64 [n].
        first: The first value, float64 [n]; NaN where there is none.
        last: The latest value, float64 [n]; NaN where there is none.
        forgotten: Forgetting events: how often a value above 0 was followed by one at or below 0,
            int64 [n].

    Example:
        >>> import torch
        >>> from margin_ext import MarginLedger, logit_gap
        >>> ledger = MarginLedger(3)
        >>> for logits in ([[2.0, 0.0], [0.0, 1.0]], [[4.0, 0.0], [3.0, 0.0]]):
        ...     gap = logit_gap(torch.tensor(logits), torch.tensor([0, 1])).gap
        ...     ledger.update(torch.tensor([0, 2]), gap)
        >>> ledger.average
        tensor([ 3., nan, -1.], dtype=torch.float64)
        >>> ledger.forgotten
        tensor([0, 0, 1])
        >>> ledger.area
        tensor([ 3., nan, -1.], dtype=torch.float64)
        >>> ledger.scores(missing=0.5).round(2)  # the lower, the more doubtful the label
        array([0.95, 0.5 , 0.27])
        >>> MarginLedger.load(ledger.save("ledger.pt"))  # doctest: +SKIP
    """

    def __init__(self, n: int, *, device: torch.device | str | None = None) -> None:
        """Open an account for each of the samples 0 to n - 1.

        Args:
            n: Number of samples in the training set.
            device: Where the accounts are kept; the values of `update` must come from there. None:
                the device of the first values.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self._n = n
        self._open(torch.device("cpu" if device is None else device))
        self._follow_first = device is None
        self._synchronized: dict[str, Tensor] | None = None

    def _open(self, device: torch.device) -> None:
        def full(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.full((self._n,), value, dtype=dtype, device=device)

        self.count = full(0, torch.int64)
        self.skipped = full(0, torch.int64)
        self.forgotten = full(0, torch.int64)
        self._total = full(0.0)
        self._area = full(0.0)
        self.first = full(torch.nan)
        self.last = full(torch.nan)

    def __len__(self) -> int:
        return self._n

    def update(self, index: Tensor, value: Tensor) -> None:
        """Record one value for each sample of a batch.

        Args:
            index: Which samples, int64 [B], each at most once: the dataset has to give the number
                of a sample with it.
            value: Their gaps or margins, floating [B]. A value that is not finite is left out and
                counted in ``skipped``.

        Raises:
            ValueError: Shapes do not fit, or (on the CPU) an index is out of range or stands twice.
            TypeError: ``index`` is not integer or ``value`` is not floating.
        """
        self._check(index, value)
        if self._follow_first:
            self._follow_first = False
            if value.device != self.count.device:
                self._open(value.device)
        if value.device != self.count.device:
            raise ValueError(
                f"the ledger is on {self.count.device} and the values are on {value.device}: make "
                "it with device= of the training"
            )
        at = index.to(self.count.device, torch.int64, non_blocking=True)
        new = value.detach().to(torch.float64)
        finite = new.isfinite()
        self.skipped.index_add_(0, at, (~finite).long())
        self.count.index_add_(0, at, finite.long())
        self._total.index_add_(0, at, torch.where(finite, new, 0.0))
        first, previous = self.first[at], self.last[at]
        # Comparisons with NaN are false, and sums with it are left out: nothing was there before.
        self.forgotten.index_add_(0, at, ((previous > 0) & (new <= 0) & finite).long())
        trapezoid = (previous + new) / 2
        self._area.index_add_(0, at, torch.where(trapezoid.isfinite(), trapezoid, 0.0))
        self.first[at] = torch.where(first.isnan() & finite, new, first)
        self.last[at] = torch.where(finite, new, previous)

    def _check(self, index: Tensor, value: Tensor) -> None:
        if index.dtype.is_floating_point or index.dtype.is_complex or index.dtype == torch.bool:
            raise TypeError(f"index must hold integers, got {index.dtype}")
        if not value.dtype.is_floating_point:
            raise TypeError(f"value must be floating, got {value.dtype}")
        if index.dim() != 1 or index.shape != value.shape:
            raise ValueError(
                "index and value must both be [B], got shapes "
                f"{list(index.shape)} and {list(value.shape)}"
            )
        if index.device.type == "cpu" and index.numel():
            low, high = index.aminmax()
            if low < 0 or high >= self._n:
                raise ValueError(
                    f"index must lie in [0, {self._n - 1}], got {int(low)} to {int(high)}"
                )
            if index.unique().numel() < index.numel():
                raise ValueError(
                    "a sample stands twice in index: update with each of them by itself"
                )

    @property
    def average(self) -> Tensor:
        """The mean of each sample's values, float64 [n]; NaN for a sample without values."""
        return self._total / self.count

    @property
    def area(self) -> Tensor:
        """The area under the curve of each sample's values, float64 [n].

        By trapezoids, with a step of 1 between one value and the next; 0 for a sample with one
        value, NaN for a sample without.
        """
        return torch.where(self.count > 0, self._area, torch.nan)

    def scores(self, *, missing: float | None = None) -> NDArray[np.float64]:
        """Label quality in [0, 1], the lower the worse, as cleanlab's ranking functions take it.

        It is the sigmoid of the average: 0.5 where the label and its strongest rival were as
        likely as each other over the training. ``cleanlab.rank.find_top_issues(ledger.scores())``
        gives the indices of the worst.

        Args:
            missing: The score of samples without values; None: there may be none.

        Returns:
            float64 [n], on the CPU (this waits for a GPU).
        """
        average = self.average.cpu()
        absent = average.isnan()
        if missing is None and bool(absent.any()):
            raise ValueError(
                f"{int(absent.sum())} of {self._n} samples have no value yet, the first is "
                f"{int(absent.nonzero()[0])}: train for an epoch over all of them, or say with "
                "missing= what their score is"
            )
        score: NDArray[np.float64] = average.sigmoid().masked_fill(absent, missing or 0.0).numpy()
        return score

    def synchronize(self, group: distributed.ProcessGroup | None = None) -> None:
        """Join the accounts of all ranks, so that every rank has them all.

        Call it on every rank after each epoch. In between, each sample may be seen by one rank
        only, as DistributedSampler does it: averages are right in any case, and forgetting events
        and areas then as well. Save after it, and let every rank load that one file. It makes
        eight all-reduces of n numbers.
        """
        before = self._synchronized or MarginLedger(self._n, device=self.count.device)._tensors()
        now = self._tensors()
        seen = (now["count"] > before["count"]).to(torch.float64)
        ranks = seen.clone()
        distributed.all_reduce(ranks, group=group)
        for name in _SUMS:
            change = now[name] - before[name]
            distributed.all_reduce(change, group=group)
            now[name].copy_(before[name] + change)
        for name in _ENDS:
            mine = torch.where(seen > 0, now[name], 0.0)
            distributed.all_reduce(mine, group=group)
            now[name].copy_(torch.where(ranks > 0, mine / ranks, before[name]))
        self._synchronized = {name: tensor.clone() for name, tensor in now.items()}

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "count": self.count,
            "skipped": self.skipped,
            "forgotten": self.forgotten,
            "total": self._total,
            "area": self._area,
            "first": self.first,
            "last": self.last,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on; tensors are not copied."""
        return {"version": _VERSION, **self._tensors()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state, onto this ledger's device.

        Raises:
            ValueError: It is of another version or of another number of samples.
        """
        if state.get("version") != _VERSION:
            raise ValueError(
                f"this is no ledger of version {_VERSION}: its version is {state.get('version')}"
            )
        mine = self._tensors()
        if missing := mine.keys() - state.keys():
            raise ValueError(f"the state lacks {', '.join(sorted(missing))}")
        for name, tensor in mine.items():
            if state[name].shape != tensor.shape:
                raise ValueError(
                    f"the state is of {state[name].shape[0]} samples, and this ledger of {self._n}"
                )
        if self._follow_first:
            self._open(state["count"].device)
            self._follow_first = False
            mine = self._tensors()
        for name, tensor in mine.items():
            tensor.copy_(state[name])
        # Every rank has loaded the same: it must not be added up again.
        self._synchronized = {name: tensor.clone() for name, tensor in mine.items()}

    def save(self, path: str | Path) -> Path:
        """Write the ledger atomically; `load` reads it. Waits for a GPU."""
        path = Path(path)
        state = {
            name: value.cpu() if isinstance(value, Tensor) else value
            for name, value in self.state_dict().items()
        }
        write_atomically(path, lambda file: torch.save(state, file))
        return path

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> MarginLedger:
        """Read a ledger that `save` wrote, and go on with it on ``device``."""
        state = torch.load(Path(path), map_location="cpu", weights_only=True)
        ledger = cls(max(1, int(state["count"].shape[0])), device=device)
        ledger.load_state_dict(state)
        return ledger
