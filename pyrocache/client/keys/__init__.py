"""Any key to canonical bytes and back. Pure."""
