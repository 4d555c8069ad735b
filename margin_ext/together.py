"""Work of several ranks that ends on all of them when it fails on one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from margin_ext.ranks import PATIENCE

if TYPE_CHECKING:
    from types import TracebackType

    from margin_ext.ranks import Ranks

__all__ = ["RankFailedError", "Together"]

# Seconds between two looks at who has arrived: at first, and at most.
_FIRST_LOOK, _LATER_LOOK = 0.002, 0.25

# How often each process group has worked together, by its name: keys in the store are used once.
_MEETINGS: dict[str, int] = {}


class RankFailedError(RuntimeError):
    """Another rank failed, so this one cannot go on.

    Example:
        >>> from margin_ext.ranks import ALONE
        >>> try:
        ...     with Together(ALONE) as meeting:  # alone, so no other rank can fail
        ...         found = meeting.exchange("ready")
        ... except RankFailedError as error:
        ...     print(f"another rank stopped: {error}")
        >>> found
        ['ready']
    """


class _Word(NamedTuple):
    """What a rank brings to an exchange."""

    problem: str | None
    value: Any = None


class Together:
    """A frame in which an error of one rank raises on all, so that none waits forever.

    The rank itself raises its error, and the others a :class:`RankFailedError` that repeats it.
    All ranks have to enter the frame and to call `exchange` equally often. A rank that is killed
    tells nothing; whoever started the processes, such as torchrun, ends the others.

    Example:
        >>> from margin_ext.ranks import ALONE
        >>> with Together(ALONE) as meeting:
        ...     meeting.exchange(3)
        [3]
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._board = _Board(ranks) if ranks.joined else None
        # Whether the ranks have learned of an error, after which they meet no more.
        self._over = False

    def __enter__(self) -> Together:
        return self

    def check(self) -> None:
        """Raise RankFailedError where another rank has failed by now. It waits for none.

        Call it between two pieces of work, so that ranks do not go on in vain for hours.
        """
        if self._board is not None and self._board.told():
            self.exchange()

    def exchange(self, value: Any = None) -> list[Any]:
        """The values of all ranks, by rank.

        Raises:
            RankFailedError: Another rank has failed, here or before.
        """
        if self._board is None:
            return [value]
        return self._meet(self._board, _Word(None, value))

    def _meet(self, board: _Board, word: _Word) -> list[Any]:
        try:
            board.wait()
            words = [_Word(*one) for one in self.ranks.gather(tuple(word))]
        except BaseException:
            self._over = True
            raise
        failed = [(rank, one.problem) for rank, one in enumerate(words) if one.problem is not None]
        if failed:
            self._over = True
            raise RankFailedError("; ".join(f"rank {rank} failed: {text}" for rank, text in failed))
        return [one.value for one in words]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._board is None or self._over:
            return
        if error is None:
            self._meet(self._board, _Word(None))
        elif isinstance(error, Exception):
            self._board.tell("failed")
            try:
                self._meet(self._board, _Word(f"{type(error).__name__}: {error}"))
            except RankFailedError:
                return
        else:  # an interruption waits for nobody
            self._board.tell(f"{type(error).__name__} on rank {self.ranks.rank}")


class _Board:
    """Short notices between the ranks in the store of their process group.

    Collectives end after the process group's timeout, minutes by default, and ranks may need
    hours until they meet. The store has no such limit. Where torch has no such store any more,
    ranks learn of errors when they meet.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.size = ranks.size
        self._arrivals = 0
        name, store = _store(ranks.group)
        _MEETINGS[name] = _MEETINGS.get(name, 0) + 1
        self._store: Any = None
        if store is not None:
            prefix = f"margin_ext/{_MEETINGS[name]}"
            self._store = torch.distributed.distributed_c10d.PrefixStore(prefix, store)

    def tell(self, text: str) -> None:
        """Tell the others that this rank has failed ("failed"), or else why it is gone."""
        if self._store is not None:
            self._store.set("failed" if text == "failed" else "gone", text)

    def told(self) -> bool:
        """Whether a rank has failed, or is gone."""
        return self._store is not None and (
            self._store.check(["failed"]) or self._store.check(["gone"])
        )

    def wait(self) -> None:
        """Wait until all ranks have come here.

        Raises:
            RankFailedError: One is gone, or did not come for very long.
        """
        if self._store is None:
            return
        self._arrivals += 1
        wanted = self._arrivals * self.size
        arrived = self._store.add("arrived", 1)
        pause, start = _FIRST_LOOK, time.monotonic()
        while arrived < wanted:
            if self._store.check(["gone"]):
                raise RankFailedError(f"a rank is gone: {self._store.get('gone').decode()}")
            if time.monotonic() - start > PATIENCE.total_seconds():
                raise RankFailedError(
                    f"only {arrived - wanted + self.size} of {self.size} ranks came within "
                    f"{PATIENCE}"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LATER_LOOK)
            arrived = self._store.add("arrived", 0)


def _store(group: Any) -> tuple[str, Any]:
    """Name and store of a process group; torch has no public way to the store."""
    internals = torch.distributed.distributed_c10d
    if group is None:
        find = getattr(internals, "_get_default_store", None)
        return "all", None if find is None else find()
    find = getattr(internals, "_get_process_group_store", None)
    return str(group.group_name), None if find is None else find(group)
