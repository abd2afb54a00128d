"""Exhaustive exploration of small clusters."""
