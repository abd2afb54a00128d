"""Which node gets a request, and when it is tried again."""
