"""What each method sends, and what it makes of an answer, an error, an unreachable node; with a scripted router."""

from __future__ import annotations

import itertools
import math
import pickle
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from pyrocache import (
    DEFAULT_TTL,
    Conflict,
    CorruptValue,
    NodeUnavailable,
    NotAnInt,
    PartialFailure,
    PyroCacheClient,
)
from pyrocache.client.backend import Backend
from pyrocache.client.codec import Codec
from pyrocache.client.context import ClientContext
from pyrocache.client.features.compute import compute
from pyrocache.client.keys.format import namespace_prefix
from pyrocache.client.routing.batch import Batch
from pyrocache.client.routing.router import NodeLeft
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import ClientConfig, OnError
from pyrocache.errors import ClientClosed, PyroCacheError, RemoteError, SerializationError, ValueTooLarge
from pyrocache.net.deadline import Deadline
from pyrocache.protocol.commands import Command

ONE = Codec().encode(b"", 1)
A = b"\0sa"
VIEW = ClusterView([Member(f"cache.node.{number}", "127.0.0.1", number) for number in (1, 2, 3)])


class FakeRouter:
    """Answers with what it is given, one after the other; exceptions are raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[Any, ...]] = []
        self.idempotent: list[bool] = []
        self.retries: dict[str, int] = {}
        self.largest_values: list[int] = []
        self.deadlines: list[Deadline] = []
        self.closed = False

    def call(
        self,
        command: Command,
        key: bytes,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        largest_value: int = 0,
    ) -> Any:
        self.largest_values.append(largest_value)
        return self._answer(command, (key, *arguments), deadline)

    def broadcast(
        self,
        command: Command,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        only: Collection[str] | None = None,
    ) -> list[tuple[Member, Any]]:
        return list(zip(VIEW.members, self._answer(command, arguments, deadline), strict=True))

    def ask_all(
        self, command: Command, arguments: tuple[Any, ...], deadline: Deadline
    ) -> tuple[ClusterView, list[tuple[Member, Any]]]:
        return VIEW, self.broadcast(command, arguments, deadline)

    def batch(
        self, batch: Batch, deadline: Deadline, *, one_reply: bool = False
    ) -> Iterator[tuple[Sequence[int], Any]]:
        yield from self._answer(batch.command, (batch.keys, batch.values, *batch.arguments), deadline)

    def close(self) -> None:
        self.closed = True

    def _answer(self, command: Command, arguments: tuple[Any, ...], deadline: Deadline) -> Any:
        assert not self.closed
        self.calls.append((command.name, *arguments))
        self.idempotent.append(command.idempotent)
        self.deadlines.append(deadline)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            return answer()
        if isinstance(answer, Exception):
            raise answer
        return answer


def client_of(router: Any, on_error: OnError = "raise", timeout: float = 5.0) -> PyroCacheClient:
    config = ClientConfig(on_error=on_error, timeout=timeout)
    return PyroCacheClient._of(ClientContext(config, Backend(router)))


def client(*answers: Any, on_error: OnError = "raise", timeout: float = 5.0) -> PyroCacheClient:
    return client_of(FakeRouter(*answers), on_error, timeout)


def router(cache: PyroCacheClient) -> Any:
    backend: Any = cache._context.backend
    return backend._router


def unreachable() -> NodeUnavailable:
    return NodeUnavailable("cache.node.1 is unreachable")


PAST = datetime(1999, 12, 31, tzinfo=UTC)


def hour(cache: PyroCacheClient) -> PyroCacheClient:
    """A client that gives its entries an hour unless told otherwise."""
    config = ClientConfig(ttl_seconds=3600.0)
    return PyroCacheClient._of(ClientContext(config, cache._context.backend))


VERBS: list[tuple[Callable[[PyroCacheClient], Any], tuple[Any, ...], bool, Any, Any]] = [
    # what is called, what is sent, idempotent, the answer, what is returned
    (lambda c: c.set("a", 1), ("set", A, ONE, None), True, True, True),
    (lambda c: c.set("a", 1, 60), ("set", A, ONE, 60.0), True, True, True),
    (lambda c: c.set("a", 1, ...), ("put", A, ONE, -math.inf, None, None), True, True, True),
    (lambda c: c.set("a", 1, tags=[]), ("put", A, ONE, None, None, []), True, True, True),
    (
        lambda c: c.set("a", 1, 5, tags=["x", "y", "x"]),
        ("put", A, ONE, 5.0, None, [b"\0x", b"\0y"]),
        True,
        True,
        True,
    ),
    (lambda c: c.set("a", 1, if_version=7), ("put", A, ONE, None, 7, None), False, False, False),
    (lambda c: c.add("a", 1), ("put", A, ONE, None, "absent", None), False, True, True),
    (lambda c: c.replace("a", 1, ...), ("put", A, ONE, -math.inf, "present", None), False, False, False),
    (lambda c: c.get("a"), ("get", A), True, ONE, 1),
    (lambda c: c.get("a", "default"), ("get", A), True, None, "default"),
    (lambda c: c.get("a", touch_seconds=5), ("get", A, 5.0), True, ONE, 1),
    (lambda c: c.get_with_version("a"), ("get_with_version", A), True, [ONE, 9], (1, 9)),
    (lambda c: c.get_with_version("a"), ("get_with_version", A), True, None, None),
    (lambda c: c.compare_and_set("a", 1, 7), ("put", A, ONE, -math.inf, 7, None), False, True, True),
    (lambda c: c.compare_and_set("a", 1, 7, None), ("put", A, ONE, None, 7, None), False, True, True),
    (lambda c: c.incr("a"), ("incr", A, b"w\1", b"w\0", None), False, b"w\5", 5),
    (lambda c: c.decr("a", 2, 3, 60), ("incr", A, b"w\xfe", b"w\3", 60.0), False, b"w\xff", -1),
    (lambda c: c.incr("a", True), ("incr", A, b"w\1", b"w\0", None), False, b"w\1", 1),
    (lambda c: c.touch("a", 60), ("touch", A, 60.0), True, True, True),
    (lambda c: c.touch("a", None), ("touch", A, None), True, False, False),
    (lambda c: c.pop("a"), ("pop", A), False, ONE, 1),
    (lambda c: c.pop("a", 2), ("pop", A), False, None, 2),
    (lambda c: c.setdefault("a", 1), ("setdefault", A, ONE, None), False, None, 1),
    (lambda c: c.setdefault("a", 2, 60), ("setdefault", A, b"w\2", 60.0), False, ONE, 1),
    (lambda c: c.delete("a"), ("delete", A), False, True, True),
    (lambda c: c.delete("a", if_version=7), ("delete", A, 7), False, False, False),
    # What has expired already removes what it would replace.
    (lambda c: c.set("a", 1, expires_at=PAST), ("delete", A), False, False, True),
    (lambda c: c.set("a", 1, tags=["x"], expires_at=0), ("delete", A), False, True, True),
    (lambda c: c.set("a", 1, if_version=7, expires_at=0), ("delete", A, 7), False, False, False),
    (lambda c: c.add("a", 1, expires_at=0), ("contains", A), True, True, False),
    (lambda c: c.add("a", 1, expires_at=0), ("contains", A), True, False, True),
    (lambda c: c.replace("a", 1, expires_at=-5), ("delete", A), False, False, False),
    (lambda c: c.touch("a", expires_at=PAST), ("delete", A), False, True, True),
    (lambda c: c.set("a", 1, expires_at=math.inf), ("put", A, ONE, None, None, None), True, True, True),
    # The default of a client.
    (lambda c: hour(c).set("a", 1), ("set", A, ONE, 3600.0), True, True, True),
    (lambda c: hour(c).set("a", 1, DEFAULT_TTL), ("set", A, ONE, 3600.0), True, True, True),
    (lambda c: hour(c).set("a", 1, None), ("set", A, ONE, None), True, True, True),
    (lambda c: hour(c).set("a", 1, 5), ("set", A, ONE, 5.0), True, True, True),
    (lambda c: hour(c).set("a", 1, ...), ("put", A, ONE, -3600.0, None, None), True, True, True),
    (lambda c: hour(c).__setitem__("a", 1), ("set", A, ONE, 3600.0), True, True, None),
    (lambda c: hour(c).set("a", 1, tags=[]), ("put", A, ONE, 3600.0, None, []), True, True, True),
    (lambda c: hour(c).add("a", 1), ("put", A, ONE, 3600.0, "absent", None), False, True, True),
    (lambda c: hour(c).add("a", 1, ...), ("put", A, ONE, -3600.0, "absent", None), False, True, True),
    (lambda c: hour(c).replace("a", 1), ("put", A, ONE, 3600.0, "present", None), False, True, True),
    (lambda c: hour(c).setdefault("a", 1), ("setdefault", A, ONE, 3600.0), False, None, 1),
    (lambda c: hour(c).incr("a"), ("incr", A, b"w\1", b"w\0", 3600.0), False, b"w\5", 5),
    (lambda c: hour(c).touch("a"), ("touch", A, 3600.0), True, True, True),
    (lambda c: hour(c).touch("a", None), ("touch", A, None), True, True, True),
    (lambda c: hour(c).compare_and_set("a", 1, 7), ("put", A, ONE, -3600.0, 7, None), False, True, True),
    (lambda c: hour(c).get("a", touch_seconds=5), ("get", A, 5.0), True, ONE, 1),
    (lambda c: hour(c).set_many({"a": 1}), ("set_many", [A], [ONE], 3600.0), True, [([0], 1)], 1),
    (lambda c: hour(c).update(a=1), ("set_many", [A], [ONE], 3600.0), True, [([0], 1)], None),
    (lambda c: hour(c).touch_many(["a"]), ("touch_many", [A], None, 3600.0), True, [([0], 1)], 1),
    (lambda c: c.set_many({"a": 1}, ...), ("set_many", [A], [ONE], -math.inf), True, [([0], 1)], 1),
    (lambda c: c.set_many({"a": 1}, expires_at=0), ("delete_many", [A], None), False, [([0], 0)], 1),
    (lambda c: c.touch_many(["a"], expires_at=0), ("delete_many", [A], None), False, [([0], 1)], 1),
    (lambda c: c.incr("a", default=None), ("incr", A, b"w\1", None, None), False, b"w\5", 5),
    (lambda c: c.contains("a"), ("contains", A), True, True, True),
    (lambda c: "a" in c, ("contains", A), True, False, False),
    (lambda c: c.ttl("a"), ("ttl", A), True, 5, 5.0),
    (lambda c: c.ttl("a"), ("ttl", A), True, math.inf, math.inf),
    (lambda c: len(c), ("count", b"\0"), True, [1, 2, 3], 6),
    (lambda c: bool(c), ("count", b"\0", 1), True, [0, 0, 0], False),
    (lambda c: c.clear(), ("clear", b"\0"), False, [1, 0, 3], 4),
    (lambda c: c.invalidate_tag("x"), ("invalidate_tag", b"\0x"), True, [1, 0, 3], 4),
    (lambda c: c.reset_stats(), ("reset_stats",), True, [True] * 3, None),
]


@pytest.mark.parametrize(
    ("call", "sent", "idempotent", "answer", "returned"),
    VERBS,
    ids=lambda part: None if callable(part) else str(part)[:40],
)
def test_a_verb_is_one_request_that_is_retried_iff_that_is_harmless(
    call: Callable[[PyroCacheClient], Any],
    sent: tuple[Any, ...],
    idempotent: bool,
    answer: Any,
    returned: Any,
) -> None:
    cache = client(answer)
    result = call(cache)
    assert (result, type(result)) == (returned, type(returned))
    assert router(cache).calls == [sent]
    assert router(cache).idempotent == [idempotent]


def test_a_counter_without_an_entry_and_without_a_default_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="a"):
        client(None).incr("a", default=None)
    with pytest.raises(KeyError, match="a"):
        client(None).decr("a", 2, None)


def test_what_has_expired_is_not_stored_where_the_node_is_away() -> None:
    for call in (
        lambda c: c.set("a", 1, expires_at=0),
        lambda c: c.add("a", 1, expires_at=0),
        lambda c: c.replace("a", 1, expires_at=0),
        lambda c: c.touch("a", expires_at=0),
    ):
        assert call(client(unreachable(), on_error="miss")) is False


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-7))])
def test_only_the_remaining_time_is_sent(zone: timezone) -> None:
    for expires_at in (
        datetime.now(zone) + timedelta(hours=1),
        time.time() + 3600,
        np.float64(time.time() + 3600),
    ):
        cache = client(True)
        assert cache.set("a", 1, expires_at=expires_at)
        [(_, _, _, seconds, *_)] = router(cache).calls
        assert type(seconds) is float
        assert 3590 < seconds <= 3600


def test_a_namespace_inherits_the_default_ttl_and_may_have_its_own() -> None:
    cache = hour(client(True))
    inner = cache.namespace("shop")
    never, minute = (
        inner.namespace("eu", ttl_seconds=None),
        inner.namespace("eu", ttl_seconds=timedelta(minutes=1)),
    )
    for each in (inner, never, minute, never.namespace("x"), minute.namespace("x")):
        each.set("a", 1)
    assert [call[-1] for call in router(cache).calls] == [3600.0, None, 60.0, None, 60.0]
    assert pickle.loads(pickle.dumps(minute))._context.ttl_seconds == 60.0


def test_the_default_ttl_is_that_of_loaded_values_too() -> None:
    cache = hour(client(True))
    found = [cache.memoize().options.ttl_seconds, cache.memoize(None).options.ttl_seconds]
    assert found == [3600.0, None]


def test_jitter_draws_a_ttl_for_each_key() -> None:
    sent: list[Any] = []

    class Router(FakeRouter):
        def batch(self, batch: Batch, deadline: Deadline, *, one_reply: bool = False) -> Any:
            sent.append((batch.ttls, batch.arguments))
            yield range(len(batch.keys)), len(batch.keys)

    cache = client_of(Router(True))
    entries = {number: number for number in range(200)}
    assert cache.set_many(entries, 100, ttl_jitter=0.25, tags=["x"]) == 200
    [(ttls, arguments)] = sent
    assert arguments == ([b"\0x"],)
    assert len(set(ttls)) > 150
    assert 75 <= min(ttls) < 80
    assert 95 < max(ttls) <= 100
    sent.clear()
    cache.set_many(entries, None, ttl_jitter=0.25)
    cache.set_many(entries, 100)
    cache.set_many(entries, 100, ttl_jitter=0)
    assert sent == [(None, (None,)), (None, (100.0,)), (None, (100.0,))]


def test_the_size_of_what_is_sent_is_known_before() -> None:
    for call, answer in (
        (lambda c: c.set("a", b"x" * 1000), True),
        (lambda c: c.add("a", b"x" * 1000), True),
        (lambda c: c.setdefault("a", b"x" * 1000), None),
        (lambda c: c.incr("a", 1 << 8000), b"w\0"),
        (lambda c: c.incr("a", default=1 << 8000), b"w\0"),
    ):
        cache = client(answer)
        call(cache)
        assert router(cache).largest_values[0] > 1000


def test_a_namespace_has_a_prefix_of_its_own() -> None:
    cache = client(ONE, True)
    inner = cache.namespace("shop").namespace("eu")
    inner.get("a")
    inner.set("a", 1, tags=["x"])
    prefix = namespace_prefix("shop", "eu")
    assert router(cache).calls == [
        ("get", prefix + b"sa"),
        ("put", prefix + b"sa", ONE, None, None, [prefix + b"x"]),
    ]


@pytest.mark.parametrize(
    ("call", "figures"),
    [
        (lambda c: c.get("a"), (0, 1)),
        (lambda c: c.pop("a"), (0, 1)),
        (lambda c: c.setdefault("a"), (0, 1)),
    ],
)
def test_a_value_that_is_none_of_ours_counts(call: Callable[[PyroCacheClient], Any], figures: Any) -> None:
    cache = client(b"?")
    with pytest.raises(CorruptValue):
        call(cache)
    stats = cache._context.figures
    assert (stats.misses_on_error, stats.corrupt_values) == figures


# Compute -----------------------------------------------------------------------------------------------------


def test_compute_reads_applies_and_stores_in_place_of_what_it_read() -> None:
    cache = client([ONE, 9], True)
    assert cache.compute("a", lambda value: value + 1) == 2
    assert router(cache).calls == [("get_with_version", A), ("put", A, b"w\2", -math.inf, 9, None)]
    assert router(cache).idempotent == [True, False]


def test_compute_without_an_entry_stores_only_while_there_is_none() -> None:
    cache = client(None, True)
    assert cache.compute("a", lambda value: value + 1, 5, ttl_seconds=60) == 6
    assert router(cache).calls[1] == ("put", A, b"w\6", 60.0, "absent", None)


def test_compute_waits_ever_longer_between_attempts() -> None:
    cache = client(*[[ONE, 9], False] * 10, [ONE, 9], True)
    pauses: list[float] = []
    compute(cache._context, "a", lambda value: value, None, ..., sleep=pauses.append)
    assert len(pauses) == 10
    assert 0 < pauses[0] < 0.005 < pauses[-1] < 0.1
    assert cache._context.figures.conflicts == 10


def test_compute_that_is_always_too_late_ends_with_its_deadline() -> None:
    cache = client(
        lambda: [ONE, 9] if router(cache).calls[-1][0] == "get_with_version" else False, timeout=0.1
    )
    begun = time.monotonic()
    with pytest.raises(Conflict, match=r"each of the \d+ times .* for 0\.1 s"):
        cache.compute("a", lambda value: value)
    assert time.monotonic() - begun < 1.0


def test_compute_whose_reply_was_lost_is_not_made_twice() -> None:
    cache = client([ONE, 9], unreachable())
    with pytest.raises(NodeUnavailable):
        cache.compute("a", lambda value: value + 1)
    assert len(router(cache).calls) == 2


def test_the_time_of_the_function_does_not_count() -> None:
    cache = client([ONE, 9], True, timeout=0.1)
    cache.compute("a", lambda value: time.sleep(0.2))
    first, second = router(cache).deadlines
    assert first is second
    assert second.remaining() > 0.05


@pytest.mark.parametrize(
    "call",
    [
        lambda cache: cache.update("key", lambda value: value),
        lambda cache: cache.update("key", lambda value: value, 5, ttl_seconds=60),
        lambda cache: cache.update("key", function=len),
        lambda cache: cache.update(key="key", function=len),
        lambda cache: cache.update("key", 5),
        lambda cache: cache.update({"a": 1}, 60),
        lambda cache: cache.update({"a": 1}, ttl_seconds=60),
    ],
)
def test_update_in_its_old_form_names_compute(call: Callable[[PyroCacheClient], Any]) -> None:
    with pytest.raises(TypeError, match=r"compute.* set_many"):
        call(client(None))


def test_update_stores_entries_of_any_name() -> None:
    cache = client([([0, 1], 2)])
    cache.update({"key": 1}, function=2)
    assert router(cache).calls[0][:2] == ("set_many", [b"\0skey", b"\0sfunction"])


# Batches -----------------------------------------------------------------------------------------------------


def test_batches_send_what_they_always_have_unless_there_are_tags() -> None:
    cache = client([([0, 1], 2)])
    assert cache.set_many({"a": 1, "b": 2}) == 2
    cache.set_many({"a": 1, "b": 2}, 60, tags=["x"])
    cache.delete_many(["a", "b"])
    cache.touch_many(["a", "b"], 5)
    keys, values = [A, b"\0sb"], [ONE, b"w\2"]
    assert router(cache).calls == [
        ("set_many", keys, values, None),
        ("set_many", keys, values, 60.0, [b"\0x"]),
        ("delete_many", keys, None),
        ("touch_many", keys, None, 5.0),
    ]
    assert router(cache).idempotent == [True, True, False, True]


def errors_of(*errors: tuple[list[int], PyroCacheError]) -> Any:
    return [([0], [ONE]), *errors]


def test_a_batch_that_fails_in_part_says_where_and_why_and_what_it_has() -> None:
    lost, large = unreachable(), ValueTooLarge("too large")
    with pytest.raises(PartialFailure) as caught:
        client(errors_of(([1, 2], lost), ([3], large))).get_many(["a", "b", "c", "d"])
    assert caught.value.results == {"a": 1}
    assert caught.value.errors == {"b": lost, "c": lost, "d": large}
    assert caught.value.__cause__ is None
    assert str(lost) in str(caught.value)
    assert str(caught.value).startswith("get_many failed for 3 of 4 keys")
    assert "cache.node.1 is unreachable" in str(caught.value)
    assert isinstance(caught.value, NodeUnavailable)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.results, again.errors.keys()) == (str(caught.value), {"a": 1}, {"b", "c", "d"})


def test_with_misses_only_what_is_no_missing_node_is_an_error() -> None:
    lost, large = unreachable(), ValueTooLarge("too large")
    cache = client(errors_of(([1], lost), ([2], lost)), on_error="miss")
    assert cache.get_many(["a", "b", "c"]) == {"a": 1}
    assert cache._context.figures.misses_on_error == 1
    cache = client(errors_of(([1], lost), ([2], large)), on_error="miss")
    with pytest.raises(PartialFailure) as caught:
        cache.get_many(["a", "b", "c"])
    assert caught.value.errors == {"c": large}


def test_the_error_of_a_key_without_a_hash_is_raised_itself() -> None:
    lost = unreachable()
    with pytest.raises(NodeUnavailable) as caught:
        client([([0], 1), ([1], lost)]).delete_many(["a", ["b"]])
    assert caught.value is lost


def test_values_that_do_not_unpickle_are_apart_from_the_others() -> None:
    broken = pickle.dumps(object()).replace(b"object", b"nobody")
    cache = client([([0, 2], [ONE, broken]), ([1, 3], [b"?", None])])
    with pytest.raises(PartialFailure) as caught:
        cache.get_many(["a", "b", "c", "d"])
    assert caught.value.results == {"a": 1}
    assert {key: type(error) for key, error in caught.value.errors.items()} == {
        "b": CorruptValue,
        "c": SerializationError,
    }
    assert cache._context.figures.corrupt_values == 1


def test_not_an_int_is_a_type_error() -> None:
    assert issubclass(NotAnInt, TypeError)
    with pytest.raises(TypeError):
        client(NotAnInt("no int")).incr("a")


# Scans -------------------------------------------------------------------------------------------------------


class ScannedRouter(FakeRouter):
    """Nodes with pages to give, and a view that says whose a key is."""

    def __init__(
        self, pages: dict[str, list[Any]], away: dict[Member, NodeUnavailable] | None = None
    ) -> None:
        super().__init__()
        self.pages = pages
        self.away = away or {}
        self.asked: list[tuple[Any, ...]] = []

    def agreed_view(self, deadline: Deadline) -> tuple[ClusterView, dict[Member, NodeUnavailable]]:
        return VIEW, self.away

    def ask(self, member: Member, command: Command, arguments: tuple[Any, ...], deadline: Deadline) -> Any:
        self.asked.append((member.name, command.name, *arguments))
        self.deadlines.append(deadline)
        page = self.pages[member.name].pop(0)
        if isinstance(page, Exception):
            raise page
        return [arguments[2] + 1 if self.pages[member.name] else 0, page]


def scanned(pages: dict[str, list[Any]], on_error: OnError = "raise", **options: Any) -> PyroCacheClient:
    return client_of(ScannedRouter(pages, **options), on_error)


def owned(name: str, count: int, start: int = 0) -> list[bytes]:
    """Encoded keys that belong to the node of that name."""
    keys = (b"\0s%d" % number for number in range(start, 10**6))
    return [
        key
        for key, _ in zip((key for key in keys if VIEW.owner(key).name == name), range(count), strict=False)
    ]


def decoded(keys: list[bytes]) -> list[str]:
    return [key[2:].decode() for key in keys]


def test_a_scan_asks_node_after_node_page_after_page_when_it_must() -> None:
    one, two, three = (owned(member.name, 5) for member in VIEW.members)
    cache = scanned(
        {"cache.node.1": [one[:2], [], one[2:]], "cache.node.2": [two], "cache.node.3": [[], three]}
    )
    scan = cache.scan("", batch=7)
    assert router(cache).asked == []
    assert next(scan) == decoded(one)[0]
    assert len(router(cache).asked) == 1
    assert list(scan) == decoded(one[1:] + two + three)
    assert router(cache).asked[:2] == [
        ("cache.node.1", "scan", b"\0", b"\0s", 0, 7),
        ("cache.node.1", "scan", b"\0", b"\0s", 1, 7),
    ]
    assert len(set(map(id, router(cache).deadlines))) == len(router(cache).asked) == 6


def test_a_scan_of_empty_pages_that_never_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrocache.client.features.scan._MOST_EMPTY_PAGES", 50)
    one = owned("cache.node.1", 1)
    pages = {"cache.node.1": [[], one] * 100, "cache.node.2": [[]] * 200, "cache.node.3": [[]]}
    scan = scanned(pages).scan()
    assert list(itertools.islice(scan, 100)) == decoded(one * 100)
    with pytest.raises(RemoteError, match=r"cache\.node\.2 .* 50 empty pages"):
        next(scan)


def test_a_key_counts_only_at_its_owner() -> None:
    one, two = owned("cache.node.1", 5), owned("cache.node.2", 5)
    cache = scanned({"cache.node.1": [one], "cache.node.2": [[*two, *one]], "cache.node.3": [one + two]})
    assert list(cache.scan()) == decoded(one + two)


def test_a_node_that_has_left_ends_its_part_and_one_that_is_away_is_an_error_or_a_miss() -> None:
    one, three = owned("cache.node.1", 5), owned("cache.node.3", 5)

    def pages(problem: Exception) -> dict[str, list[Any]]:
        return {"cache.node.1": [one[:3], problem], "cache.node.2": [problem], "cache.node.3": [three]}

    assert list(scanned(pages(NodeLeft("left"))).scan()) == decoded(one[:3] + three)
    walk = scanned(pages(unreachable())).scan()
    assert [next(walk) for _ in range(3)] == decoded(one[:3])
    with pytest.raises(NodeUnavailable):
        next(walk)
    lenient = scanned(pages(unreachable()), on_error="miss")
    assert list(lenient.scan()) == decoded(one[:3] + three)
    assert lenient._context.figures.misses_on_error == 2
    gone = {VIEW.members[1]: unreachable()}
    lenient = scanned({"cache.node.1": [one], "cache.node.3": [three]}, on_error="miss", away=gone)
    assert list(lenient.scan()) == decoded(one + three)
    with pytest.raises(NodeUnavailable):
        list(scanned({"cache.node.1": [one], "cache.node.3": [three]}, away=gone).scan())


def test_what_is_not_a_function_is_refused_in_words() -> None:
    with PyroCacheClient("127.0.0.1:1") as cache:
        with pytest.raises(TypeError, match="set stores a value"):
            cache.compute("key", 5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="setdefault"):
            cache.get_or_set("key", 5)  # type: ignore[arg-type]


# Closing -----------------------------------------------------------------------------------------------------


def test_closing_a_namespace_closes_nothing_else() -> None:
    cache = client(ONE, True)
    inner = cache.namespace("shop")
    deeper = inner.namespace("eu")
    inner.close()
    for closed in (inner, deeper):
        with pytest.raises(ClientClosed):
            closed.get("a")
        with pytest.raises(ClientClosed):
            closed.namespace("more")
    assert cache.get("a") == 1
    assert not router(cache).closed


def test_closing_a_client_closes_its_backend_and_its_namespaces() -> None:
    cache = client(ONE)
    inner, sent_by = cache.namespace("shop"), router(cache)
    cache.close()
    cache.close()
    assert sent_by.closed
    for closed in (cache, inner):
        for call in (
            lambda c: c.get("a"),
            lambda c: len(c),
            lambda c: c.set_many({"a": 1}),
            lambda c: c.nodes(),
        ):
            with pytest.raises(ClientClosed):
                call(closed)
    assert repr(cache).endswith(" closed>")
