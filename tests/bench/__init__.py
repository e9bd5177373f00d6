"""What it costs: `make bench`. Not run by pytest; a figure is no verdict."""
