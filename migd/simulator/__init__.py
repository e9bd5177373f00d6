"""Simulated GPUs below NVML: a libnvidia-ml.so.1 for hosts that have none. Knows nothing of migd."""
