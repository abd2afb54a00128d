"""The identity of a request and its deadline: the 16 bytes of the correlation id in the header of a request.

Only clients of pyrocache send it, and only on connections where the client gave a session and the node its clock in the
handshake; elsewhere the bytes are zero or ignored. ``docs/wire-format.md`` describes the format. Pure: no I/O, no
threads, no clock.

Thread safety: stateless.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

SESSION_BYTES = 8

REPEAT = 1 << 31
"""The bit of the sequence that marks a repeat: the client has sent this request before, and has lost the reply."""

HIGHEST_NUMBER = REPEAT - 1
"""Sequences are counted modulo this plus one."""

CLOCK = 2**32 - 1
"""A node's clock in milliseconds is taken modulo this plus one."""

REPEAT_SECONDS = 50.0
"""How long after the first attempt a client may repeat it. Nodes remember outcomes for longer."""

_HALF = 1 << 31
_ID = struct.Struct("!8sII")


class RequestId(NamedTuple):
    """What the header of a request says about it.

    Attributes:
        session: the random id of the client.
        sequence: differs between the requests of a session; with `REPEAT` if it is a repeat.
        deadline: milliseconds of the node's clock; from then on, the request must not be executed.
    """

    session: bytes
    sequence: int
    deadline: int


def unpack_id(data: bytes) -> RequestId:
    """Return the identity in the 16 bytes of a correlation id."""
    return RequestId(*_ID.unpack(data))


def milliseconds(seconds: float) -> int:
    """Return the reading of a clock as it crosses the wire."""
    return int(seconds * 1000.0) & CLOCK


def seconds_left(deadline: int, now: float) -> float:
    """Return the seconds from ``now`` to a deadline; negative if it has passed. Both are of the node's clock."""
    left = (deadline - int(now * 1000.0)) & CLOCK
    return (left if left < _HALF else left - CLOCK - 1) / 1000.0
