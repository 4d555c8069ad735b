"""Numbers that were computed once, by hand or by the authors' published code."""

from __future__ import annotations

import torch

LOGITS = torch.tensor([[2, 0.5, -1], [0, 1, 3], [1, 4, 0], [0.3, 0.3, 0.1]], dtype=torch.float64)
TARGET = torch.tensor([0, 1, 0, 1])
GAPS = [1.5, -2.0, -3.0, 0.0]
RUNNERS_UP = [1, 2, 1, 0]
CROSS_ENTROPY = 1.6283319790100212

# The authors' loss, CE + 0.1 * mean of clamp(-gap, 0, tau), for each tau.
AUTHORS_LOSS = {1.0: 1.6783319790100213, 2.0: 1.7283319790100213, 5.0: 1.7533319790100212}
AUTHORS_REGULARIZER = {1.0: 0.5, 2.0: 1.0, 5.0: 1.25}

# Gradient of the loss at tau = 2 by the logits of sample 1, whose gap is -tau: the end of the ramp
# still pushes.
AUTHORS_GRADIENT_OF_SAMPLE_1 = [0.010502516533516512, -0.24645120015385139, 0.23594868362033486]
