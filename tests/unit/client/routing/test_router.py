"""Retries, deadlines and dropped connections, against scripted nodes on real sockets."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from pyrocache.client.routing.batch import Batch
from pyrocache.client.routing.router import NodeLeft, Router
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import view_to_wire
from pyrocache.errors import (
    ClientClosed,
    MayHaveBeenDone,
    NameServerUnavailable,
    NodeUnavailable,
    NoNodes,
    Overloaded,
    PyroCacheError,
    RemoteError,
    ValueTooLarge,
)
from pyrocache.net.connection import DRIFT, FRESH_SECONDS
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import Listing
from pyrocache.protocol import commands, framing, limits, messages, refusals
from pyrocache.protocol.framing import Frame, FrameDecoder
from pyrocache.protocol.refusals import Refusal
from pyrocache.protocol.request_id import REPEAT, RequestId, unpack_id
from tests.support.wire import pack_refusal

Call = tuple[str, list[Any]]
Script = Callable[[Call], Any]

CLOCK = {"clock_ms": 1}
"""The greeting of a node that identifies requests."""

NOT_DONE = Refusal(refusals.NOT_DONE, "not done")
CLUSTER = "c1"
HANG_UP = object()
SILENCE = object()


class ScriptedNode:
    """Answers each call with what ``script`` returns: a value, a `Refusal`, raw bytes, HANG_UP or SILENCE."""

    def __init__(self, number: int, script: Script, greeting: Any = "hello") -> None:
        self.script = script
        self.greeting = greeting
        self.calls: list[Call] = []
        self.ids: list[RequestId] = []
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
        decoder = FrameDecoder(lambda header: None, lambda frame_bytes: None)
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
        if frame.header.type == framing.CONNECT:
            if isinstance(self.greeting, Refusal):
                return framing.pack_message(
                    framing.CONNECT_FAIL, sequence, messages.pack_plain(self.greeting.message)
                )
            return framing.pack_message(
                framing.CONNECT_OK, sequence, messages.pack_plain({"handshake": self.greeting})
            )
        _, method, arguments, _ = messages.unpack_plain(frame.body)
        self.calls.append((method, arguments))
        self.ids.append(unpack_id(frame.header.correlation))
        result = self.script((method, arguments))
        if result is HANG_UP or result is SILENCE:
            return result
        if callable(result):
            return result(sequence)
        if isinstance(result, Refusal):
            body = pack_refusal(result)
            return framing.pack_message(framing.RESULT, sequence, body, flags=framing.FLAG_EXCEPTION)
        return framing.pack_message(framing.RESULT, sequence, messages.pack_plain(result))


class ListedNodes:
    """A name server that lists what it is told. Each time, the next view has these members."""

    def __init__(self, *members: Member) -> None:
        self.number = 0
        self.listed = list(members)
        self.lookups = 0
        self.away = False

    @property
    def listed(self) -> list[Member]:
        return self._listed

    @listed.setter
    def listed(self, members: list[Member]) -> None:
        self._listed = members
        self.number += bool(members)

    @property
    def view(self) -> ClusterView:
        return ClusterView(self._listed, self.number, CLUSTER)

    def listing(self, timeout: float = 5.0) -> Listing:
        self.lookups += 1
        if self.away:
            raise NameServerUnavailable("away")
        return Listing(CLUSTER, 1, (self.view,) if self._listed else (), tuple(self._listed))

    def register(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("a client changes nothing")

    remove = create_cluster = store_view = forget_views = register


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


def get(router: Router, seconds: float = 5.0) -> Any:
    return router.call(commands.GET, b"k", (), Deadline(seconds))


def stale(view: ClusterView) -> Refusal:
    """The refusal of a node that has this view."""
    return Refusal(refusals.STALE_VIEW, "stale", view_to_wire(view))


def test_a_call_carries_the_view_and_brings_the_result(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(b"value"))
    router, _ = router_for(node)
    assert get(router) == b"value"
    assert node.calls == [("get", [1, b"k"])]


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


@pytest.mark.parametrize("command", [commands.DELETE, commands.SET])
def test_a_change_is_not_sent_again_when_its_reply_is_lost(
    start: Callable[..., ScriptedNode], command: commands.Command
) -> None:
    node = start(sequence_of(HANG_UP, True))
    router, _ = router_for(node)
    with pytest.raises(MayHaveBeenDone, match=f"may have done the {command.name}"):
        router.call(command, b"k", (), Deadline(5.0))
    assert len(node.calls) == 1
    assert node.ids == [RequestId(bytes(8), 0, 0)]
    assert counted(router) == {"unsettled": 1}


def test_the_outcome_of_a_change_is_asked_for_when_its_reply_is_lost(
    start: Callable[..., ScriptedNode],
) -> None:
    node = start(sequence_of(HANG_UP, HANG_UP, Refusal(refusals.TRY_AGAIN, "it runs"), 7), greeting=CLOCK)
    router, directory = router_for(node)
    assert router.call(commands.INCR, b"k", (), Deadline(5.0)) == 7
    first, *repeats = node.ids
    assert len(first.session) == 8
    assert [identity[:2] for identity in repeats] == [(first.session, first.sequence | REPEAT)] * 3
    assert node.calls == [node.calls[0]] * 4
    assert directory.lookups == 1
    assert router.call(commands.INCR, b"k", (), Deadline(5.0)) == 7
    assert node.ids[-1].sequence > first.sequence


def test_a_change_that_was_not_done_is_sent_as_a_new_request(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(HANG_UP, NOT_DONE, 7), greeting=CLOCK)
    router, _ = router_for(node)
    assert router.call(commands.INCR, b"k", (), Deadline(5.0)) == 7
    assert [identity.sequence & REPEAT for identity in node.ids] == [0, REPEAT, 0]
    assert node.ids[2].sequence > node.ids[0].sequence


@pytest.mark.parametrize("answer", [HANG_UP, Refusal(refusals.FORGOTTEN, "forgotten")])
def test_a_change_without_an_outcome_may_have_been_done(
    start: Callable[..., ScriptedNode], answer: Any
) -> None:
    node = start(sequence_of(HANG_UP, answer), greeting=CLOCK)
    router, _ = router_for(node)
    with pytest.raises(MayHaveBeenDone):
        router.call(commands.INCR, b"k", (), Deadline(5.0))
    assert all(identity.sequence & REPEAT for identity in node.ids[1:])
    assert len(node.ids) < 6


def test_a_change_that_timed_out_is_not_repeated(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(SILENCE), greeting=CLOCK)
    router, _ = router_for(node)
    with pytest.raises(MayHaveBeenDone, match="did not answer within"):
        router.call(commands.SET, b"k", (b"", None), Deadline(0.2))
    assert len(node.ids) == 1


def test_a_broadcast_change_is_repeated(start: Callable[..., ScriptedNode]) -> None:
    nodes = [start(sequence_of(HANG_UP, 3), number=number, greeting=CLOCK) for number in (1, 2)]
    router, _ = router_for(*nodes)
    _, answers = router.ask_all(commands.CLEAR, (b"",), Deadline(5.0))
    assert [answer for _, answer in answers] == [3, 3]
    assert [[identity.sequence & REPEAT for identity in node.ids] for node in nodes] == [[0, REPEAT]] * 2


def test_each_request_tells_the_deadline_by_the_clock_of_the_node(
    start: Callable[..., ScriptedNode],
) -> None:
    began = time.monotonic()
    node = start(sequence_of(b"value"), greeting={"clock_ms": 2**32 - 100})
    router, _ = router_for(node)
    for seconds in (0.5, 60.0):
        deadline = Deadline(seconds)
        assert router.call(commands.GET, b"k", (), deadline) == b"value"
        late = node.ids[-1].deadline + 100 - 1000 * (deadline.at - began)  # 100: the clock begins again
        drift = 1000 * (FRESH_SECONDS + 1) * DRIFT  # its clock is not that of this host
        assert -1000 * (time.monotonic() - began) - drift - 2 <= late % 2**32 - 2**32 < -drift + 1


def test_a_connection_whose_deadlines_are_taken_for_past_is_replaced(
    start: Callable[..., ScriptedNode],
) -> None:
    node = start(sequence_of(Refusal(refusals.TRY_AGAIN, "late"), b"value"), greeting=CLOCK)
    router, _ = router_for(node)
    assert get(router) == b"value"
    assert (node.connections, router.retries["retries"]) == (2, 1)


def test_a_forked_child_begins_a_session_of_its_own(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(b"value"), greeting=CLOCK)
    router, _ = router_for(node)
    get(router)
    router.reset_after_fork()
    get(router)
    assert len({identity.session for identity in node.ids}) == 2


def test_a_connection_that_the_node_closed_while_idle_is_not_used(
    start: Callable[..., ScriptedNode],
) -> None:
    node = start(sequence_of(True))
    router, _ = router_for(node)
    router.call(commands.DELETE, b"k", (), Deadline(5.0))
    for sock in node._open[1:]:
        sock.shutdown(socket.SHUT_RDWR)
    assert router.call(commands.DELETE, b"k", (), Deadline(5.0)) is True
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


def test_a_newer_view_that_a_node_sends_is_used_and_nobody_rushes_to_the_name_server(
    start: Callable[..., ScriptedNode],
) -> None:
    second = start(sequence_of(b"value"), number=2)
    first = start(lambda call: stale(ClusterView([second.member], 2, CLUSTER)))
    clock = iter(range(10**6))
    router, directory = router_for(first, clock=lambda: float(next(clock)))
    router.views.known(Deadline(1.0))
    assert get(router) == b"value"
    assert (second.calls[0][1][0], directory.lookups) == (2, 1)
    directory.away = True
    assert get(router) == b"value"


def test_a_node_without_a_newer_view_has_the_name_server_asked(start: Callable[..., ScriptedNode]) -> None:
    second = start(sequence_of(b"value"), number=2)
    first = start(lambda call: Refusal(refusals.STALE_VIEW, "stale"))
    clock = iter(range(10**6))
    router, directory = router_for(first, clock=lambda: float(next(clock)))
    router.views.known(Deadline(5.0))
    directory.listed = [second.member]
    assert get(router) == b"value"
    assert (second.calls[0][1][0], directory.lookups) == (2, 2)


@pytest.mark.parametrize(
    "sent",
    [
        {"number": 1, "cluster": CLUSTER, "members": [["cache.node.1", "127.0.0.1", 1, 1.0, "", ""]]},
        {"number": 9, "cluster": "another", "members": [["cache.node.1", "127.0.0.1", 1, 1.0, "", ""]]},
        {"number": 9, "cluster": CLUSTER, "members": [["cache.node.1", "127.0.0.1", 1, 1.0, "", "/etc/x"]]},
        {"number": "9", "cluster": CLUSTER, "members": []},
        [["cache.node.1", "127.0.0.1", 1, 1.0, "", ""]],
        "nonsense",
    ],
    ids=["older", "another cluster", "forged", "malformed", "a list", "text"],
)
def test_a_view_that_is_not_newer_or_not_valid_is_not_believed(
    start: Callable[..., ScriptedNode], sent: Any
) -> None:
    second = start(sequence_of(b"value"), number=2)
    behind = Refusal(refusals.STALE_VIEW, "stale", sent)
    first = start(sequence_of(behind, behind, b"value"))
    router, directory = router_for(first, second)
    directory.listed = [first.member, second.member]
    key = next(b"%d" % n for n in range(99) if router.views.known(Deadline(1.0)).owner(b"%d" % n).number == 1)
    assert router.call(commands.GET, key, (), Deadline(5.0)) == b"value"
    assert [arguments[0] for _, arguments in first.calls] == [2] * 3


@pytest.mark.parametrize("code", [refusals.NOT_SERVING, refusals.TRY_AGAIN])
def test_a_node_that_may_not_answer_yet_is_asked_again(start: Callable[..., ScriptedNode], code: str) -> None:
    not_yet = Refusal(code, "not yet")
    node = start(sequence_of(not_yet, not_yet, True))
    router, _ = router_for(node)
    assert router.call(commands.DELETE, b"k", (), Deadline(5.0)) is True, "it was not executed before"
    assert [arguments[0] for _, arguments in node.calls] == [1] * 3
    assert counted(router) == {"retries": 2, code.replace("-", "_"): 2}
    node.script = lambda call: not_yet
    with pytest.raises(NodeUnavailable, match="not yet"):
        router.call(commands.DELETE, b"k", (), Deadline(0.3))


def test_keys_of_a_batch_that_may_not_be_answered_yet_are_asked_for_again(
    start: Callable[..., ScriptedNode],
) -> None:
    first, second = start(sequence_of(Refusal(refusals.NOT_SERVING, "not yet"), 7)), start(number_of_keys, 2)
    router, _ = router_for(first, second)
    replies, errors = send(router, "delete_many", batch_of(50))
    assert errors == []
    assert sorted(index for about, _ in replies for index in about) == list(range(50))
    assert (len(first.calls), len(second.calls)) == (2, 1)


@pytest.mark.parametrize("size", [60, 3000])  # in one request for each node, and in several
def test_a_silent_node_holds_up_no_keys_that_have_moved_between_others(
    start: Callable[..., ScriptedNode], size: int
) -> None:
    """After a change of the view, the keys of the other nodes are routed anew at once."""
    silent, second, third = start(lambda call: SILENCE), start(number_of_keys, 2), start(number_of_keys, 3)
    router, directory = router_for(silent, second)
    router.views.known(Deadline(5.0))
    before = directory.view
    after = ClusterView([silent.member, second.member, third.member], directory.number + 1, CLUSTER)

    def newer(call: Call) -> Any:
        return number_of_keys(call) if call[1][0] == after.number else stale(after)

    second.script = newer
    batch = batch_of(size)
    replies, errors = send(router, "delete_many", batch, seconds=0.5)
    answered = {index for about, _ in replies for index in about}
    theirs = [at for at, key in enumerate(batch.keys) if before.owner(key) != silent.member]
    assert answered >= {at for at in theirs if after.owner(batch.keys[at]) != silent.member}
    assert third.calls
    for asked in (second, third):
        for _, (number, keys, *_) in asked.calls:
            if number == after.number:
                assert all(after.owner(key) == asked.member for key in keys)
    assert answered.isdisjoint(index for about, _ in errors for index in about)
    assert len(answered) + sum(len(about) for about, _ in errors) == size


def test_views_that_never_agree_end_at_the_deadline(start: Callable[..., ScriptedNode]) -> None:
    node = start(lambda call: Refusal(refusals.STALE_VIEW, "stale", "nonsense"))
    router, _ = router_for(node)
    with pytest.raises(NodeUnavailable, match="agree"):
        get(router, seconds=0.3)
    assert 2 < len(node.calls) < 60


def test_a_node_at_its_limit_is_asked_again_and_then_reported(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(Refusal(refusals.OVERLOADED, "busy"), b"value"))
    router, _ = router_for(node)
    assert get(router) == b"value"
    busy = start(sequence_of(Refusal(refusals.OVERLOADED, "busy")))
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
        lambda seq: framing.pack_message(framing.RESULT, seq + 1, messages.pack_plain(b"another's")),
        lambda seq: framing.pack_message(framing.RESULT, seq, b"\xc1"),
        lambda seq: framing.pack_message(framing.INVOKE, seq, messages.pack_plain(b"x")),
        lambda seq: framing.pack_message(framing.RESULT, seq, messages.pack_plain(b"x"), serializer=2),
        lambda seq: framing.pack_message(framing.RESULT, seq, b"x\x9c", flags=framing.FLAG_COMPRESSED),
        lambda seq: b"HTTP/1.1 400 Bad Request\r\n\r\n",
        lambda seq: framing.pack_message(framing.RESULT, seq, b"")[:12] + b"\xff" * 8 + bytes(20),
    ],
    ids=["another's", "not msgpack", "a request", "marshal", "compressed", "http", "endless"],
)
def test_what_is_no_reply_is_an_error_and_the_connection_is_dropped(
    start: Callable[..., ScriptedNode], reply: Callable[[int], bytes]
) -> None:
    node = start(lambda call: reply)
    router, _ = router_for(node)
    with pytest.raises(NodeUnavailable, match="not a reply"):
        get(router)
    node.script = lambda call: b"value"
    assert get(router) == b"value"
    assert node.connections == len(node.calls)


def test_a_refusal_that_names_a_class_is_only_text(start: Callable[..., ScriptedNode]) -> None:
    def exit_please(sequence: int) -> bytes:
        body = messages.pack_plain(
            {"__class__": "builtins.SystemExit", "__exception__": True, "args": ["bye"]}
        )
        return framing.pack_message(framing.RESULT, sequence, body, flags=framing.FLAG_EXCEPTION)

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
        router.call(commands.SET, b"k", (bytes(11), None), Deadline(5.0), 11)
    assert node.calls == []
    assert router.call(commands.SET, b"k", (bytes(10), None), Deadline(5.0), 10) is True


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
    assert router.views.fresh(Deadline(1.0)).members == (node.member,)


@pytest.mark.parametrize(
    ("answer", "stays"),
    [({"serving": True}, True), ({"serving": False}, False), ("nonsense", False), (HANG_UP, False)],
)
def test_another_cluster_in_the_name_server_is_used_once_no_node_of_this_one_serves(
    start: Callable[..., ScriptedNode], answer: Any, stays: bool
) -> None:
    nodes = [start(lambda call: answer, number=number) for number in (1, 2)]
    router, directory = router_for(*nodes)
    assert len(router.views.fresh(Deadline(5.0))) == 2
    other = start(sequence_of(b"value"))
    listing = Listing("other", 3, (ClusterView([other.member], 3, "other"),), (other.member,))
    directory.listing = lambda timeout=5.0: listing  # type: ignore[method-assign]
    assert len(router.views.fresh(Deadline(5.0))) == (2 if stays else 1)
    assert router.views.known(Deadline(5.0)).cluster == (CLUSTER if stays else "other")


def test_a_name_server_that_has_forgotten_all_changes_nothing(start: Callable[..., ScriptedNode]) -> None:
    nodes = [start(sequence_of(b"value"), number=number) for number in (1, 2)]
    router, directory = router_for(*nodes)
    router.views.known(Deadline(5.0))
    for listing in (Listing(), Listing(members=(nodes[0].member,)), Listing(CLUSTER, 1)):
        directory.listing = lambda timeout=5.0, listing=listing: listing  # type: ignore[method-assign,misc]
        assert len(router.views.fresh(Deadline(5.0))) == 2


def test_nodes_without_a_view_are_asked_with_the_number_0(start: Callable[..., ScriptedNode]) -> None:
    """Those of a stock daemon, which a stock name server lists."""
    node = start(sequence_of(b"value"))
    router, directory = router_for()
    directory.listing = lambda timeout=5.0: Listing(members=(node.member,))  # type: ignore[method-assign]
    assert get(router) == b"value"
    assert node.calls == [("get", [0, b"k"])]


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
        replies, errors = send(router, "set_many", batch_of(100, values=True), seconds=0.3)
        for clog in clogs:
            clog.close()
    answered = [index for about, _ in replies for index in about]
    assert 0 < len(answered) < 100
    assert sorted(answered + [index for about, _ in errors for index in about]) == list(range(100))


def test_a_slow_node_does_not_keep_the_reply_of_a_quick_one(start: Callable[..., ScriptedNode]) -> None:
    well, ill = start(lambda call: 1, number=2), start(sequence_of(1, SILENCE), number=1)
    router, _ = router_for(well, ill)
    router.broadcast(commands.PING, (), Deadline(5.0))
    well.script = lambda call: bytes(5_000_000)
    answers = dict(router.broadcast(commands.PING, (), Deadline(0.5)))
    assert isinstance(answers[ill.member], NodeUnavailable)
    assert answers[well.member] == bytes(5_000_000)


Replies = list[tuple[list[int], Any]]
Errors = list[tuple[Sequence[int], PyroCacheError]]


def batch_of(count: int, size: int = 10, *, values: bool = False) -> Batch:
    keys = [b"%0*d" % (size, number) for number in range(count)]
    return Batch(commands.GET_MANY, keys, [b"value of " + key for key in keys] if values else None)


def send(
    router: Router,
    method: str,
    batch: Batch,
    *arguments: Any,
    seconds: float = 5.0,
    take: Callable[[Any], None] = lambda reply: None,
    one_reply: bool = False,
) -> tuple[Replies, Errors]:
    """Return the indices and replies of a batch, and what remained unanswered."""
    replies: Replies = []
    errors: Errors = []
    batch = batch._replace(command=commands.COMMANDS[method], arguments=arguments)
    for indices, reply in router.batch(batch, Deadline(seconds), one_reply=one_reply):
        if isinstance(reply, PyroCacheError):
            errors.append((indices, reply))
        else:
            take(reply)
            replies.append((list(indices), reply))
    return replies, errors


def number_of_keys(call: Call) -> int:
    return len(call[1][1])


def keys_back(call: Call) -> list[bytes]:
    keys: list[bytes] = call[1][1]
    return [b"of " + key for key in keys]


def found_by(batch: Batch, replies: Replies) -> dict[bytes, Any]:
    """What the replies say of each key; no key is told of twice."""
    pairs = [
        (batch.keys[index], value)
        for about, reply in replies
        for index, value in zip(about, reply, strict=True)
    ]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_a_batch_goes_to_all_owners_in_messages_of_bounded_size(start: Callable[..., ScriptedNode]) -> None:
    nodes = [start(number_of_keys, number=number) for number in (1, 2, 3)]
    router, _ = router_for(*nodes)
    replies, errors = send(router, "delete_many", batch_of(5000))
    assert sum(reply for _, reply in replies) == 5000
    assert sorted(index for about, _ in replies for index in about) == list(range(5000))
    assert errors == []
    view = ClusterView([node.member for node in nodes])
    for node in nodes:
        assert node.calls
        for method, (number, keys) in node.calls:
            assert (method, number) == ("delete_many", 1)
            assert len(keys) <= limits.MAX_BATCH
            assert {view.owner(key) for key in keys} == {node.member}
    big = Batch(commands.SET_MANY, [b"%d" % number for number in range(12)], [bytes(limits.BATCH_BYTES)] * 12)
    replies, errors = send(router, "set_many", big, None)
    assert sorted(about for about, _ in replies) == [[index] for index in range(12)]
    assert errors == []


@pytest.mark.parametrize("nodes", [1, 2])
def test_messages_are_filled_but_not_over_the_bound(start: Callable[..., ScriptedNode], nodes: int) -> None:
    started = [start(number_of_keys, number=number) for number in range(1, nodes + 1)]
    router, _ = router_for(*started)
    values = [bytes(number % 7 * 100_000) for number in range(60)]
    batch = Batch(commands.SET_MANY, [b"%d" % number for number in range(60)], values)
    replies, _ = send(router, "set_many", batch, 1.5)
    assert sorted(index for about, _ in replies for index in about) == list(range(60))
    calls = [call for node in started for call in node.calls]
    for _, (_, keys, told, ttl) in calls:
        assert [values[int(key)] for key in keys] == told
        assert ttl == 1.5
        assert len(keys) == 1 or sum(map(len, keys + told)) <= limits.BATCH_BYTES
    assert len(calls) <= 2 * sum(map(len, values)) // limits.BATCH_BYTES + nodes


def test_a_batch_of_nothing_asks_nobody(start: Callable[..., ScriptedNode]) -> None:
    node = start(number_of_keys)
    router, _ = router_for(node)
    assert send(router, "get_many", Batch(commands.SET_MANY, [])) == ([], [])
    assert send(router, "set_many", Batch(commands.SET_MANY, [], []), None) == ([], [])
    assert node.calls == []


def test_keys_and_values_go_together(start: Callable[..., ScriptedNode]) -> None:
    nodes = [start(number_of_keys, number=number) for number in (1, 2, 3)]
    router, _ = router_for(*nodes)
    batch = batch_of(3500, values=True)
    send(router, "set_many", batch, 7.5)
    stored: list[tuple[bytes, bytes]] = []
    for node in nodes:
        for method, (_, keys, values, ttl) in node.calls:
            assert (method, ttl) == ("set_many", 7.5)
            stored += zip(keys, values, strict=True)
    assert batch.values is not None
    assert sorted(stored) == sorted(zip(batch.keys, batch.values, strict=True))


def test_what_a_reply_leaves_out_is_asked_for_again(start: Callable[..., ScriptedNode]) -> None:
    node = start(lambda call: keys_back(call)[:7])
    router, _ = router_for(node)
    batch = batch_of(50)
    replies, errors = send(router, "get_many", batch)
    assert errors == []
    assert found_by(batch, replies) == {key: b"of " + key for key in batch.keys}
    assert len(node.calls) == 8


def test_a_batch_that_is_asked_again_of_other_nodes_keeps_each_key_to_its_reply(
    start: Callable[..., ScriptedNode],
) -> None:
    def refuse(call: Call) -> Any:
        return stale(ClusterView([first.member], 2, CLUSTER))

    first, second = start(refuse, number=1), start(refuse, number=2)
    router, directory = router_for(first, second)
    first.script = lambda call: keys_back(call) if call[1][0] == 2 else refuse(call)
    batch = batch_of(50)
    replies, errors = send(router, "get_many", batch)
    assert errors == []
    assert second.calls, "both were asked"
    assert found_by(batch, replies) == {key: b"of " + key for key in batch.keys}
    assert directory.lookups == 1


def test_a_batch_that_is_stored_again_elsewhere_keeps_each_key_to_its_value(
    start: Callable[..., ScriptedNode],
) -> None:
    nodes = [start(sequence_of(HANG_UP, NOT_DONE, 0), number=number, greeting=CLOCK) for number in (1, 2, 3)]
    router, _ = router_for(*nodes)
    batch = batch_of(200, values=True)
    replies, errors = send(router, "set_many", batch, None)
    assert errors == []
    assert sorted(index for about, _ in replies for index in about) == list(range(200))
    for node in nodes:
        assert len(node.calls) == 3
        first, repeat, new = (identity.sequence for identity in node.ids)
        assert repeat == first | REPEAT
        assert new not in (first, repeat)
        for _, (_, keys, values, _) in node.calls:
            assert values == [b"value of " + key for key in keys]


def test_a_batch_that_is_not_idempotent_is_not_sent_again_when_its_reply_is_lost(
    start: Callable[..., ScriptedNode],
) -> None:
    well, ill = start(number_of_keys), start(sequence_of(HANG_UP, 5), number=2)
    router, _ = router_for(well, ill)
    replies, errors = send(router, "delete_many", batch_of(100))
    assert len(ill.calls) == 1
    assert sorted([index for about, _ in [*replies, *errors] for index in about]) == list(range(100))
    assert [type(error) for _, error in errors] == [MayHaveBeenDone]


def test_a_batch_gets_the_outcome_that_a_node_remembers(start: Callable[..., ScriptedNode]) -> None:
    well = start(number_of_keys)
    ill = start(sequence_of(HANG_UP, HANG_UP, 5), number=2, greeting=CLOCK)
    router, _ = router_for(well, ill)
    replies, errors = send(router, "delete_many", batch_of(100))
    assert errors == []
    assert 5 in [reply for _, reply in replies]
    assert [identity.sequence & REPEAT for identity in ill.ids] == [0, REPEAT, REPEAT]
    assert len({identity.sequence | REPEAT for identity in ill.ids}) == 1
    assert counted(router) == {"repeats": 2}


@pytest.mark.parametrize("reply", [[], [None] * 51])
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_batch_reply_of_the_wrong_length_is_an_error(
    start: Callable[..., ScriptedNode], reply: list[None], nodes: int
) -> None:
    router, _ = router_for(*(start(sequence_of(reply), number=number) for number in range(1, nodes + 1)))
    _, errors = send(router, "get_many", batch_of(50))
    assert sorted(index for indices, _ in errors for index in indices) == list(range(50))
    for _, error in errors:
        assert isinstance(error, RemoteError)
        assert "wrong kind or length" in str(error)


def test_a_reply_that_its_taker_refuses_leaves_no_reply_to_the_next_call(
    start: Callable[..., ScriptedNode],
) -> None:
    class Refused(Exception):
        pass

    def refuse(reply: Any) -> None:
        raise Refused

    nodes = [start(keys_back, number=number) for number in (1, 2, 3)]
    router, _ = router_for(*nodes)
    batch = batch_of(100)
    send(router, "get_many", batch)  # so that all are connected
    with pytest.raises(Refused):
        send(router, "get_many", batch, take=refuse)
    for node in nodes:
        node.script = lambda call: [b"again " + key for key in call[1][1]]
    replies, _ = send(router, "get_many", batch)
    assert found_by(batch, replies) == {key: b"again " + key for key in batch.keys}


def test_a_value_in_a_batch_too_large_for_its_node_is_not_sent(start: Callable[..., ScriptedNode]) -> None:
    node = start(sequence_of(2), greeting={"max_value_bytes": 10})
    router, _ = router_for(node)
    values = [b"", bytes(11), bytes(9), bytes(12), bytes(10)]
    replies, errors = send(
        router, "set_many", Batch(commands.SET_MANY, [b"a", b"b", b"c", b"d", b"e"], values), None
    )
    assert sorted(index for about, _ in replies for index in about) == [0, 2, 4]
    assert sorted(index for about, _ in errors for index in about) == [1, 3]
    assert all(isinstance(error, ValueTooLarge) for _, error in errors)
    assert max(len(value) for _, arguments in node.calls for value in arguments[2]) == 10
    assert [
        len(about)
        for about, _ in send(
            router, "set_many", Batch(commands.SET_MANY, [b"a", b"b"], [b"", bytes(10)]), None
        )[0]
    ] == [2]


def test_a_value_that_the_node_refuses_leaves_the_others_of_its_message_alone(
    start: Callable[..., ScriptedNode],
) -> None:
    def refuse_large(call: Call) -> Any:
        _, (_, keys, values, _) = call
        too_large = max(map(len, values)) > 10
        return Refusal(refusals.VALUE_TOO_LARGE, "takes 10") if too_large else len(keys)

    router, _ = router_for(start(refuse_large))
    keys = [b"%d" % number for number in range(500)]
    values = [bytes(11 if number % 100 == 7 else 1) for number in range(500)]
    replies, errors = send(router, "set_many", Batch(commands.SET_MANY, keys, values), None)
    assert sorted(index for about, _ in errors for index in about) == [7, 107, 207, 307, 407]
    assert sum(len(about) for about, _ in replies) == 495
    assert all(isinstance(error, ValueTooLarge) for _, error in errors)


def test_a_batch_brings_what_it_can_when_a_node_is_away(start: Callable[..., ScriptedNode]) -> None:
    well, ill = start(number_of_keys), start(sequence_of(SILENCE), number=2)
    router, _ = router_for(well, ill)
    replies, errors = send(router, "set_many", batch_of(100, values=True), None, seconds=0.3)
    answered = [index for about, _ in replies for index in about]
    failed = [index for about, _ in errors for index in about]
    assert answered
    assert failed
    assert sorted(answered + failed) == list(range(100))


# Closing.


def closed_router(start: Callable[..., ScriptedNode], away: bool, used: bool) -> tuple[Router, ScriptedNode]:
    node = start(sequence_of(b"value"))
    router, directory = router_for(node)
    if used:
        get(router)
    directory.away = away
    router.close()
    node.calls.clear()
    return router, node


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("away", [False, True], ids=["name server there", "name server away"])
def test_after_close_every_call_says_so(start: Callable[..., ScriptedNode], away: bool, used: bool) -> None:
    for call in (
        lambda router, node: get(router),
        lambda router, node: send(router, "get_many", batch_of(3)),
        lambda router, node: router.broadcast(commands.PING, (), Deadline(1.0)),
        lambda router, node: router.ask(node.member, commands.PING, (), Deadline(1.0)),
        lambda router, node: router.views.known(Deadline(1.0)),
        lambda router, node: router.views.fresh(Deadline(1.0)),
    ):
        router, node = closed_router(start, away, used)
        for _ in range(2):  # also not once the first call has looked around
            with pytest.raises(ClientClosed):
                call(router, node)
            with pytest.raises(ClientClosed):
                get(router)
        assert node.calls == []


def test_closing_twice_is_fine(start: Callable[..., ScriptedNode]) -> None:
    router, _ = closed_router(start, away=False, used=True)
    router.close()
    with pytest.raises(ClientClosed):
        get(router)


# All nodes, and one in particular ----------------------------------------------------------------------------


def test_every_node_is_asked_again_if_that_does_no_harm(start: Callable[..., ScriptedNode]) -> None:
    nodes = [start(sequence_of(HANG_UP, 7)), start(sequence_of(5), number=2)]
    router, _ = router_for(*nodes)
    _, answers = router.ask_all(commands.COUNT, (b"\0",), Deadline(5.0))
    assert answers == [(nodes[0].member, 7), (nodes[1].member, 5)]
    assert [len(node.calls) for node in nodes] == [2, 1]


def test_every_node_is_asked_once_if_its_answer_was_lost_and_twice_were_wrong(
    start: Callable[..., ScriptedNode],
) -> None:
    nodes = [start(sequence_of(HANG_UP, 7)), start(sequence_of(5), number=2)]
    router, _ = router_for(*nodes)
    _, (first, second) = router.ask_all(commands.CLEAR, (b"\0",), Deadline(5.0))
    assert isinstance(first[1], NodeUnavailable)
    assert second == (nodes[1].member, 5)
    assert [len(node.calls) for node in nodes] == [1, 1]


def test_a_node_that_is_away_keeps_no_other_from_answering(start: Callable[..., ScriptedNode]) -> None:
    nodes = [start(sequence_of(SILENCE)), start(sequence_of(5), number=2), start(sequence_of(6), number=3)]
    nodes[2].close()
    router, _ = router_for(*nodes)
    _, answers = router.ask_all(commands.COUNT, (b"\0",), Deadline(0.5))
    assert [type(answer) for _, answer in answers] == [NodeUnavailable, int, NodeUnavailable]


def next_view(view: ClusterView, *nodes: ScriptedNode) -> ClusterView:
    """The view after ``view``, with these nodes as further members."""
    return ClusterView([*view.members, *(node.member for node in nodes)], view.number + 1, CLUSTER)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (commands.COUNT, [(1, 20), (2, 30), (3, 40)]),
        (commands.CLEAR, [(1, 10), (1, 20), (2, 30), (3, 40)]),
        (commands.INVALIDATE_TAG, [(1, 10), (1, 20), (2, 30), (3, 40)]),
    ],
    ids=lambda part: getattr(part, "name", ""),
)
def test_what_is_about_all_nodes_is_repeated_at_all_of_a_newer_view(
    start: Callable[..., ScriptedNode], command: commands.Command, expected: list[tuple[int, int]]
) -> None:
    """What was read under the older view is worth nothing; what was removed under it was removed."""
    first, joined = start(sequence_of(10, 20)), start(sequence_of(40), number=3)
    second = start(lambda call: None, number=2)
    router, directory = router_for(first, second)
    newer = next_view(directory.view, joined)
    second.script = sequence_of(stale(newer), 30)
    view, answers = router.ask_all(command, (b"\0",), Deadline(5.0))
    assert (view.number, len(view)) == (2, 3)
    assert [(member.number, answer) for member, answer in answers] == expected
    assert first.calls == second.calls == [(command.name, [1, b"\0"]), (command.name, [2, b"\0"])]
    assert joined.calls == [(command.name, [2, b"\0"])]
    assert directory.lookups == 1, "the refusal has the view"


def test_a_change_whose_outcome_is_not_known_is_an_error_whatever_is_done_under_a_newer_view(
    start: Callable[..., ScriptedNode],
) -> None:
    first, second = start(sequence_of(HANG_UP, 20)), start(lambda call: None, number=2)
    away = start(sequence_of(5), number=3)
    router, _ = router_for(first, second, away)
    away.close()
    newer = ClusterView([first.member, second.member], 2, CLUSTER)
    second.script = sequence_of(stale(newer), 30)
    _, answers = router.ask_all(commands.CLEAR, (b"\0",), Deadline(5.0))
    assert type(answers[0][1]) is MayHaveBeenDone
    assert [answer for _, answer in answers[1:]] == [20, 30], "nor does it matter who was away"


def test_a_node_with_an_older_view_is_asked_until_it_has_this_one(
    start: Callable[..., ScriptedNode],
) -> None:
    first, second = start(sequence_of(10)), start(lambda call: None, number=2)
    router, directory = router_for(first, second)
    older = stale(ClusterView([first.member], 0, CLUSTER))
    second.script = sequence_of(older, older, 20)
    view, answers = router.ask_all(commands.CLEAR, (b"\0",), Deadline(5.0))
    assert (view, [answer for _, answer in answers]) == (directory.view, [10, 20])
    assert (len(first.calls), len(second.calls)) == (1, 3)


def test_one_node_is_asked_under_the_view_that_it_has(start: Callable[..., ScriptedNode]) -> None:
    node, joined = start(lambda call: None), start(sequence_of([0, []]), number=2)
    router, directory = router_for(node)
    router.views.known(Deadline(5.0))
    node.script = sequence_of(stale(next_view(directory.view, joined)), [7, []])
    assert router.ask(node.member, commands.SCAN, (b"\0", b"\0", 5), Deadline(5.0)) == [7, []]
    assert node.calls == [("scan", [number, b"\0", b"\0", 5]) for number in (1, 2)]
    assert joined.calls == []


def test_a_node_that_left_is_left_out(start: Callable[..., ScriptedNode]) -> None:
    stays, leaves = start(sequence_of(5)), start(sequence_of(6), number=2)
    router, directory = router_for(stays, leaves)
    router.views.known(Deadline(5.0))

    def leave(call: Call) -> Any:
        directory.listed = [stays.member]
        leaves.close()
        return HANG_UP

    leaves.script = leave
    assert router.ask_all(commands.COUNT, (b"\0",), Deadline(5.0)) == (directory.view, [(stays.member, 5)])


def test_a_node_is_asked_where_it_is_by_now(start: Callable[..., ScriptedNode]) -> None:
    old, new = start(sequence_of(HANG_UP)), start(sequence_of([0, []]))
    router, directory = router_for(old)
    router.views.known(Deadline(5.0))
    directory.listed = [new.member]
    old.close()
    assert router.ask(old.member, commands.SCAN, (), Deadline(5.0)) == [0, []]


def test_a_node_that_is_no_member_any_more_has_left(start: Callable[..., ScriptedNode]) -> None:
    stays, leaves = start(sequence_of(5)), start(sequence_of(6), number=2)
    router, directory = router_for(stays, leaves)
    router.views.known(Deadline(5.0))
    directory.listed = [stays.member]
    leaves.close()
    with pytest.raises(NodeLeft, match=r"cache\.node\.2 has left"):
        router.ask(leaves.member, commands.SCAN, (), Deadline(5.0))


def test_nodes_agree_on_a_view_when_all_serve_under_it(start: Callable[..., ScriptedNode]) -> None:
    asked = 0

    def joins_late(call: Call) -> Any:
        nonlocal asked
        asked += 1
        return [] if asked > 3 else Refusal(refusals.STALE_VIEW, "stale", [])

    nodes = [start(sequence_of([])), start(joins_late, number=2)]
    router, _ = router_for(*nodes)
    view, away = router.agreed_view(Deadline(5.0))
    assert view == ClusterView([node.member for node in nodes], 1, CLUSTER)
    assert away == {}
    assert nodes[1].calls == [("get_many", [1, []])] * 4


def test_nodes_agree_on_a_view_without_those_that_do_not_answer(start: Callable[..., ScriptedNode]) -> None:
    silent, gone, stale = (
        start(sequence_of(SILENCE)),
        start(sequence_of([]), number=2),
        start(sequence_of(Refusal(refusals.STALE_VIEW, "stale", [])), number=3),
    )
    gone.close()
    router, _ = router_for(silent, gone, stale, start(sequence_of([]), number=4))
    view, away = router.agreed_view(Deadline(0.5))
    assert len(view) == 4
    assert set(away) == {silent.member, gone.member, stale.member}


def test_a_batch_can_be_content_with_one_reply_of_each_node(start: Callable[..., ScriptedNode]) -> None:
    node = start(lambda call: keys_back(call)[:7])
    router, _ = router_for(node)
    replies, errors = send(router, "get_many", batch_of(50), one_reply=True)
    assert (len(replies), errors, len(node.calls)) == (1, [], 1)
    node.script = sequence_of(HANG_UP, [b"a"])
    replies, errors = send(router, "get_many", batch_of(50), one_reply=True)
    assert (len(replies), errors) == (1, [])


@pytest.mark.parametrize("what", ["get", "set_many", "count", "agreed view"])
def test_a_timeout_is_reported_as_what_was_wrong_before(
    start: Callable[..., ScriptedNode], what: str
) -> None:
    node = start(sequence_of(Refusal(refusals.OVERLOADED, "busy"), SILENCE))
    router, _ = router_for(node)
    if what == "get":
        with pytest.raises(Overloaded, match="busy"):
            get(router, seconds=0.5)
    elif what == "set_many":
        _, errors = send(router, "set_many", batch_of(3, values=True), None, seconds=0.5)
        assert [type(error) for _, error in errors] == [MayHaveBeenDone]  # the second may
        assert "busy" in str(errors[0][1])
    elif what == "count":
        _, ((_, answer),) = router.ask_all(commands.COUNT, (b"\0",), Deadline(0.5))
        assert type(answer) is Overloaded
    else:
        _, unreachable = router.agreed_view(Deadline(0.5))
        assert type(unreachable[node.member]) is Overloaded
    assert len(node.calls) == 2


def counted(router: Router) -> dict[str, int]:
    return {name: count for name, count in router.retries.items() if count}
