"""The entries of one node. Pure."""
