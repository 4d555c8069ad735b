"""Distance attacks of Foolbox on the same model, as a second opinion (extra ``attacks``).

Foolbox, because its minimum-distance attacks run in batches on a plain module, with the data's box.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from margin_ext.attacks.minimum_distance import NearestAdversarial
from margin_ext.attacks.pgd import check_ball

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["foolbox_adversarial"]


def foolbox_adversarial(
    model: nn.Module,
    inputs: Tensor,
    label: Tensor,
    *,
    p: float = 2,
    steps: int = 300,
    data_range: tuple[float, float],
) -> NearestAdversarial:
    """The nearer of Foolbox's attacks: DDN and DeepFool for l2, FMN for linf.

    Args:
        model: In eval mode.
        inputs: [B, ...], inside data_range.
        label: [B].
        p: 2 or infinity.
        steps: Of DDN and FMN.
        data_range: Lowest and highest value.

    Raises:
        ImportError: Foolbox is not installed.
    """
    check_ball(p, 0.0)
    try:
        import foolbox
    except ImportError as error:
        raise ImportError(
            "further attacks need foolbox: pip install 'margin_ext[attacks]'"
        ) from error
    attacks = (
        [foolbox.attacks.LInfFMNAttack(steps=steps)]
        if math.isinf(p)
        else [foolbox.attacks.DDNAttack(steps=steps), foolbox.attacks.L2DeepFoolAttack()]
    )
    wrapped = foolbox.PyTorchModel(model, bounds=data_range, device=inputs.device)
    distance = torch.full(label.shape, math.inf, dtype=inputs.dtype, device=inputs.device)
    point = inputs.clone()
    for attack in attacks:
        _, found, success = attack(wrapped, inputs, label, epsilons=None)
        away = torch.linalg.vector_norm((found - inputs).flatten(1), p, dim=1)
        nearer = success & (away < distance)
        distance[nearer] = away[nearer]
        point[nearer] = found[nearer].detach()
    return NearestAdversarial(distance, point)
