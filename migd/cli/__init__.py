"""migctl: the command line, a client of the bus like any other."""
