# SPDX-License-Identifier: Apache-2.0
"""Simulated GPUs below NVML: a libnvidia-ml.so.1 for hosts without. Knows nothing of migd."""
