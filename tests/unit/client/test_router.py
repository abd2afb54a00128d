"""Retries, deadlines and dropped connections, against scripted nodes on real sockets."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from pyrocache.client.connections import Deadline
from pyrocache.client.router import Item, Router
from pyrocache.cluster import wire
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.wire import Frame, FrameDecoder, Refusal
from pyrocache.errors import (
    NameServerUnavailable,
    NodeUnavailable,
    NoNodes,
    Overloaded,
    RemoteError,
    ValueTooLarge,
)

Call = tuple[str, list[Any]]
Script = Callable[[Call], Any]

HANG_UP = object()
SILENCE = object()


class ScriptedNode:
    """Answers each call with what ``script`` returns: a value, a `Refusal`, raw bytes, HANG_UP or SILENCE."""

    def __init__(self, number: int, script: Script, greeting: Any = "hello") -> None:
        self.script = script
        self.greeting = greeting
        self.calls: list[Call] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.member = Member(f"cache.node.{number}", "127.0.0.1", self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for sock in self._open:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        decoder = FrameDecoder(lambda header: None)
        try:
            while data := sock.recv(65536):
                decoder.feed(data)
                while frame := decoder.next_frame():
                    reply = self._reply(frame)
                    if reply is HANG_UP:
                        sock.close()
                        return
                    if reply is not SILENCE:
                        sock.sendall(reply)
        except OSError:
            pass

    def _reply(self, frame: Frame) -> Any:
        sequence = frame.header.sequence
        if frame.header.type == wire.CONNECT:
            if isinstance(self.greeting, Refusal):
                return wire.pack_message(wire.CONNECT_FAIL, sequence, wire.pack_plain(self.greeting.message))
            return wire.pack_message(wire.CONNECT_OK, sequence, wire.pack_plain({"handshake": self.greeting}))
        _, method, arguments, _ = wire.unpack_plain(frame.body)
        self.calls.append((method, arguments))
        result = self.script((method, arguments))
        if result is HANG_UP or result is SILENCE:
            return result
        if callable(result):
            return result(sequence)
        if isinstance(result, Refusal):
            body = wire.pack_refusal(result)
            return wire.pack_message(wire.RESULT, sequence, body, flags=wire.FLAG_EXCEPTION)
        return wire.pack_message(wire.RESULT, sequence, wire.pack_plain(result))


class ListedNodes:
    """A name server that lists what it is told."""

    def __init__(self, *members: Member) -> None:
        self.listed = list(members)
        self.lookups = 0
        self.away = False

    def members(self, timeout: float = 5.0) -> list[Member]:
        self.lookups += 1
        if self.away:
            raise NameServerUnavailable("away")
        return list(self.listed)

    def add(self, member: Member) -> bool:
        raise AssertionError

    remove = add


@pytest.fixture
def start() -> Iterator[Callable[..., ScriptedNode]]:
    with ExitStack() as stack:

        def start(script: Script, number: int = 1, **options: Any) -> ScriptedNode:
            node = ScriptedNode(number, script, **options)
            stack.callback(node.close)
            return node

        yield start


def sequence_of(*results: Any) -> Script:
    remaining = list(results)
    return lambda call: remaining.pop(0) if len(remaining) > 1 else remaining[0]


def router_for(*nodes: ScriptedNode, **options: Any) -> tuple[Router, ListedNodes]:
    directory = ListedNodes(*(node.member for node in nodes))
    return Router(directory, **options), directory


def get(router: Router, seconds: float = 5.0, **options: Any) -> Any:
    return router.call("get", b"k", deadline=Deadline(seconds), **options)


def as_lists(view: ClusterView) -> list[list[Any]]:
    return [[m.name, m.host, m.port, m.weight, m.incarnation] for m in view.members]


def test_a_call_carries_the_view_and_brings_the_result(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(b"value"))
    router, _ = router_for(node)
    assert get(router) == b"value"
    assert node.calls == [("get", [ClusterView([node.member]).id, b"k"])]


def test_one_connection_serves_many_calls(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(b"value"))
    router, directory = router_for(node)
    for _ in range(20):
        get(router)
    assert (node.connections, directory.lookups) == (1, 1)


def test_a_read_is_retried_when_its_reply_is_lost(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(HANG_UP, b"value"))
    router, _ = router_for(node)
    assert get(router) == b"value"
    assert len(node.calls) == 2


def test_what_is_not_idempotent_is_not_retried_when_its_reply_is_lost(
    start: Callable[..., ScriptedNode],
) -> None:
    node = start(sequence_of(HANG_UP, True))
    router, _ = router_for(node)
    with pytest.raises(NodeUnavailable):
        router.call("delete", b"k", deadline=Deadline(5.0), idempotent=False)
    assert len(node.calls) == 1


def test_a_connection_that_the_node_closed_while_idle_is_not_used(
    start: Callable[..., ScriptedNode],
) -> None:
    node = start(sequence_of(True))
    router, _ = router_for(node)
    router.call("delete", b"k", deadline=Deadline(5.0), idempotent=False)
    for sock in node._open[1:]:
        sock.shutdown(socket.SHUT_RDWR)
    assert router.call("delete", b"k", deadline=Deadline(5.0), idempotent=False) is True
    assert node.connections == 2


def test_a_node_that_is_gone_is_an_error_soon(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(b"value"))
    router, directory = router_for(node)
    get(router)
    node.close()
    with pytest.raises(NodeUnavailable, match=r"cache\.node\.1 at 127\.0\.0\.1:\d+ cannot be reached"):
        get(router, seconds=60.0)
    assert directory.lookups == 1 or directory.lookups == 2


def test_a_node_that_is_found_elsewhere_is_asked_there(start: Callable[..., ScriptedNode]) -> None:
    old, new = start(sequence_of(b"old")), start(sequence_of(b"new"))
    clock = iter(range(10**6))
    router, directory = router_for(old, clock=lambda: float(next(clock)))
    assert get(router) == b"old"
    old.close()
    directory.listed = [new.member]
    assert get(router) == b"new"


def test_silence_ends_at_the_deadline(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(SILENCE, b"late"))
    router, _ = router_for(node)
    with pytest.raises(NodeUnavailable, match=r"did not answer within 0\.2 s"):
        get(router, seconds=0.2)
    assert len(node.calls) == 1
    assert get(router) == b"late"
    assert node.connections == 2


def test_a_stale_view_has_the_name_server_asked(start: Callable[..., ScriptedNode]) -> None:
    second = start(sequence_of(b"value"), number=2)

    def first_script(call: Call) -> Any:
        current = ClusterView([first.member, second.member])
        return b"value" if call[1][0] == current.id else Refusal(wire.STALE_VIEW, "stale", as_lists(current))

    first = start(first_script)
    clock = iter(range(10**6))
    router, directory = router_for(first, clock=lambda: float(next(clock)))
    router.view(Deadline(5.0))
    directory.listed = [first.member, second.member]
    assert get(router) == b"value"
    assert directory.lookups == 2


def test_a_node_that_knows_less_than_the_name_server_is_not_believed(
    start: Callable[..., ScriptedNode],
) -> None:
    second = start(sequence_of(b"value"), number=2)
    behind = Refusal(wire.STALE_VIEW, "stale", [["cache.node.1", "127.0.0.1", 1, 1.0, ""]])
    first = start(sequence_of(behind, behind, b"value"))
    router, _ = router_for(first, second)
    key = next(b"%d" % n for n in range(99) if router.view(Deadline(1.0)).owner(b"%d" % n).number == 1)
    assert router.call("get", key, deadline=Deadline(5.0)) == b"value"
    both = ClusterView([first.member, second.member]).id
    assert [arguments[0] for _, arguments in first.calls] == [both] * 3


def test_while_the_name_server_is_away_a_stale_view_is_mended_by_the_node(
    start: Callable[..., ScriptedNode],
) -> None:
    second = start(sequence_of(b"value"), number=2)
    first = start(lambda call: Refusal(wire.STALE_VIEW, "stale", as_lists(ClusterView([second.member]))))
    clock = iter(range(10**6))
    router, directory = router_for(first, clock=lambda: float(next(clock)))
    router.view(Deadline(1.0))
    directory.away = True
    assert get(router) == b"value"
    assert second.calls[0][1][0] == ClusterView([second.member]).id


def test_views_that_never_agree_end_at_the_deadline(start: Callable[..., ScriptedNode]) -> None:
    node = start(lambda call: Refusal(wire.STALE_VIEW, "stale", "nonsense"))
    router, _ = router_for(node)
    with pytest.raises(NodeUnavailable, match="agree"):
        get(router, seconds=0.3)
    assert 2 < len(node.calls) < 60


def test_a_node_at_its_limit_is_asked_again_and_then_reported(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(Refusal(wire.OVERLOADED, "busy"), b"value"))
    router, _ = router_for(node)
    assert get(router) == b"value"
    busy = start(sequence_of(Refusal(wire.OVERLOADED, "busy")))
    router, _ = router_for(busy)
    with pytest.raises(Overloaded):
        get(router, seconds=0.2)


def test_a_node_that_takes_no_connections_is_overloaded(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(b"value"), greeting=Refusal("", "overloaded: too many connections"))
    router, _ = router_for(node)
    with pytest.raises(Overloaded):
        get(router, seconds=0.2)


@pytest.mark.parametrize(
    "reply",
    [
        lambda seq: wire.pack_message(wire.RESULT, seq + 1, wire.pack_plain(b"another's")),
        lambda seq: wire.pack_message(wire.RESULT, seq, b"\xc1"),
        lambda seq: wire.pack_message(wire.INVOKE, seq, wire.pack_plain(b"x")),
        lambda seq: wire.pack_message(wire.RESULT, seq, wire.pack_plain(b"x"), serializer=2),
        lambda seq: wire.pack_message(wire.RESULT, seq, b"x\x9c", flags=wire.FLAG_COMPRESSED),
        lambda seq: b"HTTP/1.1 400 Bad Request\r\n\r\n",
        lambda seq: wire.pack_message(wire.RESULT, seq, b"")[:12] + b"\xff" * 8 + bytes(20),
    ],
    ids=["another's", "not msgpack", "a request", "marshal", "compressed", "http", "endless"],
)
def test_what_is_no_reply_is_an_error_and_the_connection_is_dropped(
    start: Callable[..., ScriptedNode], reply: Callable[[int], bytes]
) -> None:
    node = start(lambda call: reply)
    router, _ = router_for(node)
    with pytest.raises(NodeUnavailable, match="no reply"):
        get(router)
    node.script = lambda call: b"value"
    assert get(router) == b"value"
    assert node.connections == len(node.calls)


def test_a_refusal_that_names_a_class_is_only_text(start: Callable[..., ScriptedNode]) -> None:
    def exit_please(sequence: int) -> bytes:
        body = wire.pack_plain({"__class__": "builtins.SystemExit", "__exception__": True, "args": ["bye"]})
        return wire.pack_message(wire.RESULT, sequence, body, flags=wire.FLAG_EXCEPTION)

    router, _ = router_for(start(sequence_of(exit_please)))
    with pytest.raises(RemoteError, match="bye"):
        get(router)


def test_an_interrupted_call_leaves_no_reply_to_the_next(start: Callable[..., ScriptedNode]) -> None:
    entered = threading.Event()

    def script(call: Call) -> Any:
        if len(node.calls) == 1:
            entered.set()
            time.sleep(0.3)
            return b"the interrupted call's"
        return b"the next call's"

    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    node = start(script)
    router, _ = router_for(node)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupt):
            get(router)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert entered.is_set()
    assert get(router) == b"the next call's"
    assert node.connections == 2


def test_a_value_too_large_for_the_node_is_not_sent(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(True), greeting={"max_value_bytes": 10})
    router, _ = router_for(node)
    with pytest.raises(ValueTooLarge, match="up to 10"):
        router.call("set", b"k", bytes(11), None, deadline=Deadline(5.0), largest_value=11)
    assert node.calls == []
    assert router.call("set", b"k", bytes(10), None, deadline=Deadline(5.0), largest_value=10) is True


def test_threads_beyond_the_limit_wait_for_a_connection(start: Callable[..., ScriptedNode]) -> None:
    node = start(lambda call: time.sleep(0.02) or b"value")
    router, _ = router_for(node, max_connections=2)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(get(router))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [b"value"] * 8
    assert node.connections <= 2


def test_waiting_for_a_connection_ends_at_the_deadline(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(SILENCE))
    router, _ = router_for(node, max_connections=1)
    outcomes: list[BaseException] = []

    def ask() -> None:
        try:
            get(router, seconds=0.3)
        except NodeUnavailable as error:
            outcomes.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(outcomes) == 3


def test_without_nodes_or_name_server_the_error_says_what_to_do() -> None:
    directory = ListedNodes()
    router = Router(directory)
    with pytest.raises(NoNodes, match="pyrocache nodes"):
        get(router)
    directory.away = True
    with pytest.raises(NameServerUnavailable):
        get(router)


def test_a_name_server_that_is_away_does_not_matter_once_nodes_are_known(
    start: Callable[..., ScriptedNode],
) -> None:
    node = start(sequence_of(b"value"))
    router, directory = router_for(node)
    get(router)
    directory.away = True
    assert get(router) == b"value"
    assert router.fresh_view(Deadline(1.0)).members == (node.member,)


@pytest.mark.parametrize(
    ("answer", "stays"),
    [({"serving": True}, True), ({"serving": False}, False), ("nonsense", False), (HANG_UP, False)],
)
def test_a_node_that_the_name_server_lacks_stays_while_it_says_that_it_serves(
    start: Callable[..., ScriptedNode], answer: Any, stays: bool
) -> None:
    nodes = [start(lambda call: answer, number=number) for number in (1, 2)]
    router, directory = router_for(*nodes)
    assert len(router.fresh_view(Deadline(5.0))) == 2
    directory.listed = [nodes[0].member]
    assert len(router.fresh_view(Deadline(5.0))) == (2 if stays else 1)


def test_a_node_that_does_not_even_connect_costs_a_batch_no_other_answer(
    start: Callable[..., ScriptedNode],
) -> None:
    well = start(lambda call: len(call[1][1]))
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:  # which nobody accepts from
        port = full.getsockname()[1]
        clogs = [socket.socket() for _ in range(4)]
        for clog in clogs:
            clog.setblocking(False)
            clog.connect_ex(("127.0.0.1", port))
        directory = ListedNodes(well.member, Member("cache.node.2", "127.0.0.1", port))
        router = Router(directory)
        result = router.batch("set_many", items(100), deadline=Deadline(0.3))
        for clog in clogs:
            clog.close()
    answered = sum(len(about) for about, _ in result.replies)
    assert 0 < answered < 100
    assert answered + sum(len(about) for about, _ in result.errors) == 100


def test_a_slow_node_does_not_keep_the_reply_of_a_quick_one(start: Callable[..., ScriptedNode]) -> None:
    well, ill = start(lambda call: 1, number=2), start(sequence_of(1, SILENCE), number=1)
    router, _ = router_for(well, ill)
    router.everywhere("ping", deadline=Deadline(5.0))
    well.script = lambda call: bytes(5_000_000)
    answers = dict(router.everywhere("big", deadline=Deadline(0.5)))
    assert isinstance(answers[ill.member], NodeUnavailable)
    assert answers[well.member] == bytes(5_000_000)


def items(count: int, size: int = 10) -> list[Item[bytes]]:
    return [Item(b"%d" % number, b"%d" % number, size) for number in range(count)]


def test_a_batch_goes_to_all_owners_in_messages_of_bounded_size(start: Callable[..., ScriptedNode]) -> None:
    nodes = [start(lambda call: len(call[1][1]), number=number) for number in (1, 2, 3)]
    router, _ = router_for(*nodes)
    result = router.batch("delete_many", items(5000), deadline=Deadline(5.0))
    assert sum(reply for _, reply in result.replies) == 5000
    assert result.errors == []
    for node in nodes:
        assert node.calls
        assert all(len(arguments[1]) <= wire.MAX_BATCH for _, arguments in node.calls)
    result = router.batch("delete_many", items(20, size=wire.BATCH_BYTES), deadline=Deadline(5.0))
    assert all(len(about) == 1 for about, _ in result.replies)


def test_what_a_reply_leaves_out_is_asked_for_again(start: Callable[..., ScriptedNode]) -> None:
    node = start(lambda call: call[1][1][:7])
    router, _ = router_for(node)
    result = router.batch("get_many", items(50), deadline=Deadline(5.0), answered=len)
    found = {
        item.key: value for about, reply in result.replies for item, value in zip(about, reply, strict=True)
    }
    assert found == {item.key: item.key for item in items(50)}


@pytest.mark.parametrize("reply", [[], [None] * 51])
def test_a_batch_reply_of_the_wrong_length_is_an_error(
    start: Callable[..., ScriptedNode], reply: list[None]
) -> None:
    router, _ = router_for(start(sequence_of(reply)))
    with pytest.raises(RemoteError, match="wrong length"):
        router.batch("get_many", items(50), deadline=Deadline(5.0), answered=len)


def test_a_batch_brings_what_it_can_when_a_node_is_away(start: Callable[..., ScriptedNode]) -> None:
    well, ill = start(lambda call: len(call[1][1])), start(sequence_of(SILENCE), number=2)
    router, _ = router_for(well, ill)
    result = router.batch("set_many", items(100), deadline=Deadline(0.3))
    answered = sum(len(about) for about, _ in result.replies)
    failed = sum(len(about) for about, _ in result.errors)
    assert answered > 0
    assert failed > 0
    assert answered + failed == 100
