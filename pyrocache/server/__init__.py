"""Incoming connections, for nodes and the name server."""
