"""Canonical encoding of keys to bytes, and decoding. `encoding` is the entry point; nothing here does I/O."""
