"""A model of the CUDA kernels' speed from nvcc's machine code, for machines without a GPU."""
