"""The same random numbers in several passes, so that dropout draws the same masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["RandomState"]


class RandomState:
    """The state of the generators of the CPU and of the devices that a pass runs on."""

    def __init__(self, inputs: Tensor, model: object) -> None:
        """Take the state as it is now."""
        devices = {inputs.device}
        if isinstance(model, nn.Module):
            devices.update(parameter.device for parameter in model.parameters())
        self._devices = [device for device in devices if device.type not in ("cpu", "meta")]
        self._state = self._read()

    def _read(self) -> list[Tensor]:
        of_devices = [torch.get_device_module(d).get_rng_state(d) for d in self._devices]
        return [torch.get_rng_state(), *of_devices]

    def _write(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            torch.get_device_module(device).set_rng_state(state, device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Go back to the state taken; afterwards the generators stand where they stood before."""
        now = self._read()
        self._write(self._state)
        try:
            yield
        finally:
            self._write(now)
