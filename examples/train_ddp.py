"""Training under DistributedDataParallel; every line about margins would be there without it.

torchrun --nproc-per-node 2 examples/train_ddp.py            # CPU, gloo
torchrun --nproc-per-node 8 examples/train_ddp.py --device cuda
"""

from __future__ import annotations

import argparse
import os

import torch
from small_images import small_images
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from margin_ext import AverageMarginLoss
from margin_ext.distributed import reduce_statistics


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(400, 10),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--gradient", default="finite_difference")
    arguments = parser.parse_args()

    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if arguments.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    torch.manual_seed(0)
    # Not static_graph=True: the criterion takes a gradient inside the step, and would refuse it.
    model = DistributedDataParallel(make_model().to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = AverageMarginLoss(p=2, mu=1.0, tau=3.0, gradient=arguments.gradient).to(device)

    data = small_images(arguments.images)
    sampler: DistributedSampler[object] = DistributedSampler(data)
    for epoch in range(arguments.epochs):
        sampler.set_epoch(epoch)
        for inputs, target in DataLoader(data, batch_size=32, sampler=sampler):
            optimizer.zero_grad()
            out = criterion.run(model, inputs.to(device), target.to(device))
            out.loss.backward()
            optimizer.step()
        statistics = reduce_statistics(out.statistics)  # of the last batch, over all ranks
        if distributed.get_rank() == 0:
            print(
                f"epoch {epoch + 1}: accuracy {float(statistics.accuracy):.3f}, "
                f"average margin {float(statistics.average_margin):.3f}, "
                f"minimum margin {float(statistics.minimum_margin):.3f}"
            )
    weight = next(model.parameters()).detach().clone()
    mean = weight.clone()
    distributed.all_reduce(mean)
    if not torch.allclose(mean / distributed.get_world_size(), weight):
        raise RuntimeError("the ranks have drifted apart")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
