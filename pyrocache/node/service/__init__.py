"""`CacheNode`, the remote object, and its parts."""
