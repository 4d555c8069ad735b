"""What the trainings on whole CIFAR-10 cost, from counted operations.

python -m benchmarks.robust_training.whole_cifar10.costs
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.robust_training.whole_cifar10.networks import resnet18, wide_resnet_34_10

IMAGES, EPOCHS, PER_SECOND = 45_000, 100, 100e12
# Forward passes' worth of operations for each image and step. A backward pass to the inputs costs
# about as much as a forward pass, one to the weights too as much again.
PASSES = {
    "plain": 3,
    "adversarial training, 1 step": 5,
    "adversarial training, 2 steps": 7,
    "adversarial training, 10 steps": 23,
    "true margin, 1 projection": 3 + 2 + 3,
    "true margin, 2 projections": 3 + 4 + 3,
}


def forward_operations(network: torch.nn.Module) -> float:
    """Floating-point operations of one forward pass of one image."""
    network = network.to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32, device="meta"))
    return float(counter.get_total_flops())


def table() -> str:
    operations = {
        "ResNet-18": forward_operations(resnet18()),
        "WideResNet-34-10": forward_operations(wide_resnet_34_10()),
    }
    heads = [f"{name} (F = {each / 1e9:.2f} GFLOP)" for name, each in operations.items()]
    lines = [f"| training | F a step | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for method, passes in PASSES.items():
        hours = [passes * f * IMAGES * EPOCHS / PER_SECOND / 3600 for f in operations.values()]
        lines.append(f"| {method} | {passes} | {' | '.join(f'{h:.2f} h' for h in hours)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
