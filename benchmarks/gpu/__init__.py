"""Programs that gpu_check.sh runs on a GPU and under NVIDIA's tools."""
