"""The trace laboratory: replay a trace against a cluster, or compare eviction policies in a simulation."""
