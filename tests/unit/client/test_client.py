"""What each verb sends, and what it makes of an answer, an error, a node that is away; with a router that is told."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pyrocache import Conflict, CorruptValue, NodeUnavailable, NotAnInt, PartialFailure, PyroCacheClient
from pyrocache.client.backend import Core
from pyrocache.client.codec import encode_value
from pyrocache.client.keys.encoding import namespace_prefix
from pyrocache.client.routing.router import Batch, NodeLeft
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import ClientConfig, OnError
from pyrocache.errors import PyroCacheError, SerializationError, ValueTooLarge
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Unavailable

ONE = encode_value(1)
A = b"\0sa"
VIEW = ClusterView([Member(f"cache.node.{number}", "127.0.0.1", number) for number in (1, 2, 3)])


class FakeRouter:
    """Answers with what it is given, one after the other; exceptions are raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[Any, ...]] = []
        self.options: list[dict[str, Any]] = []
        self.pauses: list[float] = []

    def call(self, *arguments: Any, deadline: Deadline, **options: Any) -> Any:
        self.calls.append(arguments)
        self.options.append({"idempotent": True, **options})
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            return answer()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def everywhere(self, *arguments: Any, **options: Any) -> list[tuple[Member, Any]]:
        return list(zip(VIEW.members, self.call(*arguments, **options), strict=True))

    def batch(
        self,
        method: str,
        batch: Batch,
        *arguments: Any,
        on_reply: Callable[[Sequence[int], Any], int],
        **options: Any,
    ) -> Any:
        answers, errors = self.call(method, batch.keys, batch.values, *arguments, **options)
        for indices, answer in answers:
            assert on_reply(indices, answer) == len(indices)
        return errors

    def back_off(self, seconds: float) -> None:
        self.pauses.append(seconds)
        time.sleep(seconds / 100)


def client(
    *answers: Any, on_error: OnError = "raise", timeout: float = 5.0, **router: Any
) -> PyroCacheClient:
    cache = object.__new__(PyroCacheClient)
    cache._core = Core(ClientConfig(on_error=on_error, timeout=timeout), FakeRouter(*answers, **router))  # type: ignore[arg-type]
    return cache


def router(cache: PyroCacheClient) -> Any:
    return cache._core.router


def away(*, sent: bool = False) -> NodeUnavailable:
    error = NodeUnavailable("cache.node.1 is away")
    error.__cause__ = Unavailable(error, maybe_executed=sent, timed_out=False)
    return error


VERBS: list[tuple[Callable[[PyroCacheClient], Any], tuple[Any, ...], bool, Any, Any]] = [
    # what is called, what is sent, idempotent, the answer, what is returned
    (lambda c: c.set("a", 1), ("set", A, ONE, None), True, True, True),
    (lambda c: c.set("a", 1, 60), ("set", A, ONE, 60.0), True, True, True),
    (lambda c: c.set("a", 1, ...), ("put", A, ONE, -1, None, None), True, True, True),
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
    (lambda c: c.replace("a", 1, ...), ("put", A, ONE, -1, "present", None), False, False, False),
    (lambda c: c.get("a"), ("get", A), True, ONE, 1),
    (lambda c: c.get("a", "default"), ("get", A), True, None, "default"),
    (lambda c: c.get("a", touch_seconds=5), ("get", A, 5.0), True, ONE, 1),
    (lambda c: c.get_with_version("a"), ("get_with_version", A), True, [ONE, 9], (1, 9)),
    (lambda c: c.get_with_version("a"), ("get_with_version", A), True, None, None),
    (lambda c: c.compare_and_set("a", 1, 7), ("put", A, ONE, -1, 7, None), False, True, True),
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
    assert router(cache).options[0]["idempotent"] is idempotent


@pytest.mark.parametrize(
    ("call", "sent"), [verb[:2] for verb in VERBS if not verb[2] and verb[1][0] != "clear"]
)
def test_an_error_says_whether_it_may_have_been_done(
    call: Callable[[PyroCacheClient], Any], sent: tuple[Any, ...]
) -> None:
    with pytest.raises(NodeUnavailable) as caught:
        call(client(away(sent=True)))
    assert sent[0] in caught.value.__notes__[0]
    with pytest.raises(NodeUnavailable) as caught:
        call(client(away(sent=False)))
    assert not hasattr(caught.value, "__notes__")


def test_the_size_of_what_is_sent_is_known_before() -> None:
    for call in (
        lambda c: c.set("a", b"x" * 1000),
        lambda c: c.add("a", b"x" * 1000),
        lambda c: c.setdefault("a", b"x" * 1000),
        lambda c: c.incr("a", 1 << 8000),
        lambda c: c.incr("a", default=1 << 8000),
    ):
        cache = client(b"w\0" if "incr" in call.__code__.co_names else None)
        call(cache)
        assert router(cache).options[0]["largest_value"] > 1000


def test_a_namespace_has_a_prefix_of_its_own() -> None:
    cache = client(ONE)
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
    stats = cache._core.figures()
    assert (stats.misses_on_error, stats.corrupt_values) == figures


# Update ------------------------------------------------------------------------------------------------------


def test_an_update_reads_applies_and_stores_in_place_of_what_it_read() -> None:
    cache = client([ONE, 9], True)
    assert cache.update("a", lambda value: value + 1) == 2
    assert router(cache).calls == [("get_with_version", A), ("put", A, b"w\2", -1, 9, None)]
    assert [options["idempotent"] for options in router(cache).options] == [True, False]


def test_an_update_of_nothing_stores_only_while_there_is_nothing() -> None:
    cache = client(None, True)
    assert cache.update("a", lambda value: value + 1, 5, ttl_seconds=60) == 6
    assert router(cache).calls[1] == ("put", A, b"w\6", 60.0, "absent", None)


def test_an_update_waits_ever_longer_between_attempts() -> None:
    cache = client(*[[ONE, 9], False] * 10, [ONE, 9], True)
    cache.update("a", lambda value: value)
    pauses = router(cache).pauses
    assert len(pauses) == 10
    assert pauses == sorted(pauses)
    assert 0 < pauses[0] < pauses[-1] < 0.1
    assert cache._core.figures().conflicts == 10


def test_an_update_that_is_always_too_late_ends_with_its_deadline() -> None:
    cache = client(
        lambda: [ONE, 9] if router(cache).calls[-1][0] == "get_with_version" else False, timeout=0.1
    )
    begun = time.monotonic()
    with pytest.raises(Conflict, match=r"each of the \d+ times .* for 0\.1 s"):
        cache.update("a", lambda value: value)
    assert time.monotonic() - begun < 1.0


def test_an_update_whose_reply_was_lost_is_not_made_twice() -> None:
    cache = client([ONE, 9], away(sent=True))
    with pytest.raises(NodeUnavailable) as caught:
        cache.update("a", lambda value: value + 1)
    assert "put" in caught.value.__notes__[0]
    assert len(router(cache).calls) == 2


def test_the_time_of_the_function_does_not_count() -> None:
    deadlines: list[Deadline] = []

    class Watching(FakeRouter):
        def call(self, *arguments: Any, deadline: Deadline, **options: Any) -> Any:
            deadlines.append(deadline)
            assert deadline.remaining() > 0.05
            return super().call(*arguments, deadline=deadline, **options)

    cache = client([ONE, 9], True, timeout=0.1)
    cache._core.router = Watching([ONE, 9], True)  # type: ignore[assignment]
    cache.update("a", lambda value: time.sleep(0.2))
    assert deadlines[0] is deadlines[1]


# Batches -----------------------------------------------------------------------------------------------------


def test_batches_send_what_they_always_have_unless_there_are_tags() -> None:
    cache = client(([([0, 1], 2)], []))
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
    assert [options["idempotent"] for options in router(cache).options] == [True, True, False, True]


def errors_of(*errors: tuple[list[int], PyroCacheError]) -> Any:
    return ([([0], [ONE])], list(errors))


def test_a_batch_that_fails_in_part_says_where_and_why_and_what_it_has() -> None:
    lost, large = away(), ValueTooLarge("too large")
    with pytest.raises(PartialFailure) as caught:
        client(errors_of(([1, 2], lost), ([3], large))).get_many(["a", "b", "c", "d"])
    assert caught.value.results == {"a": 1}
    assert caught.value.errors == {"b": lost, "c": lost, "d": large}
    assert caught.value.__cause__ is lost
    assert str(caught.value).startswith("get_many failed for 3 of 4 keys")
    assert "cache.node.1 is away" in str(caught.value)
    assert isinstance(caught.value, NodeUnavailable)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.results, again.errors.keys()) == (str(caught.value), {"a": 1}, {"b", "c", "d"})


def test_with_misses_only_what_is_no_missing_node_is_an_error() -> None:
    lost, large = away(), ValueTooLarge("too large")
    cache = client(errors_of(([1], lost), ([2], lost)), on_error="miss")
    assert cache.get_many(["a", "b", "c"]) == {"a": 1}
    assert cache._core.figures().misses_on_error == 1
    cache = client(errors_of(([1], lost), ([2], large)), on_error="miss")
    with pytest.raises(PartialFailure) as caught:
        cache.get_many(["a", "b", "c"])
    assert caught.value.errors == {"c": large}


def test_the_error_of_a_key_without_a_hash_is_raised_itself() -> None:
    lost = away()
    with pytest.raises(NodeUnavailable) as caught:
        client(([([0], 1)], [([1], lost)])).delete_many(["a", ["b"]])
    assert caught.value is lost


def test_values_that_do_not_unpickle_are_apart_from_the_others() -> None:
    broken = pickle.dumps(object()).replace(b"object", b"nobody")
    cache = client(([([0, 2], [ONE, broken]), ([1, 3], [b"?", None])], []))
    with pytest.raises(PartialFailure) as caught:
        cache.get_many(["a", "b", "c", "d"])
    assert caught.value.results == {"a": 1}
    assert {key: type(error) for key, error in caught.value.errors.items()} == {
        "b": CorruptValue,
        "c": SerializationError,
    }
    assert cache._core.figures().corrupt_values == 1


def test_not_an_int_is_a_type_error() -> None:
    assert issubclass(NotAnInt, TypeError)
    with pytest.raises(TypeError):
        client(NotAnInt("no int")).incr("a")


# Scans -------------------------------------------------------------------------------------------------------


class ScannedRouter:
    """Nodes with pages to give, and a view that says whose a key is."""

    def __init__(
        self, pages: dict[str, list[Any]], away: dict[Member, NodeUnavailable] | None = None
    ) -> None:
        self.pages = pages
        self.away = away or {}
        self.asked: list[tuple[Any, ...]] = []
        self.deadlines: list[Deadline] = []

    def settled_view(self, deadline: Deadline) -> tuple[ClusterView, dict[Member, NodeUnavailable]]:
        return VIEW, self.away

    def ask(self, member: Member, *arguments: Any, deadline: Deadline) -> Any:
        self.asked.append((member.name, *arguments))
        self.deadlines.append(deadline)
        page = self.pages[member.name].pop(0)
        if isinstance(page, Exception):
            raise page
        return [len(self.pages[member.name]), page]


def scanned(pages: dict[str, list[Any]], on_error: OnError = "raise", **options: Any) -> PyroCacheClient:
    cache = object.__new__(PyroCacheClient)
    cache._core = Core(ClientConfig(on_error=on_error), ScannedRouter(pages, **options))  # type: ignore[arg-type]
    return cache


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
        ("cache.node.1", "scan", b"\0", b"\0s", 2, 7),
    ]
    assert len(set(map(id, router(cache).deadlines))) == len(router(cache).asked) == 6


def test_a_key_counts_only_at_its_owner() -> None:
    one, two = owned("cache.node.1", 5), owned("cache.node.2", 5)
    cache = scanned({"cache.node.1": [one], "cache.node.2": [[*two, *one]], "cache.node.3": [one + two]})
    assert list(cache.scan()) == decoded(one + two)


def test_a_node_that_has_left_ends_its_part_and_one_that_is_away_is_an_error_or_a_miss() -> None:
    one, three = owned("cache.node.1", 5), owned("cache.node.3", 5)

    def pages(problem: Exception) -> dict[str, list[Any]]:
        return {"cache.node.1": [one[:3], problem], "cache.node.2": [problem], "cache.node.3": [three]}

    assert list(scanned(pages(NodeLeft("left"))).scan()) == decoded(one[:3] + three)
    walk = scanned(pages(away())).scan()
    assert [next(walk) for _ in range(3)] == decoded(one[:3])
    with pytest.raises(NodeUnavailable):
        next(walk)
    lenient = scanned(pages(away()), on_error="miss")
    assert list(lenient.scan()) == decoded(one[:3] + three)
    assert lenient._core.figures().misses_on_error == 2
    gone = {VIEW.members[1]: away()}
    lenient = scanned({"cache.node.1": [one], "cache.node.3": [three]}, on_error="miss", away=gone)
    assert list(lenient.scan()) == decoded(one + three)
    with pytest.raises(NodeUnavailable):
        list(scanned({"cache.node.1": [one], "cache.node.3": [three]}, away=gone).scan())


def test_what_is_no_function_is_refused_in_words() -> None:
    with PyroCacheClient("127.0.0.1:1") as cache:
        for wrong in (lambda: cache.update("key", 5), lambda: cache.update({"a": 1}, 60)):  # type: ignore[arg-type, call-overload]
            with pytest.raises(TypeError, match="set_many"):
                wrong()
        with pytest.raises(TypeError, match="setdefault"):
            cache.get_or_set("key", 5)  # type: ignore[arg-type]
