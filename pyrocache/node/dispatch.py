"""One message in, one reply out: what a node answers to the Pyro5 protocol. No sockets, no threads.

Owns the handshake and the table of methods that may be called. Refuses, on the header alone, every message that Pyro5
would decompress, unmarshal, batch or run in a thread of its own. Calls that are cheap are answered at once;
for the others the caller gets a job to run where blocking is allowed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from Pyro5.core import DAEMON_NAME
from Pyro5.errors import PyroError
from Pyro5.serializers import serializers_by_id

from pyrocache.cluster import wire
from pyrocache.cluster.wire import Buffer, Frame, Header, Refusal
from pyrocache.errors import ProtocolError

log = logging.getLogger("pyrocache.node")

HANDSHAKE_BYTES = 16 * 1024

Reply: TypeAlias = bytes | list[Buffer]
"""The bytes to send, in several buffers if a large value is among them."""

Job: TypeAlias = Callable[[], Reply]
"""Runs the call and returns the reply; may take long."""


class Farewell(Exception):
    """The connection ends here, after ``last_words`` have been sent."""

    def __init__(self, last_words: bytes) -> None:
        super().__init__("the connection is closed after a last message")
        self.last_words = last_words


class Dispatcher:
    """Answers messages for the objects registered in a Pyro5 daemon.

    Args:
        daemon: whose objects, all registered by now, are called, and which validates handshakes.
        cheap: names of methods to answer at once.
        max_frame_bytes: the longest message that is taken once a peer has introduced itself.
    """

    def __init__(self, daemon: Any, *, cheap: frozenset[str], max_frame_bytes: int) -> None:
        self._daemon = daemon
        self._max_frame_bytes = max_frame_bytes
        self._methods = {
            (object_id, name): method
            for object_id in daemon.objectsById
            for name, method in _exposed_methods(daemon, object_id).items()
        }
        self._at_once = {call for call in self._methods if call[1] in cheap or call[0] == DAEMON_NAME}
        self._unpackers = [
            wire.CallUnpacker(
                object_id,
                {name: self._methods[object_id, name] for id_, name in self._at_once if id_ == object_id},
            )
            for object_id in daemon.objectsById
            if object_id != DAEMON_NAME
        ]

    def admit(self, header: Header) -> None:
        """Judge the header of a request before its body is read.

        Raises:
            ProtocolError: drop the connection.
            Farewell: say this, then drop it.
        """
        if header.serializer != wire.MSGPACK and header.type != wire.PING:
            raise ProtocolError("The peer changed its serializer.")
        if header.type not in (wire.INVOKE, wire.PING):
            raise ProtocolError(f"A message of type {header.type} is no request.")
        if header.flags & wire.FLAG_ONEWAY:
            raise ProtocolError("Oneway calls are not served.")
        if header.flags & ~wire.FLAG_CORRELATION_ID:
            raise self._unserved(header, wire.BAD_REQUEST, "Compressed and batched calls are not served.")
        if header.frame_bytes > self._max_frame_bytes:
            text = f"A request of {header.frame_bytes} bytes is too long; {self._max_frame_bytes} are taken."
            raise self._unserved(header, wire.VALUE_TOO_LARGE, text)

    def admit_stranger(self, header: Header) -> None:
        """The same for the first message on a connection, which must be a handshake."""
        if header.type != wire.CONNECT or header.flags & ~wire.FLAG_CORRELATION_ID:
            raise ProtocolError("A connection begins with a plain handshake.")
        if header.frame_bytes > HANDSHAKE_BYTES:
            raise ProtocolError("A handshake is short.")
        if header.serializer != wire.MSGPACK:
            serializer = serializers_by_id.get(header.serializer)
            if serializer is None:
                raise ProtocolError("An unknown serializer.")
            body = serializer.dumps("this node speaks msgpack only: set the proxy's _pyroSerializer to it")
            raise Farewell(
                wire.pack_message(wire.CONNECT_FAIL, header.sequence, body, serializer=header.serializer)
            )

    def handle_at_once(self, data: bytes) -> Reply | None:
        """The reply to ``data`` if it is one whole, small and usual request for a cheap call; None: see `handle`."""
        for unpacker in self._unpackers:
            call = unpacker.unpack(data)
            if call is not None:
                sequence, method, arguments = call
                return _call(sequence, method, arguments, {})
        return None

    def handle(self, frame: Frame, greeted: bool) -> Reply | Job:
        """The reply to ``frame``, or a job that makes it.

        Raises:
            ProtocolError, Farewell: as `admit` does.
        """
        header, body = frame
        if not greeted:
            return self._connect(header, body)
        if header.type == wire.PING:
            return wire.pack_message(wire.PING, header.sequence, b"pong", serializer=header.serializer)
        object_id, name, arguments, options = wire.unpack_call(body)
        method = self._methods.get((object_id, name))
        if method is None:
            return _refuse(
                header.sequence, Refusal(wire.BAD_REQUEST, "There is no such object or method here.")
            )
        if (object_id, name) in self._at_once:
            return _call(header.sequence, method, arguments, options)
        return lambda: _call(header.sequence, method, arguments, options)

    @staticmethod
    def overloaded(sequence: int) -> bytes:
        """The reply to a request that there is no room for now."""
        return _refuse(sequence, Refusal(wire.OVERLOADED, "The node has too much to do; try again."))

    @staticmethod
    def turned_away() -> bytes:
        """What a connection too many is told."""
        text = "overloaded: the node has as many connections as it takes"
        return wire.pack_message(wire.CONNECT_FAIL, 0, wire.pack_plain(text))

    def _connect(self, header: Header, body: bytes | memoryview) -> bytes:
        request = wire.unpack_plain(body)
        if not isinstance(request, dict) or not isinstance(request.get("object"), str):
            raise ProtocolError("A handshake names the object that it is for.")
        try:
            metadata = self._daemon.objectsById[DAEMON_NAME].get_metadata(request["object"])
            greeting = self._daemon.validateHandshake(None, request.get("handshake"))
        except PyroError as error:
            text = wire.pack_plain(str(error))
            raise Farewell(wire.pack_message(wire.CONNECT_FAIL, header.sequence, text)) from None
        answer = wire.pack_plain({"handshake": greeting, "meta": metadata})
        return wire.pack_message(wire.CONNECT_OK, header.sequence, answer)

    def _unserved(self, header: Header, code: str, text: str) -> Farewell:
        return Farewell(_refuse(header.sequence, Refusal(code, text)))


def _exposed_methods(daemon: Any, object_id: str) -> dict[str, Callable[..., Any]]:
    names = daemon.objectsById[DAEMON_NAME].get_metadata(object_id)["methods"]
    target = daemon.objectsById[object_id]
    return {name: getattr(target, name) for name in names if "stream" not in name}  # none is ever opened here


def _call(sequence: int, method: Callable[..., Any], arguments: list[Any], options: dict[str, Any]) -> Reply:
    try:
        return wire.pack_result(sequence, method(*arguments, **options))
    except PyroError as error:
        code, detail = getattr(error, "code", wire.BAD_REQUEST), getattr(error, "detail", None)
        return _refuse(sequence, Refusal(code, str(error), detail))
    except TypeError:
        return _refuse(sequence, Refusal(wire.BAD_REQUEST, "The arguments do not fit the method."))
    except Exception as error:
        # Not the traceback, nor the error's text: they could hold a key or a value.
        log.error("%s failed with %s", method.__name__, type(error).__name__)
        return _refuse(sequence, Refusal(wire.INTERNAL, f"The node failed with {type(error).__name__}."))


def _refuse(sequence: int, refusal: Refusal) -> bytes:
    body = wire.pack_refusal(refusal)
    return wire.pack_message(wire.RESULT, sequence, body, flags=wire.FLAG_EXCEPTION)
