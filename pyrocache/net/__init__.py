"""Outgoing connections, for clients and nodes."""
