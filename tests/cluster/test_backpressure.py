"""What a node at its limits does to clients: real processes, small limits, real clients beside raw peers."""

from __future__ import annotations

import contextlib
import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest

from pyrocache import Overloaded, PartialFailure, PyroCacheClient
from pyrocache.protocol import refusals
from pyrocache.protocol.refusals import Refusal
from tests.support.nodes import running_node
from tests.support.waiting import PATIENCE_SECONDS, wait_until
from tests.support.wire import NO_VIEW, Peer, call

OUR_NAMESPACE = b"\4\3our"
MIB = 2**20


@pytest.fixture(params=["auto", pytest.param("tcp", marks=pytest.mark.full)])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestReaders:
    def test_pipelined_requests_are_answered_in_order_once_their_replies_are_read(self) -> None:
        value, count = b"v" * 400_000, 200
        with running_node() as node, Peer(node, receive_buffer=4096) as deaf, Peer(node) as other:
            assert other.call("set", NO_VIEW, b"raw", value) is True
            before = other.call("stats")
            for number in range(count):
                deaf.sock.sendall(call(number, "get", NO_VIEW, b"raw"))
            answered = -1
            while answered != (answered := other.call("stats")["hits"]):
                time.sleep(0.1)
            assert answered - before["hits"] < count, "they wait"
            assert [deaf.answer() for _ in range(count)] == [(number, value) for number in range(count)]

    def test_whoever_never_reads_is_cut_off_while_clients_are_served(self, transport: Any) -> None:
        with (
            running_node(request_seconds=0.3) as node,
            Peer(node, receive_buffer=4096) as deaf,
            PyroCacheClient(node.nameserver, transport=transport) as cache,
        ):
            cache.set("key", bytes(MIB))
            assert deaf.call("set", NO_VIEW, b"raw", b"v" * 400_000) is True
            with contextlib.suppress(ConnectionError):
                for number in range(100):
                    deaf.sock.sendall(call(number, "get", NO_VIEW, b"raw"))
            client_alone = 1

            def cut_off() -> bool:
                assert cache.get("key") == bytes(MIB)
                return node.connections <= client_alone

            assert wait_until(cut_off)


class TestBuffers:
    def test_the_largest_half_request_makes_room_and_clients_notice_nothing(self, transport: Any) -> None:
        with (
            running_node(max_buffered_bytes=16 * MIB) as node,
            Peer(node) as hog,
            PyroCacheClient(node.nameserver, transport=transport) as cache,
        ):
            large = call(9, "set", NO_VIEW, b"large", bytes(30 * MIB))
            hog.sock.sendall(large[: 15 * MIB])
            for number in range(20):
                assert cache.set(number, bytes(2 * MIB)) is True
                assert cache.get(number) == bytes(2 * MIB)
            hog.sock.sendall(large[15 * MIB :])
            sequence, refusal = hog.answer()
            assert (sequence, refusal.code) == (9, refusals.OVERLOADED)
            assert hog.call("set", NO_VIEW, b"small", b"v") is True
            assert hog.call("get", NO_VIEW, b"large") is None

    def test_a_client_whose_value_is_too_much_for_now_says_so(self, transport: Any) -> None:
        with (
            running_node(max_buffered_bytes=4 * MIB) as node,
            PyroCacheClient(node.nameserver, transport=transport, timeout=1.0) as cache,
        ):
            with pytest.raises(Overloaded):
                cache.set("key", bytes(20 * MIB))
            assert cache.set("key", bytes(MIB)) is True
            assert cache.get("key") == bytes(MIB)


class TestConnections:
    def test_a_client_gets_through_when_there_is_room_again(self, transport: Any) -> None:
        with running_node(max_connections=2) as node, ExitStack() as stack:
            crowd = [stack.enter_context(Peer(node)) for _ in range(2)]
            with PyroCacheClient(node.nameserver, transport=transport, timeout=PATIENCE_SECONDS) as cache:
                timer = threading.Timer(0.3, lambda: [peer.sock.close() for peer in crowd])
                timer.start()
                try:
                    assert cache.set("key", "value") is True
                finally:
                    timer.join()
                assert cache.get("key") == "value"

    def test_a_client_says_so_when_there_is_none(self, transport: Any) -> None:
        with running_node(max_connections=2) as node, ExitStack() as stack:
            crowd = [stack.enter_context(Peer(node)) for _ in range(2)]
            with PyroCacheClient(node.nameserver, transport=transport, timeout=0.5) as cache:
                for _ in range(5):
                    with pytest.raises(Overloaded):
                        cache.get("key")
                with pytest.raises(PartialFailure) as caught:
                    cache.set_many({"a": 1, "b": 2})
                assert {type(error) for error in caught.value.errors.values()} == {Overloaded}
            assert crowd[0].call("ping")["serving"] is True


class TestQueue:
    def test_a_client_is_told_that_the_queue_is_full_and_is_served_later(self, transport: Any) -> None:
        entries = 100_000
        with running_node(workers=1, max_queued_calls=1, max_memory=256 * MIB) as node, ExitStack() as stack:
            peers = [stack.enter_context(Peer(node)) for _ in range(6)]
            for start in range(0, entries, 1000):
                keys = [OUR_NAMESPACE + b"entry:%d" % number for number in range(start, start + 1000)]
                assert peers[0].call("set_many", NO_VIEW, keys, [b""] * 1000, 3600) == 1000
            enough = threading.Event()

            def keep_counting(peer: Peer) -> None:
                while not enough.is_set():
                    assert isinstance(peer.call("count", OUR_NAMESPACE), int | Refusal)

            threads = [
                threading.Thread(target=keep_counting, args=(peer,), daemon=True) for peer in peers[1:]
            ]
            for thread in threads:
                thread.start()
            try:
                with PyroCacheClient(node.nameserver, transport=transport, timeout=0.2) as cache:
                    assert wait_until(lambda: is_overloaded(cache))
                    assert cache.set("key", "value") is True, "cheap calls do not queue"
                    enough.set()
                    assert wait_until(lambda: not is_overloaded(cache))
            finally:
                enough.set()
                for thread in threads:
                    thread.join(PATIENCE_SECONDS)


def is_overloaded(cache: PyroCacheClient) -> bool:
    try:
        len(cache)
    except Overloaded:
        return True
    return False
