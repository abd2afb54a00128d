"""Request routing: the choice of a node for each request, and the retry policy."""
