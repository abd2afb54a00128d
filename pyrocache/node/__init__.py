"""The node process: the store, the remote object, the life cycle. Never unpickles and never uses the client package."""
