"""The limits and constants that both ends of the wire know. Pure."""

from __future__ import annotations

MAX_KEY_BYTES = 64 * 1024
"""Length of the longest encoded key, its namespace included."""

MAX_BATCH = 1000
"""Keys or entries in one message; more go into further messages."""

BATCH_BYTES = 4 * 2**20
"""Bytes of entries after which a batch is continued in a further message."""

MAX_TAGS = 64
"""Tags of one entry."""

MAX_TAG_BYTES = 2048
"""Length of the longest tag, its namespace included."""

NO_VIEW = 0
"""As a view id: of no view; such a request is not refused for its view."""

KEEP_TTL = -1
"""As a TTL: the one that the entry has."""

LARGE_BYTES = 64 * 1024
"""Length from which a message or a binary value in it is kept apart, instead of joined and copied."""

MOST_SECONDS = 86400.0
"""Of a lease, a lock's time to live, or a wait; longer ones are cut."""
