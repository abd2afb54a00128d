"""Limits that both ends of a connection know: of messages, keys, batches, tags, and the durations of leases, locks and
waits.

Also contains the reserved number `NO_VIEW` of a view and the reserved TTL `KEEP_TTL`. The largest value is not here: it
is a setting of each node (``--max-value``), which the node sends in the handshake. Pure: constants only.
"""

from __future__ import annotations

import math

MAX_KEY_BYTES = 64 * 1024
"""The longest encoded key, its namespace included."""

MAX_BATCH = 1000
"""Keys or entries in one message. A larger batch is sent as several messages."""

BATCH_BYTES = 4 * 2**20
"""Bytes of entries in one message, after which a batch continues in another message."""

PIPELINED_CALLS = 256
"""The most requests that a caller with the capability `PIPELINED` has outstanding on one connection."""

DEFERRED_CALLS = 4096
"""The most deferred calls that may be outstanding on one connection."""

MAX_WAITERS = 4096
"""The most waiters of one connection that wait for leases or locks, or hold some."""

MAX_TAGS = 64
"""The most tags of one entry."""

MAX_TAG_BYTES = 2048
"""The longest tag, its namespace included."""

NO_VIEW = 0
"""The number of a view that stands for no view: the node only checks that it owns the key."""

KEEP_TTL = -math.inf
"""A TTL that means: keep the TTL that the entry has; a new entry never expires. Any other negative TTL, ``-n``, also
keeps the TTL of an entry that exists, and gives a new one n seconds."""

LARGE_BYTES = 64 * 1024
"""Bytes from which a message, or a binary value in it, is kept in its own buffer instead of being joined and copied."""

MOST_SECONDS = 86400.0
"""The longest lease, lock TTL or wait, in seconds. Longer ones are shortened to this."""
