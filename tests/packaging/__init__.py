"""The packages: what they hold, and what installing and removing them does to a host."""
