"""Fuzzing: what reads what others wrote is given inputs that nobody would write."""
