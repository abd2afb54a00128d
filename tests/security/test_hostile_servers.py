"""What a node that knows the secret, and a name server, can do to a client by their answers: nothing but fail a call.

The client raises only errors of `pyrocache.errors`, within its timeout and with little memory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrocache import NameServerUnavailable, NodeUnavailable, PyroCacheClient, RemoteError
from pyrocache.cluster.routing import ClusterView
from pyrocache.errors import PyroCacheError
from pyrocache.net.call_protocol import knowing
from pyrocache.net.directory import NameServerDirectory
from pyrocache.protocol import framing, messages
from pyrocache.protocol.handshake import MSGPACK, Admission, Greeting, ServerHandshake, State, format_peer
from pyrocache.runtime.secret import find_secret
from tests.support.nodes import running_nameserver
from tests.support.scripted_peer import MIB, Line, ScriptedPeer, connect_ok, message, refusal_message
from tests.support.waiting import PATIENCE_SECONDS

CLUSTER = "hostile"
TIMEOUT = 0.2
Script = Callable[[Line], None]


def prove(line: Line, greeting: Greeting) -> None:
    """Make the handshake of a node that knows the secret."""
    admission = Admission(lambda: find_secret().keys, lambda: os.urandom(32))
    handshake = ServerHandshake(
        lambda object_id, offer: {"handshake": greeting.to_wire(), "meta": {}},
        lambda header: None,
        {framing.MSGPACK: MSGPACK},
        {},
        admission=admission,
        local=format_peer(line.sock.getsockname()),
    )
    while handshake.state is not State.ESTABLISHED:
        line.send(handshake.receive(line.frame()))


class HostileNode:
    """The only member of a cluster. It proves the secret, and then follows a script."""

    def __init__(self, nameserver: str) -> None:
        self.nameserver = nameserver
        self.script: Script = lambda line: None
        self._peer = ScriptedPeer(self._serve, greeting=False)
        self.close = self._peer.close
        member = replace(self._peer.member, cluster=CLUSTER)
        self.greeting = Greeting(
            member.name, member.incarnation, 64 * MIB, protocol=1, cluster=CLUSTER, clock_ms=12345
        )
        directory = NameServerDirectory(nameserver, caller=knowing(find_secret()))
        assert directory.create_cluster(CLUSTER, 1)
        assert directory.store_view(ClusterView((member,), 1, CLUSTER))
        assert directory.register(member)

    def _serve(self, line: Line) -> None:
        prove(line, self.greeting)
        self.script(line)

    def client(self, **options: Any) -> PyroCacheClient:
        """Return a new client of it, which has asked the name server, however long that has taken."""
        client = PyroCacheClient(self.nameserver, **{"timeout": TIMEOUT, **options})
        context = client._context
        context.backend.owner(context.encode_key("key"), context.deadline(PATIENCE_SECONDS))
        return client


@pytest.fixture(scope="module")
def node() -> Iterator[HostileNode]:
    with running_nameserver() as nameserver:
        node = HostileNode(nameserver)
        try:
            yield node
        finally:
            node.close()


VERBS: dict[str, Callable[[PyroCacheClient], object]] = {
    "get": lambda cache: cache.get("key"),
    "get_many": lambda cache: cache.get_many(["a", "b"]),
    "set": lambda cache: cache.set("key", "value"),
    "set_many": lambda cache: cache.set_many({"a": 1, "b": 2}),
    "delete": lambda cache: cache.delete("key"),
    "incr": lambda cache: cache.incr("key"),
    "contains": lambda cache: "key" in cache,
    "len": lambda cache: len(cache),
    "keys": lambda cache: list(itertools.islice(cache, 10)),
    "stats": lambda cache: cache.stats(),
    "ping": lambda cache: cache.ping(),
    "clear": lambda cache: cache.clear(),
    "get_or_set": lambda cache: cache.get_or_set("key", lambda: 1, wait_seconds=TIMEOUT),
    "lock": lambda cache: cache.lock("key").acquire(timeout=0),
}


def fail_within_timeout(
    cache: PyroCacheClient, verb: Callable[[PyroCacheClient], object]
) -> BaseException | None:
    """Return the error that a call raises, which must be a declared one, in time."""
    begun, error = time.monotonic(), None
    try:
        verb(cache)
    except PyroCacheError as failure:
        error = failure
    assert time.monotonic() - begun < TIMEOUT + PATIENCE_SECONDS / 3
    return error


def each_request(answer: Callable[[Line], bytes]) -> Script:
    """Return a script that answers every request in this way."""

    def script(line: Line) -> None:
        while True:
            line.request()
            line.send(answer(line))

    return script


def drip(line: Line) -> None:
    line.request()
    for byte in line.reply(bytes(1000)):
        line.sock.sendall(bytes((byte,)))
        time.sleep(0.02)


def pour(line: Line) -> None:
    """Sends a reply in small pieces without a pause: there is always something to receive."""
    line.request()
    line.send(message(line.sequence, b"", claim=60 * MIB))
    while True:
        line.sock.sendall(bytes(10))


def never_end(line: Line) -> None:
    """Claims 3 GiB, and sends it as fast as it is taken."""
    line.request()
    line.send(message(line.sequence, b"", claim=3 * 2**30))
    while True:
        line.sock.sendall(bytes(MIB))


ANSWERS: dict[str, Script] = {
    "garbage": each_request(lambda line: os.urandom(100)),
    "HTTP": each_request(lambda line: b"HTTP/1.1 200 OK\r\n\r\n" + bytes(100)),
    "no msgpack": each_request(lambda line: message(line.sequence, b"\xc1")),
    "an extension": each_request(lambda line: message(line.sequence, b"\xd4\x30\x00")),
    "another type": each_request(lambda line: line.reply([1, {"a": [b"b"]}])),
    "another number": each_request(lambda line: message(line.sequence + 1 & 0xFFFF, b"\xc3")),
    "two replies": each_request(lambda line: 2 * line.reply(True)),
    "marshal": each_request(lambda line: message(line.sequence, b"T", serializer=2)),
    "a compressed reply": each_request(
        lambda line: message(line.sequence, b"x", flags=framing.FLAG_COMPRESSED)
    ),
    "a second handshake": each_request(lambda line: connect_ok({})),
    "nested deeply": each_request(lambda line: message(line.sequence, b"\x91" * 60_000)),
    "4 G items": each_request(lambda line: message(line.sequence, b"\xdd\xff\xff\xff\xff")),
    "a code that is not known": each_request(lambda line: refusal_message(line.sequence, "strange")),
    "the end": lambda line: line.request() and None,  # type: ignore[func-returns-value]
}
BY_DEFAULT = ("another number",)
EXCEPTIONS = (
    "SystemExit",
    "KeyboardInterrupt",
    "MemoryError",
    "builtins.GeneratorExit",
    "Pyro5.errors.NamingError",
    7,
)


@pytest.mark.parametrize(
    "name", [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.full) for name in ANSWERS]
)
def test_an_answer_that_is_none_fails_the_call_and_nothing_else(node: HostileNode, name: str) -> None:
    node.script = ANSWERS[name]
    for verb in VERBS:
        with node.client() as cache:
            error = fail_within_timeout(cache, VERBS[verb])
            # Statistics and pings leave those out that do not answer.
            assert isinstance(error, NodeUnavailable | RemoteError) or verb in ("stats", "ping"), (
                verb,
                error,
            )


@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_no_exception_that_a_node_names_is_raised(node: HostileNode, kind: object) -> None:
    def answer(line: Line) -> bytes:
        body = messages.pack_plain(
            {"__class__": kind, "__exception__": True, "args": ["bye"], "attributes": {}}
        )
        return framing.pack_message(framing.RESULT, line.sequence, body, framing.FLAG_EXCEPTION)

    node.script = each_request(answer)
    with node.client() as cache:
        for name, verb in VERBS.items():
            error = fail_within_timeout(cache, verb)
            assert isinstance(error, RemoteError | NodeUnavailable) or name in ("stats", "ping"), (
                name,
                error,
            )


@pytest.mark.parametrize(
    "code",
    [
        "stale-view",
        *(pytest.param(code, marks=pytest.mark.full) for code in ("not-serving", "try-again", "overloaded")),
    ],
)
def test_refusals_without_end_end_with_the_timeout(node: HostileNode, code: str) -> None:
    node.script = each_request(lambda line: refusal_message(line.sequence, code))
    with node.client() as cache:
        for verb in (VERBS["get"], VERBS["set"]):
            assert isinstance(fail_within_timeout(cache, verb), NodeUnavailable)


@pytest.mark.parametrize(
    "script", [drip, pour, lambda line: time.sleep(2 * TIMEOUT)], ids=["drips", "pours", "is silent"]
)
def test_an_answer_that_takes_too_long_ends_with_the_timeout(node: HostileNode, script: Script) -> None:
    node.script = script
    for verb in (VERBS["get"], VERBS["set"], VERBS["get_many"]):
        with node.client() as cache:
            assert isinstance(fail_within_timeout(cache, verb), NodeUnavailable)


@pytest.mark.parametrize("largest", [64 * MIB, 2**32 - 1])
def test_a_reply_takes_memory_only_as_it_arrives(
    node: HostileNode, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    monkeypatch.setattr(node, "greeting", node.greeting._replace(max_value_bytes=largest))

    def claim(line: Line) -> None:
        line.request()
        line.send(message(line.sequence, b"", claim=largest - MIB))
        line.wait_until_closed()

    node.script = claim
    with node.client() as cache:
        tracemalloc.start()
        try:
            assert isinstance(fail_within_timeout(cache, VERBS["get"]), NodeUnavailable)
            assert tracemalloc.get_traced_memory()[1] < 16 * MIB
        finally:
            tracemalloc.stop()


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
words = st.sampled_from(("value", "stale", "load", b"w\x01", b"zbytes", b"\x80\x05N.", b"d" + bytes(20)))
plain = st.recursive(
    scalars | words | st.binary(max_size=20) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=3 * settings().max_examples)
@given(st.sampled_from(sorted(VERBS)), st.lists(plain, min_size=1, max_size=3))
def test_any_plain_value_for_an_answer(node: HostileNode, verb: str, answers: list[Any]) -> None:
    remaining = itertools.cycle(answers)
    node.script = each_request(lambda line: line.reply(next(remaining)))
    with node.client(serializer="msgpack") as cache:
        fail_within_timeout(cache, VERBS[verb])


# Name servers -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def name_server(script: Script, greeting: Any = "hello") -> Iterator[tuple[ScriptedPeer, PyroCacheClient]]:
    """A name server that follows a script, as Pyro5's own would: it proves nothing; and a client of it."""
    peer = ScriptedPeer(script, greeting=greeting)
    try:
        with PyroCacheClient(peer.member.address, timeout=TIMEOUT) as cache:
            yield peer, cache
    finally:
        peer.close()


def entries(**changed: Any) -> dict[str, Any]:
    return {"cache.node.1": ["PYRO:cache.node.1@127.0.0.1:1", ["pyrocache"]], **changed}


LISTINGS: dict[str, Script] = {
    "drips": drip,
    "is silent": lambda line: time.sleep(2 * TIMEOUT),
    "garbage": ANSWERS["garbage"],
    "no msgpack": ANSWERS["no msgpack"],
    "two replies": ANSWERS["two replies"],
    "claims gigabytes": never_end,
    "the end": ANSWERS["the end"],
    "a list": each_request(lambda line: line.reply([1, 2])),
    "None": each_request(lambda line: line.reply(None)),
    "numbers": each_request(
        lambda line: line.reply({"cache.node.1": 7, "cache.view.1": [], "cache.cluster": "x"})
    ),
    "5,000 names": each_request(
        lambda line: message(line.sequence, b"\xdf\0\0\x13\x88" + b"\xa1a\xc0" * 5000)
    ),
    "nested deeply": ANSWERS["nested deeply"],
    "refuses": each_request(lambda line: refusal_message(line.sequence, "")),
    "a node that is nowhere": each_request(lambda line: line.reply(entries())),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name == "is silent" else name for name in LISTINGS]
)
def test_a_name_server_that_answers_anything_fails_a_call_in_time(name: str) -> None:
    with name_server(LISTINGS[name]) as (peer, cache):
        error = fail_within_timeout(cache, VERBS["get"])
        assert isinstance(error, NameServerUnavailable | NodeUnavailable | PyroCacheError)
        assert peer.failures == []


@pytest.mark.parametrize("greeting", ["hello", {"max_value_bytes": 2**32}, {"max_value_bytes": -1}, [], 7])
def test_a_listing_that_never_ends_is_not_read(greeting: Any) -> None:
    sent = 0

    def script(line: Line) -> None:
        nonlocal sent
        line.request()
        line.send(message(line.sequence, b"", claim=2**32 - 1))
        while True:
            line.sock.sendall(bytes(MIB))
            sent += MIB

    with name_server(script, greeting) as (_, cache):
        assert isinstance(fail_within_timeout(cache, VERBS["get"]), NameServerUnavailable)
    assert sent <= 16 * MIB  # what the buffers of the sockets take
