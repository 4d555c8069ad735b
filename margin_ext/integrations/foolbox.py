"""Models between margin_ext and Foolbox (extra ``attacks``).

The other direction for attacks, Foolbox's as bounds of a measurement, is
:class:`margin_ext.bounds.FoolboxDistance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from margin_ext.integrations.pixel_model import PixelModel
from margin_ext.integrations.required import required

if TYPE_CHECKING:
    from collections.abc import Sequence

    import foolbox

__all__ = ["from_foolbox", "to_foolbox"]


def to_foolbox(
    model: nn.Module,
    *,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    data_range: tuple[float, float] = (0.0, 1.0),
    device: Any = None,
) -> foolbox.PyTorchModel:
    """The model for Foolbox's attacks, in pixels.

    Args:
        model: In eval mode; Foolbox warns otherwise.
        mean: What the loader subtracts; give it with ``std`` or not at all.
        std: What the loader divides by.
        data_range: Lowest and highest pixel value.
        device: Where the model is; None: as Foolbox finds it.

    Example:
        >>> pixels = to_foolbox(nn.Flatten().eval(), mean=0.5, std=0.25, device="cpu")
        >>> pixels(torch.ones(1, 1, 1, 2))
        tensor([[2., 2.]])
    """
    if (mean is None) != (std is None):
        raise ValueError("give mean and std, or neither")
    pixels = model if mean is None or std is None else PixelModel(model, mean=mean, std=std)
    library = required("foolbox", "attacks")
    return library.PyTorchModel(pixels.train(model.training), bounds=data_range, device=device)


class _FoolboxModule(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.foolbox_model = model
        # Registered, so that a measurement finds its device, puts it into eval mode and so on.
        self.module = getattr(model, "_model", None)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.foolbox_model(inputs)
        return logits


def from_foolbox(model: Any) -> nn.Module:
    """A Foolbox model, with its preprocessing, as a module for :func:`margin_ext.measure`.

    Its inputs are Foolbox's: give ``data_range=tuple(model.bounds)`` to the measurement, and no
    ``input_std``.

    Raises:
        TypeError: It is not a ``foolbox.PyTorchModel``.

    Example:
        >>> pixels = to_foolbox(nn.Flatten().eval(), device="cpu")
        >>> from_foolbox(pixels)(torch.ones(1, 1, 1, 2))
        tensor([[1., 1.]])
    """
    library = required("foolbox", "attacks")
    if not isinstance(model, library.PyTorchModel):
        raise TypeError(f"from_foolbox takes a foolbox.PyTorchModel, got {type(model).__name__}")
    return _FoolboxModule(model)
