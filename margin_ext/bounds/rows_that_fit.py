"""How many linear forms certified bounds can carry backward within a given memory."""

from __future__ import annotations

from collections.abc import Sequence

from margin_ext.bounds.relaxed_network import Stage

__all__ = ["rows_that_fit"]

_BYTES = 8
# Tensors of the size of the forms that are alive at once: going backward, and in gradient ascent,
# which keeps what autograd needs.
_BACKWARD, _ASCENT = 24, 40


def rows_that_fit(stages: Sequence[Stage], rows: int, together: int, memory: int | None) -> int:
    """At most ``rows`` forms a pass, fewer where the memory is limited.

    Args:
        stages: The network.
        rows: The largest number that is wanted.
        together: Forms that gradient ascent treats together and that cannot be split up.
        memory: Bytes; None: not limited.

    Raises:
        ValueError: The network and the forms that cannot be split up do not fit.
    """
    if memory is None:
        return rows
    layers = [layer for stage in stages for layer in stage.layers]
    sizes = [max(layer.given.numel(), layer.gives.numel()) for layer in layers]
    always = sum(layer.bytes for layer in layers) + 4 * _BYTES * sum(sizes)
    at_once = together * _ASCENT * _BYTES * (sum(sizes[1:]) or sizes[0])
    a_row = _BACKWARD * _BYTES * max(sizes)
    least = always + max(at_once, 2 * a_row)
    if least > memory:
        raise ValueError(
            f"max_memory of {memory} bytes does not hold the certified bounds of this network, "
            f"which take {least}: {always} for its float64 copy, "
            f"{at_once} for {together} forms with gradients"
        )
    return int(max(2, min(rows, (memory - always) // a_row)))
