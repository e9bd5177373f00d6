"""The D-Bus face of migd: it translates and decides nothing."""
