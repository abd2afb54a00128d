"""The detached cluster of a user: one that no program owns, found again or started by `pyrocache.connect`."""
