"""NVML, kept in a process of its own: the worker that holds it, and the daemon's client of it."""
