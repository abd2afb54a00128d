"""`dump` and `load` with a backend that changes between two requests, refuses, and ends."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pyrocache import NodeUnavailable
from pyrocache.client.context import ClientContext
from pyrocache.client.dump_format import Reader, Record, Writer
from pyrocache.client.features.dump import Loaded, dump, load
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import ClientConfig
from pyrocache.errors import ConfigurationError

MEMBER = Member("cache.node.1", "127.0.0.1", 1)
NOW = 1000.0


class Backend:
    """One node. ``entries`` has ``[frame, seconds left, tags]`` by key; ``between`` is called after values are read."""

    def __init__(self, **entries: list[Any]) -> None:
        self.prefix = b"\0"
        self.entries = {b"\0s" + key.encode(): entry for key, entry in entries.items()}
        self.views = [ClusterView([MEMBER], 1)]
        self.between: Any = lambda: None
        self.asked: list[int] = []
        self.versioned: list[bytes] = []
        self.stored: list[tuple[list[bytes], Any, Any]] = []
        self.refusals: list[Exception] = []
        self.retries: dict[str, int] = {}

    def agreed_view(self, deadline: Any) -> Any:
        return self.views.pop(0) if len(self.views) > 1 else self.views[0], {}

    def scan(
        self,
        member: Any,
        namespace: bytes,
        prefix: bytes,
        cursor: int,
        batch: int,
        deadline: Any,
        **more: Any,
    ) -> Any:
        keys = sorted(self.entries)[cursor : cursor + 3]  # pages of three
        rows = [[key, self.entries[key][1], self.entries[key][2], None, None, self.size(key)] for key in keys]
        return (cursor + 3 if cursor + 3 < len(self.entries) else 0), rows

    def size(self, key: bytes) -> int:
        return len(self.entries[key][0]) + 100

    def get_many(self, keys: Sequence[bytes], deadline: Any) -> Iterator[Any]:
        self.asked.append(len(keys))
        yield range(len(keys)), [self.entries[key][0] if key in self.entries else None for key in keys]
        self.between()

    def get_entries(self, keys: Sequence[bytes], deadline: Any) -> Iterator[Any]:
        self.versioned += keys
        for number, key in enumerate(keys):
            entry = self.entries.get(key)
            yield [number], [None if entry is None else [entry[0], 1, entry[1], entry[2], None, None, 1]]

    def set_many(
        self, keys: Sequence[bytes], frames: Sequence[Any], ttl: Any, tags: Any, deadline: Any
    ) -> Iterator[Any]:
        if self.refusals:
            yield range(len(keys)), self.refusals.pop(0)
            return
        self.stored.append((list(keys), ttl, tags))
        yield range(len(keys)), len(keys)


def context_of(backend: Any, *namespace: str) -> ClientContext[Any]:
    return ClientContext(ClientConfig(on_error="raise", namespace=namespace), backend)


def dumped(backend: Backend) -> dict[bytes, Record]:
    file = io.BytesIO()
    context = context_of(backend)
    writer = Writer(file.write, context.prefix)
    dump(context, writer, clock=lambda: NOW)
    writer.end()
    file.seek(0)
    records = [record for block in Reader(file.read).blocks() for record in block]
    assert len({record.key for record in records}) == len(records)
    return {record.key[2:]: record for record in records}


def file_of(*records: Record, prefix: bytes = b"\0") -> Reader:
    file = io.BytesIO()
    writer = Writer(file.write, prefix)
    for record in records:
        writer.add(record)
    writer.end()
    file.seek(0)
    return Reader(file.read)


def test_all_pages_are_dumped_without_giving_entries_versions() -> None:
    backend = Backend(**{f"k{number}": [b"%d" % number, math.inf, []] for number in range(8)})
    found = dumped(backend)
    assert {key: record.frame for key, record in found.items()} == {
        b"k%d" % number: b"%d" % number for number in range(8)
    }
    assert backend.versioned == []


def test_expiry_becomes_a_time_of_the_wall_clock() -> None:
    found = dumped(Backend(a=[b"", 60.0, []], b=[b"", math.inf, [b"\0t"]]))
    assert (found[b"a"].expires_at, found[b"a"].tags) == (NOW + 60.0, [])
    assert (found[b"b"].expires_at, found[b"b"].tags) == (None, [b"\0t"])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([b"old", math.inf, []], [b"new", 5.0, []]),
        ([b"old", 5.0, []], [b"new", math.inf, []]),
        ([b"old", 5.0, []], [b"new", 500.0, []]),
        ([b"old", math.inf, [b"a"]], [b"new", math.inf, [b"b"]]),
    ],
)
def test_an_entry_that_changes_meanwhile_is_dumped_as_it_is_at_one_moment(
    before: list[Any], after: list[Any]
) -> None:
    backend = Backend(same=[b"x", 7.0, []], key=before)
    backend.between = lambda: backend.entries.update({b"\0skey": after})
    record = dumped(backend)[b"key"]
    expires_at = None if math.isinf(after[1]) else NOW + after[1]
    assert (record.frame, record.expires_at, record.tags) == (b"new", expires_at, after[2])
    assert backend.versioned == [b"\0skey"]


def test_an_entry_that_is_removed_meanwhile_is_left_out() -> None:
    backend = Backend(a=[b"1", math.inf, []], b=[b"2", math.inf, []])
    backend.between = lambda: backend.entries.pop(b"\0sa", None)
    assert list(dumped(backend)) == [b"b"]


def test_values_are_requested_in_bounded_groups() -> None:
    backend = Backend(**{f"k{number}": [b"", math.inf, []] for number in range(6)})
    sizes = {b"\0sk0": 3 * 2**20, b"\0sk1": 3 * 2**20, b"\0sk2": 50 * 2**20}
    backend.size = lambda key: sizes.get(key, 100)  # type: ignore[method-assign]
    assert len(dumped(backend)) == 6
    assert backend.asked == [1, 1, 1, 3]


def test_a_cluster_that_changes_makes_the_dump_fail() -> None:
    backend = Backend(a=[b"1", math.inf, []])
    backend.views = [
        ClusterView([MEMBER], 1),
        ClusterView([MEMBER, Member("cache.node.2", "127.0.0.1", 2)], 2),
    ]
    with pytest.raises(NodeUnavailable, match="have changed during the dump"):
        dumped(backend)


def test_a_node_that_does_not_answer_makes_the_dump_fail() -> None:
    backend = Backend(a=[b"1", math.inf, []])
    away = NodeUnavailable("cache.node.2 does not answer.")
    backend.agreed_view = lambda deadline: (backend.views[0], {MEMBER: away})  # type: ignore[method-assign]
    with pytest.raises(NodeUnavailable, match="does not answer"):
        dumped(backend)


def test_what_has_expired_is_not_loaded_and_ttls_are_what_is_left() -> None:
    backend = Backend()
    records = (
        Record(b"\0sa", b"", NOW + 10.0, []),
        Record(b"\0sb", b"", NOW, []),
        Record(b"\0sc", b"", NOW - 1e9, []),
        Record(b"\0sd", b"", None, []),
        Record(b"\0se", b"", NOW + 0.5, []),
    )
    loaded = load(context_of(backend), file_of(*records), clock=lambda: NOW)
    assert (loaded.stored, loaded.expired, loaded.failed) == (3, 2, 0)
    assert backend.stored == [([b"\0sa", b"\0se"], [10.0, 0.5], None), ([b"\0sd"], None, None)]


def test_another_namespace_gets_keys_and_tags_of_its_own() -> None:
    backend = Backend()
    reader = file_of(Record(b"\0sa", b"", None, [b"\0t", b"foreign"]), Record(b"\0sb", b"", None, [b"\0u"]))
    context = context_of(backend, "shop")
    load(context, reader)
    assert backend.stored == [
        ([context.prefix + b"sa"], None, [context.prefix + b"t", b"foreign"]),
        ([context.prefix + b"sb"], None, [context.prefix + b"u"]),
    ]


def test_signed_values_are_loaded_only_into_their_namespace() -> None:
    backend, signed = Backend(), Record(b"\0sb", b"S" + bytes(40), None, [])
    plain = Record(b"\0sa", b"x", None, [])
    with pytest.raises(ConfigurationError, match=r"signed for the root namespace.*namespace 'shop'"):
        load(context_of(backend, "shop"), file_of(plain, signed))
    assert backend.stored == []
    assert load(context_of(backend), file_of(plain, signed)).stored == 2


def test_what_could_not_be_stored_is_counted() -> None:
    backend = Backend()
    backend.refusals = [NodeUnavailable("cache.node.1 does not answer."), NodeUnavailable("later")]
    records = [Record(b"\0s%d" % number, b"", None, [b"%d" % number]) for number in range(5)]
    loaded = Loaded()
    load(context_of(backend), file_of(*records), loaded=loaded)
    assert (loaded.stored, loaded.failed) == (3, 2)
    assert str(loaded.problem) == "cache.node.1 does not answer."
