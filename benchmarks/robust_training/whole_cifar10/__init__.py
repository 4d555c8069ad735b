"""Whole CIFAR-10 with networks of the usual size: ready to run on GPUs, not run yet."""
