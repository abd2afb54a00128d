"""From a request to its reply: which method is called, on which thread, and what a failure looks like. No sockets.

Owns the table of methods of one remote object, and what every Pyro5 server has beside it: the daemon's own object,
which says what methods there are. Refuses, on the header alone, every message that Pyro5 would decompress, unmarshal,
batch or run in a thread of its own.

There is one way through. A request is read by `unpack` if it is whole, small and usual, by `read` otherwise; `dispatch`
calls the method, or returns a job for a worker thread. Used by the event loop's thread; jobs run on any thread.

Keeps a histogram of how long calls take, from when the request is there until the reply is: of every call that does not
run inline, and of a fixed share of the others. Reading the clock twice would cost a small request a tenth of its time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from Pyro5.core import DAEMON_NAME
from Pyro5.errors import DaemonError, PyroError
from Pyro5.serializers import serializers_by_id

from pyrocache.errors import ProtocolError
from pyrocache.protocol import framing, messages, refusals
from pyrocache.protocol.commands import Command, Runs
from pyrocache.protocol.framing import Buffer, Frame, Header
from pyrocache.protocol.handshake import (
    MSGPACK,
    CloseAfterReply,
    HandshakeRefused,
    Serializer,
    ServerHandshake,
)
from pyrocache.protocol.refusals import Refusal
from pyrocache.server.deferred import Deferred, Session
from pyrocache.server.histogram import Latencies

log = logging.getLogger("pyrocache.node")

SAMPLE = 101
"""One in so many inline calls is measured: those whose sequence number leaves 1, as that of the first on a connection
does. It is a prime, so that of calls which alternate in some pattern each has its share."""

_NO_OPTIONS: dict[str, Any] = {}

Reply: TypeAlias = bytes | list[Buffer]
"""The bytes to send, in several buffers if a large value is among them."""

Job: TypeAlias = Callable[[], Reply]
"""Runs the call and returns the reply; may take long."""


class PendingReply(NamedTuple):
    """A call whose reply is deferred.

    Attributes:
        deferred: its result.
        reply: makes the reply, once ``deferred`` has its outcome.
    """

    deferred: Deferred
    reply: Job


@dataclass(slots=True, eq=False)
class Method:
    """A method that may be called, as one serializer's requests call it."""

    name: str
    call: Callable[..., Any]
    runs: Runs
    serializer: Serializer


class Dispatcher:
    """Answers requests for one remote object.

    Args:
        object_id: its name.
        target: the object. A method that may defer its reply (`Runs.DEFERRED`) takes the caller's `Session` first;
            where the object has one that blocks, for stock Pyro5 daemons, it is called ``begin_`` and the name.
        commands: what may be called, by name; a name that the object lacks is left out.
        greeting: what a handshake is answered, as a plain value.
        max_frame_bytes: the longest request that is taken.
        serializers: what clients may speak.
        timer: seconds, to measure calls with.

    Attributes:
        latencies: how long calls took.
    """

    def __init__(
        self,
        object_id: str,
        target: Any,
        commands: Mapping[str, Command],
        *,
        greeting: Any,
        max_frame_bytes: int,
        serializers: Sequence[Serializer] = (MSGPACK,),
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.latencies = Latencies()
        self._greeting = greeting
        self._max_frame_bytes = max_frame_bytes
        self._timer = timer
        own: dict[str, Callable[..., Any]] = {  # what a stock proxy may ask of any Pyro5 daemon
            "ping": lambda: None,
            "info": lambda: f"{DAEMON_NAME} of {object_id}",
            "registered": lambda: list(self._metadata),
            "get_metadata": self._get_metadata,
        }
        calls: dict[tuple[str, str], tuple[Callable[..., Any], Runs]] = {
            (object_id, name): (_bound(target, command), command.runs)
            for name, command in commands.items()
            if hasattr(target, name)
        }
        names = [name for _, name in calls]
        calls |= {(DAEMON_NAME, name): (call, Runs.INLINE) for name, call in own.items()}
        self._methods = {
            (serializer.number, *key): Method(key[1], *call, serializer)
            for serializer in serializers
            for key, call in calls.items()
        }
        self._metadata = {
            id_: {"methods": sorted(name for of, name in calls if of == id_), "oneway": [], "attrs": []}
            for id_ in (DAEMON_NAME, object_id)
        }
        self._serializers = {serializer.number: serializer for serializer in serializers}
        self._refusals = _refusals_of_others(serializers)
        self.unpack = messages.CallUnpacker(
            object_id, {name: self._methods[framing.MSGPACK, object_id, name] for name in names}
        ).unpack

    def handshake(self) -> ServerHandshake:
        """Return the handshake of a new connection."""
        return ServerHandshake(self._describe, self._admit, self._serializers, self._refusals)

    def read(
        self, frame: Frame, serializer: Serializer
    ) -> tuple[int, Method, Sequence[Any], dict[str, Any]] | bytes:
        """Return the arguments of `dispatch` that ``frame`` holds, or a reply.

        Raises:
            ProtocolError: drop the connection.
        """
        header, body = frame
        if header.type == framing.PING:
            return framing.pack_message(framing.PING, header.sequence, b"pong", serializer=header.serializer)
        object_id, name, arguments, options = serializer.loads_call(body)
        method = self._methods.get((serializer.number, object_id, name))
        if method is None:
            refusal = Refusal(refusals.BAD_REQUEST, "There is no such object or method here.")
            return _refuse(header.sequence, refusal, serializer)
        return header.sequence, method, arguments, options

    def dispatch(
        self,
        session: Session,
        sequence: int,
        method: Method,
        arguments: Sequence[Any],
        options: dict[str, Any] = _NO_OPTIONS,
        since: float | None = None,
    ) -> Reply | Job | PendingReply:
        """Call ``method``, and return the reply; or what makes it, on a worker or once it is there.

        Args:
            since: when the request came, if this is the job on a worker or the outcome of a deferred call.
        """
        runs = method.runs
        if since is None and (runs is not Runs.INLINE or sequence % SAMPLE == 1):
            since = self._timer()
            if runs is Runs.WORKER:
                return partial(self.dispatch, session, sequence, method, arguments, options, since)  # type: ignore[return-value]
        try:
            if runs is Runs.DEFERRED:
                arguments = (session, *arguments)
            result = method.call(*arguments, **options) if options else method.call(*arguments)
            if type(result) is Deferred:
                outcome = Method(method.name, result.outcome, Runs.INLINE, method.serializer)
                reply: Any = partial(self.dispatch, session, sequence, outcome, (), since=since)
                return PendingReply(result, reply)
            answer = method.serializer.pack_result(sequence, result)
        except Exception as error:
            answer = _failed(sequence, method, error)
        if since is not None:
            self.latencies.add(method.name, self._timer() - since)
        return answer

    @staticmethod
    def overloaded(sequence: int, serializer: Serializer | None) -> bytes:
        """Return the reply to a request that there is no room for now."""
        refusal = Refusal(refusals.OVERLOADED, "The node has too much to do; try again.")
        return _refuse(sequence, refusal, serializer or MSGPACK)

    @staticmethod
    def rejected() -> bytes:
        """Return what a connection too many is told."""
        text = "overloaded: this server has as many connections as it takes"
        return framing.pack_message(framing.CONNECT_FAIL, 0, messages.pack_plain(text))

    def _admit(self, header: Header) -> None:
        """Judge the header of a request before its body is read.

        Raises:
            ProtocolError: drop the connection.
            CloseAfterReply: send its reply, then drop the connection.
        """
        if header.type not in (framing.INVOKE, framing.PING):
            raise ProtocolError(f"A message of type {header.type} is no request.")
        if header.flags & framing.FLAG_ONEWAY:
            raise ProtocolError("Oneway calls are not served.")
        if header.flags & ~framing.FLAG_CORRELATION_ID:
            self._turn_down(header, refusals.BAD_REQUEST, "Compressed and batched calls are not served.")
        if header.frame_bytes > self._max_frame_bytes:
            text = f"A request of {header.frame_bytes} bytes is too long; {self._max_frame_bytes} are taken."
            self._turn_down(header, refusals.VALUE_TOO_LARGE, text)

    def _turn_down(self, header: Header, code: str, text: str) -> None:
        serializer = self._serializers.get(header.serializer, MSGPACK)
        raise CloseAfterReply(_refuse(header.sequence, Refusal(code, text), serializer))

    def _describe(self, object_id: str, offer: Any) -> dict[str, Any]:
        try:
            return {"handshake": self._greeting, "meta": self._get_metadata(object_id)}
        except PyroError as error:
            raise HandshakeRefused(str(error)) from None

    def _get_metadata(self, objectId: str) -> dict[str, list[str]]:
        if objectId not in self._metadata:
            raise DaemonError("unknown object")
        return self._metadata[objectId]


def _bound(target: Any, command: Command) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(target, command.name)
    if command.runs is Runs.DEFERRED:
        method = getattr(target, f"begin_{command.name}", method)
    return method


def _refusals_of_others(spoken: Iterable[Serializer]) -> dict[int, bytes]:
    """Return what clients are told that speak another serializer, each in its own, by number."""
    numbers = {serializer.number for serializer in spoken}
    names = " and ".join(type(serializers_by_id[number]).__name__[:-10].lower() for number in sorted(numbers))
    text = f"this server speaks {names} only: set the proxy's _pyroSerializer to it"
    return {number: other.dumps(text) for number, other in serializers_by_id.items() if number not in numbers}


def _failed(sequence: int, method: Method, error: Exception) -> bytes:
    """Return the reply to a call that raised ``error``."""
    kind = "PyroError"
    if isinstance(error, PyroError):
        kind = type(error).__name__
        code, detail = getattr(error, "code", refusals.BAD_REQUEST), getattr(error, "detail", None)
        refusal = Refusal(code, str(error), detail)
    elif isinstance(error, TypeError):
        refusal = Refusal(refusals.BAD_REQUEST, "The arguments do not fit the method.")
    else:
        # Not the traceback, nor the error's text: they could hold a key or a value.
        log.error("%s failed with %s", method.name, type(error).__name__)
        refusal = Refusal(refusals.INTERNAL, f"The node failed with {type(error).__name__}.")
    return _refuse(sequence, refusal, method.serializer, kind)


def _refuse(sequence: int, refusal: Refusal, serializer: Serializer, kind: str = "PyroError") -> bytes:
    body = serializer.dumps(refusals.refusal_to_wire(refusal, kind))
    return framing.pack_message(framing.RESULT, sequence, body, framing.FLAG_EXCEPTION, serializer.number)
