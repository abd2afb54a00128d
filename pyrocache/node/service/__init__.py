"""`CacheNode`, the remote object, and what it is composed of."""
