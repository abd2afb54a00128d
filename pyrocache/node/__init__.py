"""What runs in a node process. Nothing here ever reaches pickle or the client package."""
