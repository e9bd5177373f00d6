"""What takes long to be seen: `make soak`, and `make idle`."""
