"""What runs in the user's process: the client, its keys, values and connections."""
