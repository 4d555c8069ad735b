"""Programs that gpu_check.sh runs under NVIDIA's tools."""
