"""A raw connection that has several requests outstanding, each with an identity."""

from __future__ import annotations

import os
import time
from typing import Any

from pyrocache.protocol import messages
from pyrocache.protocol.handshake import PIPELINED, UNORDERED
from pyrocache.protocol.request_id import CLOCK, REPEAT, SESSION_BYTES
from tests.support.attackers import TrustedPeer
from tests.support.wire import NAME


class Pipeline(TrustedPeer):
    """A connection of a client that pipelines.

    Args:
        node: has the address to connect to.
        session: the id of the client; None for a new one.
        unordered: whether it takes replies in any order.
    """

    def __init__(self, node: Any, session: bytes | None = None, *, unordered: bool = False) -> None:
        session = session or os.urandom(SESSION_BYTES)
        words = f"{PIPELINED} {UNORDERED}" if unordered else PIPELINED
        super().__init__(node, session=session, capabilities=words)
        self._packer = messages.CallPacker(NAME)
        self._packer.identify(session)
        self._began = time.monotonic()

    def request(
        self, number: int, method: str, *arguments: Any, repeated: bool = False, seconds: float = 30.0
    ) -> bytes:
        """Return the message of a call. Its number in the client's session is also its sequence number."""
        passed = time.monotonic() - self._began
        deadline = (self.server.clock_ms + int((passed + seconds) * 1000)) & CLOCK
        identity = number | REPEAT if repeated else number
        message = self._packer.pack(method, arguments, number & 0xFFFF, identity, deadline)
        return message if isinstance(message, bytes) else b"".join(message)
