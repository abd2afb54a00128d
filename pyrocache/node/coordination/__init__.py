"""Leases and locks. Pure."""
