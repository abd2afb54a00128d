"""Every verb of the client against a node that answers with anything: only errors of our tree reach the user."""

from __future__ import annotations

import inspect
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from pyrocache import NameServerUnavailable, PyroCacheClient, PyroCacheError, RemoteError
from pyrocache.client.backend import Backend
from pyrocache.client.codec import Codec
from pyrocache.client.context import ClientContext
from pyrocache.client.features import scan
from pyrocache.client.routing.router import Router
from pyrocache.cluster.routing import Member
from pyrocache.config import ClientConfig
from pyrocache.net.directory import Listing
from pyrocache.protocol import framing, messages
from tests.support.scripted_peer import Line, ScriptedPeer

FRAME = Codec().encode(b"", [1, 2])
NUMBER = Codec().encode(b"", 3)
KEY = b"\0sa"

GOOD: dict[str, Any] = {
    "get": None,
    "get_with_version": [FRAME, 7],
    "get_with_times": [FRAME, 1e-9, 100.0],
    "get_entry": [FRAME, 7, math.inf, [b"\0tag"], None, 1.5, 300],
    "contains": True,
    "ttl": 5.0,
    "set": True,
    "put": True,
    "setdefault": FRAME,
    "incr": NUMBER,
    "touch": True,
    "delete": True,
    "pop": FRAME,
    "get_many": [FRAME, None],
    "get_entries": [[FRAME, 7, math.inf, [], None, None, 300], None],
    "set_many": 2,
    "delete_many": 1,
    "touch_many": 1,
    "lease": ["load", 5, None],
    "fill": True,
    "abandon": True,
    "acquire": 9,
    "renew": True,
    "release": True,
    "holders": 1,
    "scan": [0, [KEY]],
    "count": 3,
    "delete_prefix": [0, 1],
    "clear": 3,
    "invalidate_tag": 3,
    "ping": {"serving": True},
    "stats": {"hits": 1},
    "reset_stats": True,
    "hot_keys": [2.0, [[KEY, 3.0]]],
}

BAD: list[Any] = [
    None, True, False, 0, 1, -1, 2**63, 2**64 - 1, 1.5, -1.5, math.nan, math.inf, "", "text", b"", b"w", b"w\0",
    b"\xff", [], {}, [[]], [[[]]], [None], [None] * 3, [None] * 1000, [b""], ["text"], [FRAME], [FRAME, FRAME],
    [FRAME, 0],
    [FRAME, -1], [FRAME, 2**63], [FRAME, True], [FRAME, "7"], [0], [0, []], [0, [5]], [0, ["text"]], [0, [b""]],
    [0, [b"\xff" * 20]], [0, [b"\0s\xff\xff"]], [0, [b"x" * 70_000]], [0, [KEY] * 1001], [0, {}], [-1, []], [1, []],
    [2**64 - 1, []], [1.5, []], [True, []], [None, []], [0, -1], [1, 1], [0, 2**63], [0, True], [0, 0, 0],
    ["load"], ["load", 0, None], ["load", True, None], ["load", 5, 5], ["load", 5, None, None], ["stale"],
    ["stale", None], ["stale", "text"], ["value"], ["value", FRAME, "1", None], ["value", None, None, None],
    ["value", FRAME, math.nan, None], ["nonsense"], [FRAME, math.nan, 1.0], [FRAME, 1.0, "1"], ["text", 1.0, 1.0],
    [FRAME, 7, None, [], None, None, 3], [FRAME, 7, 1.0, [5], None, None, 3], [FRAME, 7, 1.0, {}, None, None, 3],
    [FRAME, 7, 1.0, [b"\xff"], None, None, 3], [FRAME, 7, 1.0, [], "1", None, 3], [FRAME, 7, 1.0, [], None, None, -3],
    [[FRAME, 7, 1.0, [5], None, None, 3], None], [FRAME, "text"], [FRAME, 5], [[FRAME], None],
    [0, [[KEY, 1.0, [], None, None]]], [0, [[KEY, 1.0, [5], None, None, 3]]], [0, [["a", 1.0, [], None, None, 3]]],
    [0, [[b"\xff", 1.0, [b"\xff"], None, None, 3]]], {"serving": 0}, {"serving": []}, {"a": {"b": [{}]}},
    {"hits": "1"}, {"hits": -1}, {"hits": None}, {"uptime_seconds": math.nan}, {"policy": 5}, {"namespaces": {}},
    {"namespaces": [[]]}, {"namespaces": [[b"\xff\xff", 1, 1, 1]]}, {"namespaces": [["a", 1, 1, 1]]},
    {"namespaces": [[b"\0", 1, 1, "1"]]}, {"latencies": [["get"]]}, {"latencies": [["get", [-1]]]},
    [1.0, [[KEY]]], [1.0, [[KEY, -1]]], [1.0, [[KEY, "1"]]], [1.0, [["text", 1]]], [1.0, [[b"", 1]]], [1.0, [5]],
    [1.0, [[KEY, math.nan]]], [1.0, [[KEY, math.inf]]], [math.nan, [[KEY, 1]]], [-1.0, []], ["1", []], [0, [[KEY, 1]]],
    [1.0, {}], [1.0, [[KEY, 1]] * 11], [1.0, [[b"\xff" * 20, 1]]], [1.0, [[b"x" * 70_000, 1]]], [1e-300, [[KEY, 1e18]]],
    {"latencies": [["get", [1] * 1000]]}, {"latencies": [[5, [1]]]}, {"latencies": [["get", {}]]},
]  # fmt: skip

Verb = Callable[[PyroCacheClient], Any]


def with_lock(cache: PyroCacheClient) -> None:
    with cache.lock("a", wait_seconds=0):
        pass


def locked(cache: PyroCacheClient) -> bool:
    return cache.lock("a").locked()


def memoized(cache: PyroCacheClient) -> None:
    def function(number: int) -> int:
        return number

    cached = cache.memoize(name="f", wait_seconds=0, early=1.0)(function)
    cached(1)
    cached.invalidate(1)
    cached.refresh(1)


VERBS: dict[str, Verb] = {
    "set": lambda c: c.set("a", b"1"),
    "set with tags": lambda c: c.set("a", 1, tags=["tag"]),
    "set if_version": lambda c: c.set("a", 1, if_version=7),
    "set expired": lambda c: c.set("a", 1, expires_at=1),
    "add": lambda c: c.add("a", 1),
    "add expired": lambda c: c.add("a", 1, expires_at=1),
    "replace": lambda c: c.replace("a", 1),
    "get": lambda c: c.get("a"),
    "get touch_seconds": lambda c: c.get("a", touch_seconds=5),
    "get_with_version": lambda c: c.get_with_version("a"),
    "get_entry": lambda c: repr(c.get_entry("a")),
    "compare_and_set": lambda c: c.compare_and_set("a", 1, 7),
    "compute": lambda c: c.compute("a", lambda value: value, None),
    "update": lambda c: c.update({"a": 1, "b": 2}),
    "incr": lambda c: c.incr("a"),
    "decr": lambda c: c.decr("a"),
    "touch": lambda c: c.touch("a", 5),
    "pop": lambda c: c.pop("a"),
    "setdefault": lambda c: c.setdefault("a", 1),
    "delete": lambda c: c.delete("a"),
    "contains": lambda c: c.contains("a"),
    "ttl": lambda c: c.ttl("a"),
    "get_or_set": lambda c: c.get_or_set("a", lambda: 1, wait_seconds=0),
    "get_or_set early": lambda c: c.get_or_set("a", lambda: 1, wait_seconds=0, early=1.0),
    "memoize": memoized,
    "lock": with_lock,
    "locked": locked,
    "semaphore": lambda c: c.semaphore("a", 2, wait_seconds=0).acquire(blocking=False),
    "get_many": lambda c: c.get_many(["a", "b"]),
    "get_entries": lambda c: repr(c.get_entries(["a", "b"])),
    "set_many": lambda c: c.set_many({"a": 1, "b": 2}),
    "delete_many": lambda c: c.delete_many(["a", "b"]),
    "touch_many": lambda c: c.touch_many(["a", "b"], 5),
    "namespace": lambda c: c.namespace("shop").get("a"),
    "invalidate_tag": lambda c: c.invalidate_tag("tag"),
    "clear": lambda c: c.clear(),
    "delete_prefix": lambda c: c.delete_prefix("a"),
    "scan": lambda c: list(c.scan()),
    "scan tag": lambda c: list(c.scan(tag="tag")),
    "scan details": lambda c: repr(list(c.scan(details=True))),
    "items": lambda c: list(c.items()),
    "keys": lambda c: list(c.keys()),
    "values": lambda c: list(c.values()),
    "popitem": lambda c: c.popitem(),
    "len": len,
    "bool": bool,
    "iter": list,
    "==": lambda c: c == {},
    "in": lambda c: "a" in c,
    "[]": lambda c: c["a"],
    "[]=": lambda c: c.__setitem__("a", 1),
    "del": lambda c: c.__delitem__("a"),
    "nodes": lambda c: c.nodes(),
    "node_for": lambda c: c.node_for("a"),
    "ping": lambda c: c.ping(),
    "stats": lambda c: (repr(c.stats()), c.stats().as_dict()),
    "reset_stats": lambda c: c.reset_stats(),
    "hot_keys": lambda c: repr(c.hot_keys(seconds=0)),
}


class Listed:
    """A name server that lists one node."""

    def __init__(self, member: Member) -> None:
        self.listed = [member]

    def listing(self, timeout: float = 5.0) -> Listing:
        if not self.listed:
            raise NameServerUnavailable("away")
        return Listing(members=tuple(self.listed))


class HostileNode:
    """Answers well, except to one method; notes the methods that are called."""

    def __init__(self) -> None:
        self.hostile = ""
        self.reply: Any = None
        self.called: dict[str, None] = {}
        self.peer = ScriptedPeer(self._serve)

    def _serve(self, line: Line) -> None:
        while True:
            method, arguments = line.request()
            view_check = method == "get_many" and arguments[1] == []
            name = "check_view" if view_check else method
            self.called[name] = None
            if name == self.hostile:
                if callable(self.reply):
                    line.send(self.reply(line))
                else:
                    line.send(line.reply(self.reply))
            elif method == "scan" and arguments[-1] is True:
                line.send(line.reply([0, [[KEY, 1.0, [b"\0tag"], None, None, 3]]]))
            elif method == "get_many":
                line.send(line.reply([FRAME] * len(arguments[1])))
            else:
                line.send(line.reply(GOOD[method]))


@pytest.fixture(scope="module")
def node() -> Iterator[HostileNode]:
    node = HostileNode()
    yield node
    node.peer.close()
    assert node.peer.failures == []


@pytest.fixture(scope="module")
def cache(node: HostileNode) -> Iterator[PyroCacheClient]:
    router = Router(Listed(node.peer.member), nameserver="127.0.0.1:9090")
    cache = PyroCacheClient._of(ClientContext(ClientConfig(timeout=5.0), Backend(router)))
    logging.getLogger("pyrocache.client").setLevel(logging.CRITICAL)
    yield cache
    logging.getLogger("pyrocache.client").setLevel(logging.NOTSET)
    cache.close()


def test_every_public_method_is_among_the_verbs() -> None:
    public = {
        name
        for name, value in inspect.getmembers(PyroCacheClient, callable)
        if not name.startswith("_") and name not in ("close", "disconnect", "watch")
    }
    assert public <= {verb.partition(" ")[0] for verb in VERBS} | {"keys"}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_whatever_a_node_answers_only_our_errors_reach_the_user(
    node: HostileNode, cache: PyroCacheClient, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_MOST_EMPTY_PAGES", 100)
    node.hostile = ""
    node.called.clear()
    with suppress(KeyError):
        verb(cache)  # answered well, this works, and shows which methods are called
    refused = 0
    for method in list(node.called):
        for reply in BAD:
            node.hostile, node.reply = method, reply
            try:
                verb(cache)
            except PyroCacheError:
                refused += 1
            except KeyError:  # a miss
                pass
            except BaseException as error:
                error.add_note(f"{method} was answered with {reply!r}"[:200])
                raise
    if node.called:
        assert refused >= len(BAD) // 2
    assert threading.active_count() < 100


def test_a_reply_that_is_not_valid_is_a_remote_error_that_names_the_call(
    node: HostileNode, cache: PyroCacheClient
) -> None:
    node.hostile, node.reply = "contains", 1
    with pytest.raises(RemoteError, match="answered contains with a reply of the wrong kind"):
        cache.contains("a")


def odd_refusal(body: Any) -> Callable[[Line], bytes]:
    return lambda line: framing.pack_message(
        framing.RESULT, line.sequence, messages.pack_plain(body), framing.FLAG_EXCEPTION
    )


@pytest.mark.parametrize(
    "body",
    [
        {"attributes": {"code": code, "detail": detail}, "args": ["no"]}
        for code in ("stale-view", "", "no-such-code", 5)
        for detail in (
            None, 5, "text", b"", [], [[]], [5], [["cache.node.1"]], {"a": 1},
            [["cache.node.1", 5, "host", 1.0, "", ""]], [["cache.node.1", "h", 2**63, 1.0, "", ""]],
            [["cache.node.1", "h", -1, 1.0, "", ""]], [["cache.node.1", "h", 1, math.nan, "", ""]],
            [["cache.node.1", "", 1, 1.0, 5, ""]], [["cache.node.1", "h", 1, 1.0, "", 5]],
            [["cache.node.1", "h\0st", 1, 1.0, "", ""]], [[5, "h", 1, 1.0, "", ""]], [["cache.node.1", None, None]],
        )
    ] + [{"args": [5]}, {"args": []}, {"attributes": []}, {"attributes": {"code": [], "detail": {}}}],
)  # fmt: skip
def test_whatever_a_node_refuses_with_only_our_errors_reach_the_user(node: HostileNode, body: Any) -> None:
    directory: Any = Listed(node.peer.member)
    router = Router(directory)
    node.hostile = ""
    patient = PyroCacheClient._of(ClientContext(ClientConfig(timeout=30), Backend(router)))
    patient.contains("a")  # the node and a connection to it are known
    with PyroCacheClient._of(ClientContext(ClientConfig(timeout=0.3), Backend(router))) as cache:
        node.hostile, node.reply = "contains", odd_refusal(body)
        directory.listed = []  # so the detail of a refusal is the only news there is
        with pytest.raises(PyroCacheError):
            cache.contains("a")
        assert cache.nodes()
