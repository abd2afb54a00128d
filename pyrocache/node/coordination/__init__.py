"""Leases and locks. Pure: no I/O and no threads; the clock is injected."""
