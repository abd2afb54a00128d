"""The name server and the connections of a simulation: the real objects, with real messages and no sockets.

`NameServer` is the real remote object behind the real dispatcher. `Line` takes the place of `Connection`: it has the
real handshake, packs each request and unpacks each reply. A listing that has not changed is packed and parsed once.
The CPU time of that is measured, and charged each time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from Pyro5.nameserver import MemoryStorage

from benchmarks.scale.meter import Meter
from pyrocache.cluster.routing import Member
from pyrocache.nameserver.names import COMMANDS, Names
from pyrocache.nameserver.process import _MAX_REQUEST_BYTES
from pyrocache.net import directory
from pyrocache.net.call_protocol import GREETED, PROVING, Caller, CallProtocol
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NAMESERVER, Listing, NameServerDirectory
from pyrocache.protocol.framing import FrameDecoder
from pyrocache.protocol.handshake import MSGPACK, Admission, ServerHandshake, Strangers
from pyrocache.protocol.proof import NONCE_BYTES
from pyrocache.server.deferred import Session
from pyrocache.server.dispatcher import Dispatcher

KEYS = (bytes(range(32)),)
ADMISSION = Admission(lambda: KEYS, partial(os.urandom, NONCE_BYTES), strangers=Strangers.REFUSED)
CALLER = Caller(keys=lambda: KEYS)
SERVER = "name server"
PLACE = "10.0.0.1 9090"
_LIST = ("cache.", None, True)
_REPEATS = 3

Alive = Callable[[Member], bool]


class NameServer:
    """One name server.

    Attributes:
        meter: counts.
        names: the remote object.
        changes: the number of requests that may have changed an entry.
    """

    def __init__(self, meter: Meter, alive: Alive) -> None:
        self.meter = meter
        self.names = Names(MemoryStorage(), alive)
        self.dispatcher = Dispatcher(
            NAMESERVER,
            self.names,
            COMMANDS,
            greeting=lambda: "hello",
            max_frame_bytes=_MAX_REQUEST_BYTES,
            admission=ADMISSION,
        )
        self.changes = 0
        self._listed_at = -1
        self._listed: tuple[Any, int, float, float] = ({}, 0, 0.0, 0.0)
        self._read: tuple[Any, Listing, float, float] = ({}, Listing(), 0.0, 0.0)

    def call(self, protocol: CallProtocol, method: str, arguments: tuple[Any, ...], part: str) -> Any:
        """Make a call over the connection of ``protocol``, whose CPU time counts for ``part``."""
        if method == "list" and arguments == _LIST:
            return self._list(protocol, part)
        self.changes += method not in ("age", "count", "ping", "lookup")
        return self._call(protocol, method, arguments, part)

    def _call(self, protocol: CallProtocol, method: str, arguments: tuple[Any, ...], part: str) -> Any:
        with self.meter.part(part):
            packed = protocol.send_call(method, arguments)
        request = packed if isinstance(packed, bytes) else b"".join(packed)
        with self.meter.part(SERVER):
            reply = answer(self.dispatcher, request)
        self.meter.count(f"{SERVER}: {method}", len(request) + len(reply))
        with self.meter.part(part):
            return protocol.receive_data(reply)

    def _list(self, protocol: CallProtocol, part: str) -> Any:
        meter, kind = self.meter, f"{SERVER}: list"
        if self._listed_at != self.changes:
            self._listed, self._listed_at = self._measured(protocol), self.changes
        listed, size, here, there = self._listed
        meter.count(kind, size)
        meter.charge(SERVER, here)
        meter.charge(part, there)
        return listed

    def _measured(self, protocol: CallProtocol) -> tuple[Any, int, float, float]:
        """Return a listing, its bytes, and the least CPU time of a few, here and at the caller."""
        meter, self.meter = self.meter, Meter()
        here, there = [], []
        for _ in range(_REPEATS):
            listed = self._call(protocol, "list", _LIST, "caller")
            taken = self.meter.taken()
            here.append(taken.seconds[SERVER])
            there.append(taken.seconds["caller"])
        self.meter = meter
        return listed, taken.bytes[f"{SERVER}: list"], min(here), min(there)

    @property
    def listing_seconds(self) -> float:
        """CPU time of the last listing here."""
        return self._listed[2]

    @property
    def listing_bytes(self) -> int:
        """The bytes of the last listing, and of the request for it."""
        return self._listed[1]

    def read(self, listed: Any) -> tuple[Listing, float, float]:
        """Return what a listing says, the CPU time to read it, and to see that it is the same as the one before."""
        if self._read[0] is not listed:
            copy = {name: [entry[0], list(entry[1])] for name, entry in listed.items()}
            began = time.process_time()
            listing = directory._listing(listed)
            read = time.process_time()
            assert copy == listed
            self._read = listed, listing, read - began, time.process_time() - read
        return self._read[1:]


class Line:
    """A connection to the name server, with what `NameServerDirectory` uses of a `Connection`."""

    def __init__(self, server: NameServer, part: str, caller: Caller) -> None:
        self._server, self._part = server, part
        self._protocol = CallProtocol(NAMESERVER, caller)
        self.connected = self.proved = self.opened = True
        shake(server.meter, self._protocol, server.dispatcher, f"{SERVER}: handshake", part, SERVER)

    def usable(self) -> bool:
        """Whether it can be used again."""
        return True

    def finish_opening(self, deadline: Deadline) -> None:
        """Nothing is left to do."""

    def call(self, method: str, arguments: tuple[Any, ...], deadline: Deadline) -> Any:
        """Make a call."""
        return self._server.call(self._protocol, method, arguments, self._part)

    def close(self) -> None:
        """Nothing is held."""


class MeteredDirectory(NameServerDirectory):
    """The real directory of one node or client, over a `Line`.

    Args:
        server: the name server.
        part: what its CPU time counts for.
    """

    def __init__(self, server: NameServer, part: str, *, keep: bool = True) -> None:
        super().__init__(
            PLACE.replace(" ", ":"),
            keep=keep,
            connect=lambda endpoint, transport, caller: Line(server, part, caller),  # type: ignore[arg-type,return-value]
            caller=CALLER,
        )
        self._simulated, self._part = server, part
        self._seen: Any = None

    def _listing(self, deadline: Deadline) -> Listing:
        listed = self._ask(deadline, "list the nodes", "list", *_LIST)
        listing, reading, comparing = self._simulated.read(listed)
        self._simulated.meter.charge(self._part, comparing if listed is self._seen else reading)
        self._seen = listed if self._keep else None
        return listing._replace(connection=self._opened if self._keep else 0)


def shake(
    meter: Meter, protocol: CallProtocol, dispatcher: Dispatcher, kind: str, caller: str, server: str
) -> None:
    """Do a handshake with proofs of the secret, and count its two requests."""
    with meter.part(server):
        handshake: ServerHandshake = dispatcher.handshake(PLACE)
        decoder = FrameDecoder(handshake.admit, lambda frame_bytes: None)
    with meter.part(caller):
        sent = protocol.greet(PLACE, os.urandom(NONCE_BYTES))
    while True:
        with meter.part(server):
            decoder.feed(sent)
            frame = decoder.next_frame()
            assert frame is not None
            reply = handshake.receive(frame)
        meter.count(kind, len(sent) + len(reply))
        with meter.part(caller):
            progress = protocol.receive_data(reply)
            if progress is not PROVING:
                assert progress is GREETED
                return
            sent = protocol.prove()


def answer(dispatcher: Dispatcher, request: bytes) -> bytes:
    """Return the reply to a request, as the event loop has it made."""
    call = dispatcher.unpack(request)
    if call is not None:
        sequence, method, arguments = call[:3]
        options: dict[str, Any] = {}
    else:
        decoder = FrameDecoder(dispatcher._admit, lambda frame_bytes: None, dispatcher._admit_head)
        decoder.feed(request)
        frame = decoder.next_frame()
        assert frame is not None
        read = dispatcher.read(frame, MSGPACK)
        if isinstance(read, bytes):
            return read
        sequence, method, arguments, options = read  # type: ignore[assignment]
    reply = dispatcher.dispatch(Session(), sequence, method, arguments, options)
    made = reply() if callable(reply) else reply
    assert isinstance(made, (bytes, list))
    return made if isinstance(made, bytes) else b"".join(made)
