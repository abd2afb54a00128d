"""One message in, one reply out: what a node answers to the Pyro5 protocol. No sockets, no threads.

Owns the handshake and the table of methods that may be called. Refuses, on the header alone, every message that Pyro5
would decompress, unmarshal, batch or run in a thread of its own. Calls that are cheap are answered at once;
for the others the caller gets a job to run where blocking is allowed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from Pyro5.core import DAEMON_NAME
from Pyro5.errors import PyroError
from Pyro5.serializers import serializers_by_id

from pyrocache.cluster import wire
from pyrocache.cluster.wire import Frame, Header, Refusal
from pyrocache.errors import ProtocolError

log = logging.getLogger("pyrocache.node")

HANDSHAKE_BYTES = 16 * 1024

Job = Callable[[], bytes]
"""Runs the call and returns the reply; may take long."""


class Farewell(Exception):
    """The connection ends here, after ``last_words`` have been sent."""

    def __init__(self, last_words: bytes) -> None:
        super().__init__("the connection is closed after a last message")
        self.last_words = last_words


class Dispatcher:
    """Answers messages for the objects registered in a Pyro5 daemon.

    Args:
        daemon: asked for its objects' exposed methods and to validate handshakes.
        cheap: names of methods to answer at once.
        max_frame_bytes: the longest message that is taken once a peer has introduced itself.
    """

    def __init__(self, daemon: Any, *, cheap: frozenset[str], max_frame_bytes: int) -> None:
        self._daemon = daemon
        self._cheap = cheap
        self._max_frame_bytes = max_frame_bytes
        self._methods: dict[tuple[str, str], Callable[..., Any]] = {}

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

    def handle(self, frame: Frame, greeted: bool) -> bytes | Job:
        """The reply to ``frame``, or a job that makes it.

        Raises:
            ProtocolError, Farewell: as `admit` does.
        """
        header, body = frame
        if not greeted:
            return self._connect(header, body)
        if header.type == wire.PING:
            return wire.pack_message(wire.PING, header.sequence, b"pong", serializer=header.serializer)
        object_id, name, arguments, options = _unpack_call(body)
        method = self._method(object_id, name)
        if method is None:
            return _refuse(header, Refusal(wire.BAD_REQUEST, "There is no such object or method here."))
        if name in self._cheap or object_id == DAEMON_NAME:
            return _call(header, method, arguments, options)
        return lambda: _call(header, method, arguments, options)

    def overloaded(self, header: Header) -> bytes:
        """The reply to a request that there is no room for now."""
        return _refuse(header, Refusal(wire.OVERLOADED, "The node has too much queued work; try again."))

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

    def _method(self, object_id: str, name: str) -> Callable[..., Any] | None:
        method = self._methods.get((object_id, name))
        if method is None and object_id in self._daemon.objectsById:
            target = self._daemon.objectsById[object_id]
            exposed = self._daemon.objectsById[DAEMON_NAME].get_metadata(object_id)["methods"]
            if name in exposed and "stream" not in name:  # no stream is ever opened here
                method = self._methods[object_id, name] = getattr(target, name)
        return method

    def _unserved(self, header: Header, code: str, text: str) -> Farewell:
        return Farewell(_refuse(header, Refusal(code, text)))


def _unpack_call(body: bytes | memoryview) -> tuple[str, str, list[Any], dict[str, Any]]:
    call = wire.unpack_plain(body)
    if isinstance(call, list) and len(call) == 4:
        object_id, name, arguments, options = call
        strings = isinstance(object_id, str) and isinstance(name, str)
        if strings and isinstance(arguments, list) and isinstance(options, dict):
            return object_id, name, arguments, options
    raise ProtocolError("A call is an object, a method, arguments and options.")


def _call(header: Header, method: Callable[..., Any], arguments: list[Any], options: dict[str, Any]) -> bytes:
    try:
        result = method(*arguments, **options)
        return wire.pack_message(wire.RESULT, header.sequence, wire.pack_plain(result))
    except PyroError as error:
        code, detail = getattr(error, "code", wire.BAD_REQUEST), getattr(error, "detail", None)
        return _refuse(header, Refusal(code, str(error), detail))
    except TypeError:
        return _refuse(header, Refusal(wire.BAD_REQUEST, "The arguments do not fit the method."))
    except Exception as error:
        # Not the traceback, nor the error's text: they could hold a key or a value.
        log.error("%s failed with %s", method.__name__, type(error).__name__)
        return _refuse(header, Refusal(wire.INTERNAL, f"The node failed with {type(error).__name__}."))


def _refuse(header: Header, refusal: Refusal) -> bytes:
    body = wire.pack_refusal(refusal)
    return wire.pack_message(wire.RESULT, header.sequence, body, flags=wire.FLAG_EXCEPTION)
