"""One message in, one reply out: what a node answers to the Pyro5 protocol. No sockets, no threads.

Owns the handshake and the table of methods that may be called. Refuses, on the header alone, every message that Pyro5
would decompress, unmarshal, batch or run in a thread of its own. Calls that are cheap are answered at once;
for the others the caller gets a job to run where blocking is allowed, or a `Deferred` to wait for.

Keeps a histogram of how long calls take, from when the request is there until the reply is: of every call that may
take long, and of a fixed share of the others. Reading the clock twice would cost a small request a tenth of its time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from Pyro5.core import DAEMON_NAME
from Pyro5.errors import PyroError
from Pyro5.serializers import serializers_by_id

from pyrocache.errors import ProtocolError
from pyrocache.protocol import framing, messages, refusals
from pyrocache.protocol.framing import Buffer, Frame, Header
from pyrocache.protocol.refusals import Refusal
from pyrocache.server.deferred import Deferred, Session
from pyrocache.server.histogram import Latencies

log = logging.getLogger("pyrocache.node")

HANDSHAKE_BYTES = 16 * 1024

ONE_IN = 101
"""Of so many cheap calls one is measured: that whose sequence number leaves 1, as the first on a connection does. It is
a prime, so that of calls which alternate in some pattern each has its share."""

Reply: TypeAlias = bytes | list[Buffer]
"""The bytes to send, in several buffers if a large value is among them."""

Job: TypeAlias = Callable[[], Reply]
"""Runs the call and returns the reply; may take long."""


class PendingReply(NamedTuple):
    """A call that waits for something.

    Attributes:
        later: its result.
        reply: makes the reply, once ``deferred`` has its outcome.
    """

    deferred: Deferred
    reply: Callable[[], Reply]


class CloseAfterReply(Exception):
    """The connection ends here, after ``last_words`` have been sent."""

    def __init__(self, last_words: bytes) -> None:
        super().__init__("the connection is closed after a last message")
        self.last_words = last_words


class Dispatcher:
    """Answers messages for the objects registered in a Pyro5 daemon.

    Args:
        daemon: whose objects, all registered by now, are called, and which validates handshakes.
        max_frame_bytes: the longest message that is taken once a peer has introduced itself.
        cheap: names of methods to answer at once.
        waiting: names of methods that may wait, each with the name of the one that is called in its place: at once,
            with the caller's `Session` and the arguments. It returns the result, or a `Deferred`.
        timer: seconds, to measure calls with.
    """

    def __init__(
        self,
        daemon: Any,
        *,
        max_frame_bytes: int,
        cheap: frozenset[str],
        waiting: Mapping[str, str] = MappingProxyType({}),
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._daemon = daemon
        self._max_frame_bytes = max_frame_bytes
        self._timer = timer
        self._latencies = Latencies()
        self._methods = {
            (object_id, name): method
            for object_id in daemon.objectsById
            for name, method in _exposed_methods(daemon, object_id).items()
        }
        self._begin = {
            (object_id, name): getattr(daemon.objectsById[object_id], waiting[name])
            for object_id, name in self._methods
            if name in waiting
        }
        self._at_once = {call for call in self._methods if call[1] in cheap or call[0] == DAEMON_NAME}
        self._unpackers = [
            messages.CallUnpacker(
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
            CloseAfterReply: say this, then drop it.
        """
        if header.serializer != framing.MSGPACK and header.type != framing.PING:
            raise ProtocolError("The peer changed its serializer.")
        if header.type not in (framing.INVOKE, framing.PING):
            raise ProtocolError(f"A message of type {header.type} is no request.")
        if header.flags & framing.FLAG_ONEWAY:
            raise ProtocolError("Oneway calls are not served.")
        if header.flags & ~framing.FLAG_CORRELATION_ID:
            raise self._unserved(header, refusals.BAD_REQUEST, "Compressed and batched calls are not served.")
        if header.frame_bytes > self._max_frame_bytes:
            text = f"A request of {header.frame_bytes} bytes is too long; {self._max_frame_bytes} are taken."
            raise self._unserved(header, refusals.VALUE_TOO_LARGE, text)

    def admit_stranger(self, header: Header) -> None:
        """The same for the first message on a connection, which must be a handshake."""
        if header.type != framing.CONNECT or header.flags & ~framing.FLAG_CORRELATION_ID:
            raise ProtocolError("A connection begins with a plain handshake.")
        if header.frame_bytes > HANDSHAKE_BYTES:
            raise ProtocolError("A handshake is short.")
        if header.serializer != framing.MSGPACK:
            serializer = serializers_by_id.get(header.serializer)
            if serializer is None:
                raise ProtocolError("An unknown serializer.")
            body = serializer.dumps("this node speaks msgpack only: set the proxy's _pyroSerializer to it")
            raise CloseAfterReply(
                framing.pack_message(
                    framing.CONNECT_FAIL, header.sequence, body, serializer=header.serializer
                )
            )

    def handle_at_once(self, data: bytes) -> Reply | None:
        """The reply to ``data`` if it is one whole, small and usual request for a cheap call; None: see `handle`."""
        for unpacker in self._unpackers:
            call = unpacker.unpack(data)
            if call is not None:
                sequence, method, arguments = call
                if sequence % ONE_IN == 1:
                    return self._measured(method.__name__, self._timer(), sequence, method, arguments, {})
                try:  # as `_call` does, which would cost more than measuring may
                    return messages.pack_result(sequence, method(*arguments))
                except Exception as error:
                    return _failed(sequence, method.__name__, error)
        return None

    def handle(self, frame: Frame, greeted: bool, session: Session) -> Reply | Job | PendingReply:
        """The reply to ``frame``, a job that makes it, or what it has to wait for.

        Args:
            greeted: whether the handshake is over.
            peer: who sent it.

        Raises:
            ProtocolError, CloseAfterReply: as `admit` does.
        """
        header, body = frame
        if not greeted:
            return self._connect(header, body)
        if header.type == framing.PING:
            return framing.pack_message(framing.PING, header.sequence, b"pong", serializer=header.serializer)
        object_id, name, arguments, options = messages.unpack_call(body)
        method = self._methods.get((object_id, name))
        if method is None:
            return _refuse(
                header.sequence, Refusal(refusals.BAD_REQUEST, "There is no such object or method here.")
            )
        begin = self._begin.get((object_id, name))
        if begin is not None:
            return self._begin_call(name, header.sequence, begin, [session, *arguments], options)
        at_once = (object_id, name) in self._at_once
        if at_once and header.sequence % ONE_IN != 1:
            return _call(header.sequence, method, arguments, options)
        job = partial(self._measured, name, self._timer(), header.sequence, method, arguments, options)
        return job() if at_once else job

    def latencies(self) -> list[list[Any]]:
        """``[method, counts]`` for each that was measured; `Latencies` says of what the counts are."""
        return self._latencies.as_lists()

    def reset_latencies(self) -> None:
        """Begin to measure anew."""
        self._latencies.reset()

    @staticmethod
    def overloaded(sequence: int) -> bytes:
        """The reply to a request that there is no room for now."""
        return _refuse(sequence, Refusal(refusals.OVERLOADED, "The node has too much to do; try again."))

    @staticmethod
    def turned_away() -> bytes:
        """What a connection too many is told."""
        text = "overloaded: the node has as many connections as it takes"
        return framing.pack_message(framing.CONNECT_FAIL, 0, messages.pack_plain(text))

    def _connect(self, header: Header, body: bytes | memoryview) -> bytes:
        request = messages.unpack_plain(body)
        if not isinstance(request, dict) or not isinstance(request.get("object"), str):
            raise ProtocolError("A handshake names the object that it is for.")
        try:
            metadata = self._daemon.objectsById[DAEMON_NAME].get_metadata(request["object"])
            greeting = self._daemon.validateHandshake(None, request.get("handshake"))
        except PyroError as error:
            text = messages.pack_plain(str(error))
            raise CloseAfterReply(framing.pack_message(framing.CONNECT_FAIL, header.sequence, text)) from None
        answer = messages.pack_plain({"handshake": greeting, "meta": metadata})
        return framing.pack_message(framing.CONNECT_OK, header.sequence, answer)

    def _measured(
        self,
        name: str,
        since: float,
        sequence: int,
        method: Callable[..., Any],
        arguments: Sequence[Any],
        options: dict[str, Any],
    ) -> Reply:
        reply = _call(sequence, method, arguments, options)
        self._latencies.add(name, self._timer() - since)
        return reply

    def _begin_call(
        self,
        name: str,
        sequence: int,
        begin: Callable[..., Any],
        arguments: Sequence[Any],
        options: dict[str, Any],
    ) -> Reply | PendingReply:
        """Answer a call that may have to wait, or say what it waits for."""
        since = self._timer()
        try:
            result = begin(*arguments, **options)
            if isinstance(result, Deferred):
                reply = partial(self._measured, name, since, sequence, result.outcome, (), {})
                return PendingReply(result, reply)
            answer = messages.pack_result(sequence, result)
        except Exception as error:
            answer = _failed(sequence, name, error)
        self._latencies.add(name, self._timer() - since)
        return answer

    def _unserved(self, header: Header, code: str, text: str) -> CloseAfterReply:
        return CloseAfterReply(_refuse(header.sequence, Refusal(code, text)))


def _exposed_methods(daemon: Any, object_id: str) -> dict[str, Callable[..., Any]]:
    names = daemon.objectsById[DAEMON_NAME].get_metadata(object_id)["methods"]
    target = daemon.objectsById[object_id]
    return {name: getattr(target, name) for name in names if "stream" not in name}  # none is ever opened here


def _call(
    sequence: int, method: Callable[..., Any], arguments: Sequence[Any], options: dict[str, Any]
) -> Reply:
    try:
        return messages.pack_result(sequence, method(*arguments, **options))
    except Exception as error:
        return _failed(sequence, method.__name__, error)


def _failed(sequence: int, name: str, error: Exception) -> bytes:
    """The reply to a call that raised ``error``."""
    if isinstance(error, PyroError):
        code, detail = getattr(error, "code", refusals.BAD_REQUEST), getattr(error, "detail", None)
        return _refuse(sequence, Refusal(code, str(error), detail))
    if isinstance(error, TypeError):
        return _refuse(sequence, Refusal(refusals.BAD_REQUEST, "The arguments do not fit the method."))
    # Not the traceback, nor the error's text: they could hold a key or a value.
    log.error("%s failed with %s", name, type(error).__name__)
    return _refuse(sequence, Refusal(refusals.INTERNAL, f"The node failed with {type(error).__name__}."))


def _refuse(sequence: int, refusal: Refusal) -> bytes:
    body = refusals.pack_refusal(refusal)
    return framing.pack_message(framing.RESULT, sequence, body, flags=framing.FLAG_EXCEPTION)
