"""`Dispatcher`: from a request to its reply. Selects the method and the thread that runs it, and encodes failures.

Holds the method table of one remote object, and the methods by which a Pyro5 proxy asks any daemon for its metadata.
Refuses, from the header alone, every message that Pyro5 would decompress, unmarshal, batch or run in a thread of its
own. No sockets.

`unpack` decodes a request that is complete, small and ordinary, `read` decodes any other; `dispatch` calls the method,
or returns a job for a worker thread.

Latency histograms measure a call from its dispatch to its encoded reply: every call that does not run inline, and
one in `SAMPLE` of the inline calls. Reading the clock twice would make a small request a tenth slower.

Thread safety: used by the event loop's thread; the jobs that it returns may run on any thread.
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
from pyrocache.protocol.commands import ISSUE_TOKEN, Command, Runs
from pyrocache.protocol.framing import Buffer, Frame, Header
from pyrocache.protocol.handshake import (
    MSGPACK,
    OVERLOADED,
    PIPELINED,
    UNORDERED,
    Admission,
    CloseAfterReply,
    Greeting,
    HandshakeRefused,
    Serializer,
    ServerHandshake,
    proxies_need,
)
from pyrocache.protocol.limits import LARGE_BYTES
from pyrocache.protocol.refusals import Refusal
from pyrocache.server.deferred import Deferred, Session
from pyrocache.server.histogram import Latencies
from pyrocache.server.tokens import Tokens

log = logging.getLogger("pyrocache.node")

SAMPLE = 101
"""One in so many inline calls is measured: those whose sequence number modulo this is 1, as for the first call on a
connection. It is a prime, so that methods which are called in a repeating pattern are all sampled."""

_NO_OPTIONS: dict[str, Any] = {}

_CAPABILITIES = f"{PIPELINED} {UNORDERED}"  # of each server with an `EventLoop`

_TOO_LONG = f"A request may have {messages.LONGEST_SMALL_BYTES} bytes beside one value; send what it is about in parts."

Reply: TypeAlias = bytes | list[Buffer]
"""The bytes to send, in several buffers if they contain a large value."""

Job: TypeAlias = Callable[[], Reply]
"""Runs the call and returns the reply. May block."""


class PendingReply(NamedTuple):
    """A call whose reply is deferred.

    Attributes:
        deferred: the promise of the result.
        reply: returns the reply once ``deferred`` has its outcome.
    """

    deferred: Deferred
    reply: Job


@dataclass(slots=True, eq=False)
class Method:
    """A method that clients may call, with the serializer of their requests; the rest is as in `Command`."""

    name: str
    call: Callable[..., Any]
    runs: Runs
    serializer: Serializer
    once: bool = False
    open: bool = False


class Dispatcher:
    """Answers requests for one remote object.

    Args:
        object_id: the id of the object.
        target: the object. A method that may defer its reply (`Runs.DEFERRED`) takes the caller's `Session` first.
            It has the prefix ``begin_`` if a blocking variant, for stock Pyro5 daemons, has the plain name.
        commands: the methods that clients may call, by name; names that the object lacks are left out.
        greeting: returns the answer to a handshake: this end's `Greeting`, or another plain value.
        max_frame_bytes: the longest request that is accepted.
        serializers: the serializers that clients may use.
        admission: whom to admit; None for everybody. Its ``accepts_token`` is set here.
        timer: seconds, for the latency histograms.

    Attributes:
        latencies: the latency histograms.
    """

    def __init__(
        self,
        object_id: str,
        target: Any,
        commands: Mapping[str, Command],
        *,
        greeting: Callable[[], Any],
        max_frame_bytes: int,
        serializers: Sequence[Serializer] = (MSGPACK,),
        admission: Admission | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.latencies = Latencies()
        self._greeting = greeting
        self._tokens = Tokens()
        self._admission = None if admission is None else admission._replace(accepts_token=self._tokens.accept)
        self._max_frame_bytes = max_frame_bytes
        self._timer = timer
        own: dict[str, Callable[..., Any]] = {  # what a stock proxy may call on any Pyro5 daemon
            "ping": lambda: None,
            "info": lambda: f"{DAEMON_NAME} of {object_id}",
            "registered": lambda: list(self._metadata),
            "get_metadata": self._get_metadata,
        }
        served = {name: command for name, command in commands.items() if hasattr(target, name)}
        self._metadata = {
            id_: {"methods": sorted(names), "oneway": [], "attrs": []}
            for id_, names in ((DAEMON_NAME, own), (object_id, served))
        }
        self._large = {(object_id, name) for name, command in served.items() if command.large}
        self._methods: dict[tuple[int, str, str], Method] = {}
        self._plain: list[tuple[Method, Callable[..., Any]]] = []  # the methods of the target
        for serializer in serializers:
            for name, call in own.items():
                method = Method(name, call, Runs.INLINE, serializer, open=True)
                self._methods[serializer.number, DAEMON_NAME, name] = method
            for name, command in served.items():
                call = getattr(target, f"begin_{name}", getattr(target, name))
                method = Method(name, call, command.runs, serializer, command.once, command.open)
                self._methods[serializer.number, object_id, name] = method
                self._plain.append((method, call))
            issue = Method(ISSUE_TOKEN, self._tokens.issue, Runs.INLINE, serializer)
            self._methods[serializer.number, object_id, ISSUE_TOKEN] = issue
        self._serializers = {serializer.number: serializer for serializer in serializers}
        self._refusals = _refusals_of_others(serializers)
        self.unpack = messages.CallUnpacker(
            object_id, {name: self._methods[framing.MSGPACK, object_id, name] for name in served}
        ).unpack

    def handshake(self, local: str = "") -> ServerHandshake:
        """Return the handshake of a new connection, which was accepted on the address ``local``."""
        return ServerHandshake(
            self._describe,
            self._admit,
            self._serializers,
            self._refusals,
            self._admit_head,
            admission=self._admission,
            local=local,
        )

    def read(
        self, frame: Frame, serializer: Serializer, trusted: bool = True
    ) -> tuple[int, Method, Sequence[Any], dict[str, Any]] | bytes:
        """Decode a request. Return the arguments for `dispatch`, or a reply if there is nothing to dispatch.

        Args:
            trusted: whether the caller may call all methods, or only those that are open.

        Raises:
            ProtocolError: drop the connection.
        """
        header, body = frame
        if header.type == framing.PING:
            return framing.pack_message(framing.PING, header.sequence, b"pong", serializer=header.serializer)
        try:
            object_id, name, arguments, options = serializer.loads_call(body)
        except messages.TooLong:
            return refuse(header.sequence, Refusal(refusals.VALUE_TOO_LARGE, _TOO_LONG), serializer)
        method = self._methods.get((serializer.number, object_id, name))
        if method is None:
            refusal = Refusal(refusals.BAD_REQUEST, "There is no such object or method here.")
            return refuse(header.sequence, refusal, serializer)
        if not (trusted or method.open):
            text = f"{name} is for callers that prove the secret; {proxies_need(object_id)}."
            return refuse(header.sequence, Refusal(refusals.NOT_TRUSTED, text), serializer)
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
        """Call ``method``. Return the reply, a job for a worker that makes it, or a `PendingReply`.

        Args:
            since: time of the first dispatch, if this is a job on a worker or the outcome of a deferred call.
        """
        runs = method.runs
        if since is None and (runs is not Runs.INLINE or sequence % SAMPLE == 1):
            since = self._timer()
            if runs is Runs.WORKER:
                return partial(self.dispatch, session, sequence, method, arguments, options, since)  # type: ignore[return-value]
        try:
            if runs is Runs.DEFERRED:  # its grants are bound to the connection
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

    def observe(self, wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]] | None) -> None:
        """Call what ``wrap`` returns in place of each method from now on, or the method again if it is None.

        So a call costs nothing more while nobody observes. Only the event loop's thread may call this.

        Args:
            wrap: given the name of a method of the target, and what is called for it, returns what to call.
        """
        for method, plain in self._plain:
            method.call = plain if wrap is None else wrap(method.name, plain)

    @staticmethod
    def overloaded(sequence: int, serializer: Serializer | None) -> bytes:
        """Return the refusal of a request that exceeds a limit of the server."""
        refusal = Refusal(refusals.OVERLOADED, "The node has too much to do; try again.")
        return refuse(sequence, refusal, serializer or MSGPACK)

    @staticmethod
    def rejected() -> bytes:
        """Return the refusal of a connection beyond the limit of connections."""
        text = f"{OVERLOADED}: this server has as many connections as it takes"
        return framing.pack_message(framing.CONNECT_FAIL, 0, messages.pack_plain(text))

    def _admit(self, header: Header) -> None:
        """Check the header of a request before its body is read.

        Raises:
            ProtocolError: drop the connection.
            CloseAfterReply: send the reply in it, then drop the connection.
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

    def _admit_head(self, header: Header, head: bytes) -> bool:
        """Check the method of a long request before more of it is buffered: only few methods take one large value.

        Raises:
            CloseAfterReply: send the reply in it, then drop the connection.
        """
        # After long annotations, the body is judged when it is complete.
        if header.body_bytes <= messages.LONGEST_SMALL_BYTES or header.annotation_bytes > LARGE_BYTES:
            return True
        call = messages.called(head)
        if call is None and len(head) < framing.JUDGED_BYTES:
            return False
        if call is None or call[2] or call[:2] not in self._large:
            self._turn_down(header, refusals.VALUE_TOO_LARGE, _TOO_LONG)
        return True

    def _turn_down(self, header: Header, code: str, text: str) -> None:
        serializer = self._serializers.get(header.serializer, MSGPACK)
        raise CloseAfterReply(refuse(header.sequence, Refusal(code, text), serializer))

    def _describe(self, object_id: str, offer: Any) -> dict[str, Any]:
        greeting = self._greeting()
        try:
            if isinstance(greeting, Greeting):
                greeting.check(Greeting.from_wire(offer))
                greeting = greeting._replace(capabilities=_CAPABILITIES).to_wire()
            return {"handshake": greeting, "meta": self._get_metadata(object_id)}
        except PyroError as error:
            raise HandshakeRefused(str(error)) from None

    def _get_metadata(self, objectId: str) -> dict[str, list[str]]:  # the parameter is named as in Pyro5
        if objectId not in self._metadata:
            raise DaemonError("unknown object")
        return self._metadata[objectId]


def _refusals_of_others(spoken: Iterable[Serializer]) -> dict[int, bytes]:
    """Return the refusals for clients that use other serializers, by number, each in its own serializer."""
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
    elif isinstance(error, TypeError):  # nearly always a wrong number of arguments from the peer
        refusal = Refusal(refusals.BAD_REQUEST, "The arguments do not fit the method.")
    else:
        # Log neither the traceback nor the error's text: they could contain a key or a value.
        log.error("%s failed with %s", method.name, type(error).__name__)
        refusal = Refusal(refusals.INTERNAL, f"The node failed with {type(error).__name__}.")
    return refuse(sequence, refusal, method.serializer, kind)


def refuse(sequence: int, refusal: Refusal, serializer: Serializer, kind: str = "PyroError") -> bytes:
    """Return the reply to a request that is refused. ``kind`` is as for `refusal_to_wire`."""
    body = serializer.dumps(refusals.refusal_to_wire(refusal, kind))
    return framing.pack_message(framing.RESULT, sequence, body, framing.FLAG_EXCEPTION, serializer.number)
