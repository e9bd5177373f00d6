"""Pure code: no I/O but the catalogue, no clock."""
