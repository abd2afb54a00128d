"""Every limit is met with the error that its documentation names, and with nothing else changed.

Real processes. The memory tests print what they measured.
"""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pyrocache import PyroCacheClient
from pyrocache.client.keys.encoding import encode_key
from pyrocache.errors import (
    KeyTooLarge,
    NameServerUnavailable,
    NoNodes,
    PartialFailure,
    PyroCacheError,
    SerializationError,
    ValueTooLarge,
)
from pyrocache.runtime.child_process import start_node
from tests.support.nodes import RunningNode, private_cluster, running_nameserver, running_node
from tests.support.scripted_peer import in_threads
from tests.support.waiting import PATIENCE_SECONDS
from tests.support.wire import NAME, NO_VIEW, Peer

KIB = 1024
MIB = 2**20
YEAR_SECONDS = 365 * 86400.0
NOBODY = "127.0.0.1:1"
"""An address where nothing listens."""


def counters(cache: PyroCacheClient) -> dict[str, int]:
    """What the nodes have counted so far."""
    total = cache.stats().total
    return {name: getattr(total, name) for name in ("hits", "misses", "sets", "deletes", "entries", "bytes")}


@pytest.fixture(scope="module")
def small_node() -> Iterator[RunningNode]:
    """A node that takes values of up to 10 kB."""
    with running_node(max_value_bytes=10_000) as node:
        yield node


@pytest.fixture
def small(small_node: RunningNode) -> Iterator[PyroCacheClient]:
    """A client of it; the node is empty."""
    with PyroCacheClient(small_node.nameserver) as cache:
        cache.clear()
        yield cache


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("secret")


class TestKeys:
    LONGEST = "k" * (64 * KIB - 2)

    def test_a_key_of_exactly_64_kib_works(self, cache: PyroCacheClient) -> None:
        for key in (self.LONGEST, self.LONGEST.encode()):
            assert len(encode_key(key)) == 64 * KIB
            assert cache.set(key, "value") is True
            assert cache.get(key) == "value"
            assert cache.get_many([key]) == {key: "value"}
            assert list(cache.keys()) == [key]
            assert cache.delete(key) is True
            assert cache.set_many({key: "value"}) == 1
            assert cache.delete_many([key]) == 1

    @pytest.mark.full
    def test_a_thousand_of_the_longest_keys_pass_in_one_batch(self, cache: PyroCacheClient) -> None:
        keys = [f"{number:04d}" + self.LONGEST[4:] for number in range(1000)]
        assert cache.set_many(dict.fromkeys(keys, 1)) == 1000
        assert len(cache.get_many(keys)) == 1000
        assert set(cache.keys()) == set(keys)
        assert cache.delete_many(keys) == 1000

    VERBS: tuple[Callable[[PyroCacheClient, Any], Any], ...] = (
        lambda cache, key: cache.set(key, 1),
        lambda cache, key: cache.get(key),
        lambda cache, key: cache.delete(key),
        lambda cache, key: cache.contains(key),
        lambda cache, key: cache.ttl(key),
        lambda cache, key: cache.get_many(["short", key]),
        lambda cache, key: cache.set_many({"short": 1, key: 1}),
        lambda cache, key: cache.delete_many(["short", key]),
        lambda cache, key: cache.node_for(key),
        lambda cache, key: cache[key],
        lambda cache, key: cache.__setitem__(key, 1),
        lambda cache, key: key in cache,
    )

    @pytest.mark.parametrize("key", [LONGEST + "k", b"k" * 70_000, (LONGEST, 1), 1 << 8 * 65536], ids=type)
    def test_a_longer_key_is_refused_by_every_verb_and_changes_nothing(
        self, small: PyroCacheClient, key: Any
    ) -> None:
        small.set("short", "value")
        before = counters(small)
        for verb in self.VERBS:
            with pytest.raises(KeyTooLarge):
                verb(small, key)
        assert counters(small) == before

    def test_a_longer_key_is_refused_before_anything_is_sent(self) -> None:
        with PyroCacheClient(NOBODY) as cache:
            for verb in self.VERBS:
                with pytest.raises(KeyTooLarge):
                    verb(cache, self.LONGEST + "k")

    def test_the_namespace_is_part_of_the_key(self, small_node: RunningNode) -> None:
        with PyroCacheClient(small_node.nameserver, namespace="ten bytes!") as cache:
            assert cache.set(self.LONGEST[11:], 1) is True  # a byte for the length of the only name
            with pytest.raises(KeyTooLarge):
                cache.set(self.LONGEST[10:], 1)
            assert cache.clear() == 1

    def test_the_error_says_how_long_a_key_may_be_and_not_what_it_was(self) -> None:
        with PyroCacheClient(NOBODY) as cache, pytest.raises(KeyTooLarge) as caught:
            cache.get("secret" * 20_000)
        assert "64 KiB" in str(caught.value) or "65536" in str(caught.value)
        assert "secret" not in str(caught.value)


class TestValues:
    def test_a_value_as_large_as_the_node_takes_works(self, small: PyroCacheClient) -> None:
        largest = b"v" * (10_000 - 1)
        assert small.set("key", largest) is True
        assert small.get("key") == largest
        assert small.set_many({"key": largest, "other": largest}) == 2

    def test_a_larger_value_is_refused_before_it_is_sent_and_the_old_one_stays(
        self, small: PyroCacheClient
    ) -> None:
        small.set("key", "old", ttl_seconds=1000)
        before = counters(small)
        for too_large in (b"v" * 10_000, "v" * 10_000, list(range(10_000)), b"v" * 10_000_000):
            with pytest.raises(ValueTooLarge, match=r"cache\.node\.1 takes up to 10000"):
                small.set("key", too_large)
        assert counters(small) == before
        assert small.get("key") == "old"
        remaining = small.ttl("key")
        assert remaining is not None
        assert remaining < 1000

    def test_a_value_too_large_in_a_batch_leaves_the_others_alone(self, small: PyroCacheClient) -> None:
        small.set("b", "old")
        with pytest.raises(PartialFailure, match="set_many failed for 2 of 4 keys") as caught:
            small.set_many({"a": 1, "b": b"v" * 10_000, "c": 3, "d": b"v" * 10_001})
        assert caught.value.results == 2
        assert set(caught.value.errors) == {"b", "d"}
        assert {type(error) for error in caught.value.errors.values()} == {ValueTooLarge}
        assert small.get_many(["a", "b", "c", "d"]) == {"a": 1, "b": "old", "c": 3}

    def test_the_connection_is_as_good_as_before(self, small: PyroCacheClient) -> None:
        small.set("key", "value")
        before = small.stats().total.connections
        for _ in range(20):
            with pytest.raises(ValueTooLarge):
                small.set("key", b"v" * 10_000)
        assert small.get("key") == "value"
        assert small.stats().total.connections == before

    def test_by_default_a_value_may_be_a_quarter_of_the_memory_and_not_a_byte_more(self) -> None:
        with private_cluster(nodes=1, max_memory="64MiB") as cluster, cluster.client(timeout=30) as cache:
            largest = bytes(16 * MIB - 1)
            assert cache.set("key", largest) is True
            assert cache.get("key") == largest
            before = counters(cache)
            with pytest.raises(ValueTooLarge, match=str(16 * MIB)):
                cache.set("key", bytes(16 * MIB))
            assert counters(cache) == before
            assert cache.ttl("key") is not None

    def test_a_value_larger_than_the_whole_memory_is_refused_by_the_node(self) -> None:
        node_settings = {"max_memory": MIB, "max_value_bytes": 2 * MIB}
        with running_node(**node_settings) as node, PyroCacheClient(node.nameserver) as cache:
            cache.set("key", "old")
            with pytest.raises(ValueTooLarge, match=str(MIB)):
                cache.set("key", bytes(MIB))
            with pytest.raises(PartialFailure, match=str(MIB)) as caught:
                cache.set_many({"other": 1, "key": bytes(MIB), "third": 3})
            assert caught.value.results == 2
            assert isinstance(caught.value.errors["key"], ValueTooLarge)
            assert cache.get_many(["key", "other", "third"]) == {"key": "old", "other": 1, "third": 3}

    @pytest.mark.parametrize(
        ("value", "name"),
        [
            (threading.Lock(), "_thread.lock"),
            (lambda: None, "function"),
            (sys.stdout.buffer, None),
            ((n for n in range(3)), "generator"),
            ([1, {"deep": threading.Lock()}], "list"),
            (Unpicklable(), "Unpicklable"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_a_value_that_does_not_pickle_is_named_by_its_type_and_nothing_is_sent(
        self, small: PyroCacheClient, value: Any, name: str | None
    ) -> None:
        small.set("key", "old")
        before = counters(small)
        with pytest.raises(SerializationError, match=name or type(value).__name__) as caught:
            small.set("key", value)
        assert "secret" not in str(caught.value)
        with pytest.raises(SerializationError):
            small.set_many({"other": 1, "key": value})
        assert counters(small) == before
        assert small.get("key") == "old"
        with PyroCacheClient(NOBODY) as cache, pytest.raises(SerializationError):
            cache.set("key", value)


class TestManyClients:
    def test_sixteen_at_once_can_list_all_keys(self, small: PyroCacheClient) -> None:
        there = set(range(10_000))
        small.set_many(dict.fromkeys(there))
        start = threading.Barrier(16)
        found: list[list[Any]] = []
        errors: list[Exception] = []

        def list_keys() -> None:
            start.wait(10)
            try:
                found.append(list(small.keys()))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=list_keys) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert errors == []
        assert all(len(keys) == 10_000 and set(keys) == there for keys in found)


class TestWhoIsThere:
    def test_no_name_server_is_an_error_with_the_address_and_the_command(self) -> None:
        with PyroCacheClient(NOBODY) as cache:
            for call in (lambda: cache.get("key"), lambda: cache.set("key", 1), lambda: len(cache)):
                with pytest.raises(NameServerUnavailable) as caught:
                    call()
                assert NOBODY in str(caught.value)
                assert "pyrocache nameserver --host 127.0.0.1 --port 1" in str(caught.value)

    def test_what_listens_there_and_is_no_name_server_is_said_to_be_none(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            stop = threading.Event()
            thread = threading.Thread(target=answer_as_something_else, args=(listener, stop))
            thread.start()
            try:
                with (
                    PyroCacheClient(f"127.0.0.1:{port}", timeout=2) as cache,
                    pytest.raises(NameServerUnavailable, match="did not answer as a Pyro5 name server"),
                ):
                    cache.get("key")
            finally:
                stop.set()
                thread.join(5)

    def test_a_name_server_that_never_answers_costs_one_timeout(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with (
                PyroCacheClient(f"127.0.0.1:{port}", timeout=0.3) as cache,
                pytest.raises(NameServerUnavailable, match=str(port)),
            ):
                cache.get("key")

    def test_a_name_server_without_nodes_is_an_error_with_the_command(self) -> None:
        with running_nameserver() as nameserver, PyroCacheClient(nameserver) as cache:
            for call in (lambda: cache.get("key"), lambda: cache.set_many({"key": 1}), lambda: len(cache)):
                with pytest.raises(NoNodes, match="pyrocache nodes"):
                    call()

    def test_a_node_whose_name_is_taken_ends_with_one_sentence(self, small_node: RunningNode) -> None:
        rival = start_node({"nameserver": small_node.nameserver, "name": NAME}, quiet=True)
        with pytest.raises(PyroCacheError, match=rf"{NAME} is held by a live node") as caught:
            rival.wait_until_ready()
        assert "\n" not in str(caught.value)
        assert rival.exit_status == 3
        with PyroCacheClient(small_node.nameserver) as cache:
            assert cache.set("key", "still served") is True

    def test_a_node_without_a_name_server_ends_with_one_sentence(self) -> None:
        node = start_node({"nameserver": NOBODY}, quiet=True)
        with pytest.raises(PyroCacheError, match=NOBODY):
            node.wait_until_ready()
        assert node.exit_status not in (None, 0)

    def test_max_memory_of_a_local_cluster_is_for_each_node(self) -> None:
        with private_cluster(nodes=2, max_memory="3MiB") as cluster, cluster.client() as cache:
            figures = cache.stats()
            assert [node.max_bytes for node in figures.nodes.values()] == [3 * MIB, 3 * MIB]
            assert figures.total.max_bytes == 6 * MIB
            cache.set_many({number: bytes(50_000) for number in range(200)})
            figures = cache.stats()
            assert all(2 * MIB < node.bytes <= 3 * MIB for node in figures.nodes.values())
            assert figures.total.evictions == 200 - figures.total.entries
            assert len(cache) == figures.total.entries


def answer_as_something_else(listener: socket.socket, stop: threading.Event) -> None:
    listener.settimeout(0.05)
    while not stop.is_set():
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


Sizes = Callable[[random.Random], int]


def one_to_200_kb(dice: random.Random) -> int:
    return dice.randint(1_000, 200_000)


def mostly_small(dice: random.Random) -> int:
    return 100 if dice.random() < 0.95 else one_to_200_kb(dice)


def one_to_16_mib(dice: random.Random) -> int:
    return dice.randint(MIB, 16 * MIB)


@dataclass(frozen=True)
class Mix:
    """What is written to a node until several times its memory has passed through it.

    Attributes:
        sizes: of the values; a number where all are alike.
        ttl: seconds from which each batch takes one; empty for no expiry.
        times: how many times its memory.
        keys: how many different ones there are before they come again; None when each is new.
        key_bytes: the length of the keys.
    """

    sizes: Sizes | int
    ttl: tuple[float, ...] = ()
    max_memory: int = 64 * MIB
    times: float = 5.0
    keys: int | None = None
    key_bytes: int = 0


SHORT_AND_LONG = (0.05, 0.5, 5.0, 3600.0)

MIXES = {
    "values of 100 bytes": Mix(100, times=3),
    "values of 100 bytes with a long TTL": Mix(100, (3600.0,), max_memory=128 * MIB, times=3),
    "the same 100,000 keys over and over with a TTL": Mix(100, (3600.0, 7200.0), times=4, keys=100_000),
    "empty values": Mix(0, times=2.5),
    "long keys with a TTL": Mix(100, (3600.0,), times=5, key_bytes=30_000),
    "values of 1 to 200 kB": Mix(one_to_200_kb, times=6),
    "values of 1 to 200 kB with TTLs": Mix(one_to_200_kb, SHORT_AND_LONG, times=6),
    "values of 1 to 200 kB under the same 1,000 keys": Mix(one_to_200_kb, times=6, keys=1000),
    "mostly small values": Mix(mostly_small, times=5),
    "mostly small values with TTLs": Mix(mostly_small, SHORT_AND_LONG, times=5),
    "values of 1 to 16 MiB": Mix(one_to_16_mib, times=12),
}


QUICK_MIXES = ("long keys with a TTL",)


def churn(peer: Peer, mix: Mix) -> Iterator[None]:
    """Write what the mix says; yields now and then."""
    dice = random.Random(1)
    noise = dice.randbytes(2 * MIB)
    written = number = 0
    while written < mix.times * mix.max_memory:
        batch: list[tuple[bytes, bytes]] = []
        size = 0
        while len(batch) < 1000 and size < MIB:
            if isinstance(mix.sizes, int):
                value = noise[: mix.sizes]
            else:
                length = mix.sizes(dice)
                value = noise[length : 2 * length] if length <= MIB else bytes(length)
            name = b"key:%d" % (number if mix.keys is None else number % mix.keys)
            key = name.ljust(mix.key_bytes, b".")
            batch.append((key, value))
            size += len(key) + len(value) + 400
            number += 1
        keys, values = [key for key, _ in batch], [value for _, value in batch]
        peer.call("set_many", NO_VIEW, keys, values, dice.choice(mix.ttl) if mix.ttl else None)
        written += size
        yield


def resident_bytes(pid: int) -> int:
    """Return what the system says of a process."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


class TestMemory:
    @pytest.mark.parametrize(
        "mix",
        [
            pytest.param(mix, id=name, marks=() if name in QUICK_MIXES else pytest.mark.full)
            for name, mix in MIXES.items()
        ],
    )
    def test_a_full_node_evicts_and_its_process_stays_within_the_bound(self, mix: Mix) -> None:
        bound = 1.3 * mix.max_memory + 64 * MIB
        with running_node(max_memory=mix.max_memory) as node, Peer(node) as peer:
            peak = 0
            for batches, _ in enumerate(churn(peer, mix)):
                if batches % 4 == 0:
                    peak = max(peak, peer.call("stats")["rss_bytes"])
            figures = peer.call("stats")
        peak = max(peak, figures["rss_bytes"])
        print(
            f"{mix.times * mix.max_memory / MIB:.0f} MiB through {mix.max_memory / MIB:.0f} MiB: the process took "
            f"up to {peak / MIB:.0f} MiB of {bound / MIB:.0f} MiB, {figures['entries']} entries at the end"
        )
        assert figures["bytes"] <= mix.max_memory
        assert figures["evictions"] + figures["expirations"] > 0 or mix.keys == 100_000
        assert peak <= bound

    @pytest.mark.parametrize("transport", [pytest.param("auto", marks=pytest.mark.full), "tcp"])
    def test_clients_that_send_the_largest_values_at_once_take_turns_within_the_bound(
        self, transport: Any
    ) -> None:
        max_memory, clients, rounds = 64 * MIB, 8, 4
        bound = 1.3 * max_memory + 64 * MIB
        with running_node(max_memory=max_memory) as node:
            value = bytes(max_memory // 4 - KIB)
            samples, over = [0], threading.Event()

            def watch() -> None:
                while not over.wait(0.005):
                    samples.append(resident_bytes(node.process.pid))

            def send(number: int) -> None:
                with PyroCacheClient(node.nameserver, timeout=PATIENCE_SECONDS, transport=transport) as cache:
                    for turn in range(rounds):
                        assert cache.set((number, turn % 2), value)

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            in_threads(clients, send)
            over.set()
            watcher.join()
        print(f"{clients} clients: up to {max(samples) / MIB:.0f} MiB of {bound / MIB:.0f} MiB")
        assert max(samples) <= bound

    @pytest.mark.full
    def test_entries_that_all_expire_at_other_times_stay_within_the_bound_too(self) -> None:
        max_memory = 96 * MIB
        bound = 1.3 * max_memory + 64 * MIB
        dice = random.Random(1)
        with running_node(max_memory=max_memory) as node, Peer(node) as peer:
            for start in range(0, 320_000, 1000):
                numbers = range(start, start + 1000)
                peer.call_all(
                    "set", [(NO_VIEW, b"key:%d" % n, b"", dice.uniform(60, YEAR_SECONDS)) for n in numbers]
                )
            figures = peer.call("stats")
        rss = figures["rss_bytes"]
        print(f"each with a TTL of its own: the process takes {rss / MIB:.0f} MiB of {bound / MIB:.0f} MiB")
        assert figures["bytes"] <= max_memory
        assert figures["evictions"] > 0
        assert rss <= bound

    @pytest.mark.full
    def test_a_few_keys_that_are_overwritten_with_ever_other_ttls_take_no_memory(self) -> None:
        with running_node(max_memory=MIB) as node, Peer(node) as peer:
            before = peer.call("stats")["rss_bytes"]
            for start in range(0, 100_000, 500):
                peer.call_all(
                    "set", [(NO_VIEW, b"key", b"value", 3600.0 + n) for n in range(start, start + 500)]
                )
            figures = peer.call("stats")
        grown = figures["rss_bytes"] - before
        print(f"100,000 TTLs for one key: the process grew by {grown / MIB:.1f} MiB")
        assert figures["entries"] == 1
        assert grown < 10 * MIB

    @pytest.mark.full
    def test_scans_that_nobody_finishes_do_not_keep_what_was_evicted(self) -> None:
        max_memory = 64 * MIB
        bound = 1.3 * max_memory + 64 * MIB
        with running_node(max_memory=max_memory) as node, Peer(node) as peer:
            for scan in range(8):
                for start in range(0, 27_000, 1000):
                    keys = [b"%d:%d:" % (scan, number) + bytes(KIB) for number in range(start, start + 1000)]
                    peer.call("set_many", NO_VIEW, keys, [bytes(KIB)] * 1000)
                peer.call("scan", b"", b"", 0, 1)
            rss = peer.call("stats")["rss_bytes"]
        print(f"8 unfinished scans: the process takes {rss / MIB:.0f} MiB of {bound / MIB:.0f} MiB")
        assert rss <= bound
