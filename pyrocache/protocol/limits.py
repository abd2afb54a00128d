"""Limits and constants that both ends of a connection know. Pure."""

from __future__ import annotations

MAX_KEY_BYTES = 64 * 1024
"""The longest encoded key, its namespace included."""

MAX_BATCH = 1000
"""Keys or entries in one message. A larger batch is sent as several messages."""

BATCH_BYTES = 4 * 2**20
"""Bytes of entries in one message, after which a batch continues in another message."""

MAX_TAGS = 64
"""The most tags of one entry."""

MAX_TAG_BYTES = 2048
"""The longest tag, its namespace included."""

NO_VIEW = 0
"""As a view id: of no view; such a request is not refused for its view."""

KEEP_TTL = -1
"""As a TTL: keep the entry's TTL."""

LARGE_BYTES = 64 * 1024
"""Size from which a message, or a binary value in it, is kept in its own buffer instead of being joined and copied."""

MOST_SECONDS = 86400.0
"""The longest lease, lock TTL or wait. Longer ones are shortened to this."""
