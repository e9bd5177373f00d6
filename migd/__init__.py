"""Keeps the MIG configuration of a bare GPU host."""

__version__ = "0.1.0"
