"""`within_quota`: how much of a bounded resource one client may use.

A client may use a third of what is free. So it can use a quarter of the resource at most, and a further greedy client
a quarter of what the others have left: six of them leave 18 %. This is the dynamic threshold of Choudhury and Hahne,
"Dynamic Queue Length Thresholds for Shared-Memory Packet Switches" (IEEE/ACM ToN 1998).

Pure: no I/O, no threads, no clock.
"""

from __future__ import annotations


def within_quota(use: int, total: int, limit: int) -> bool:
    """Return whether a client may come to ``use`` so much of ``limit``, which makes ``total`` for all clients."""
    return 3 * use <= limit - total
