"""The entries of one node. Pure: no I/O and no threads; the clock is injected."""
