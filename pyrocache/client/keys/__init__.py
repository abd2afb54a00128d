"""Any key to canonical bytes and back. Pure: no I/O, no thread. `encoding` is the way in and out."""
