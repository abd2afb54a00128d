"""A model of one change that a client sends: lost replies, late requests, repeats, and a node that restarts.

The node decides by the package's own `Requests` and `Outcomes`, the client by its `decide` and `decide_repeat`. The
model adds what is between them: requests that stay in a receive buffer, connections that end on one side and then on
the other, a worker that is slow, other clients whose replies fill the memory, a standstill of the node, and a restart
with the loss of all data.

Checked in each state: the call takes effect at most once; exactly once if it returns, and never if it fails with an
error other than `MayHaveBeenDone`; and never after its deadline. The other client of an "A, B, A" is left out, as it
sees A again only if the call takes effect twice.

Two kinds of changes are modelled: those that are executed when they are read, and those that a worker executes, which
looks at the deadline when it begins. Time has two moments: before the deadline, and after it.
Not modelled: long replies, several calls at once, numbers that wrap around.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from pyrocache.client.routing.retry import Attempts, LookUp, Lost, Repeat, Retry, decide, decide_repeat
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.errors import MayHaveBeenDone, NodeUnavailable
from pyrocache.net.calls import Request
from pyrocache.net.failures import Refused, Unavailable
from pyrocache.protocol import framing
from pyrocache.protocol.commands import SET
from pyrocache.protocol.handshake import MSGPACK
from pyrocache.protocol.refusals import Refusal
from pyrocache.protocol.request_id import REPEAT, RequestId, milliseconds
from pyrocache.server.deferred import Session
from pyrocache.server.dispatcher import refuse
from pyrocache.server.outcomes import Fate, Outcomes
from pyrocache.server.requests import LATE, Requests, is_late

Label = tuple[object, ...]

EARLY = 0.0
_DEADLINE = 5.0
_PAST_IT = 6.0
_CLIENT = b"client.."
_OTHERS = 4  # clients whose replies fill the memory
_DONE = framing.pack_message(framing.RESULT, 1, MSGPACK.dumps(True))
_TOO_LATE = refuse(1, LATE, MSGPACK)
_ROOM = (300 + len(_DONE)) * _OTHERS
_UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class RequestRules:
    """The parts of the node, and the mistakes that a client can make.

    Attributes:
        requests, outcomes: the classes that the node uses.
        late_workers: a worker does not look at the deadline.
        sends_anew: after a lost reply, the change is sent as a new request.
        unmarked: a repeat looks like a new request.
        any_incarnation: a repeat goes to a node that has restarted, and is taken by it.
    """

    requests: type[Requests] = Requests
    outcomes: type[Outcomes] = Outcomes
    late_workers: bool = False
    sends_anew: bool = False
    unmarked: bool = False
    any_incarnation: bool = False


class Sent(NamedTuple):
    """A request in a receive buffer, or with a worker.

    Attributes:
        connection: on which it came.
        number: its number in the session, with `REPEAT` if it is one.
        waited: whether the node stood still meanwhile.
    """

    connection: int
    number: int
    waited: bool = False


class _Session(Session):
    """A session that can be copied."""

    __slots__ = ()

    def __deepcopy__(self, memo: object) -> _Session:
        other = _Session()
        other.client, other.closed, other.last = self.client, self.closed, self.last
        other.recent = copy.copy(self.recent)
        return other


class Node:
    """What a node remembers. Does not change once it is part of a state.

    Attributes:
        requests, outcomes: the package's own.
        sessions: by number of the connection.
    """

    def __init__(self, rules: RequestRules) -> None:
        self.outcomes = rules.outcomes(_ROOM)
        self.requests = rules.requests(self.outcomes)
        self.sessions: dict[int, Session] = {}

    def key(self) -> object:
        """Return a value that is equal for nodes that will do the same."""
        return _frozen(vars(self.outcomes)), _frozen(self.sessions)

    def open(self, connection: int) -> None:
        """Note a new connection of the client."""
        session = self.sessions[connection] = _Session()
        session.client = _CLIENT
        self.outcomes.join(session)

    def close(self, connection: int, now: float) -> None:
        """Note that a connection has ended."""
        self.outcomes.leave(self.sessions[connection], now)
        self.sessions[connection].close()

    def fill(self, now: float) -> None:
        """Remember the replies to other clients, until there is no room for the client's."""
        for number in range(_OTHERS):
            other = _Session()
            other.client = b"other..%d" % number
            other.close()
            self.outcomes.finish(other, 1, _DONE, now)

    def answer(self, sent: Sent, now: float) -> bytes | Refusal | None:
        """Return the answer to a request that is not to be executed, or None."""
        identity = RequestId(_CLIENT, sent.number, milliseconds(_DEADLINE))
        return self.requests.answer(identity, now, once=True, waited=sent.waited)

    def begin(self, sent: Sent) -> None:
        """Note that a worker executes a request."""
        self.outcomes.begin(self.sessions[sent.connection], sent.number)

    def finish(self, sent: Sent, reply: bytes, now: float) -> None:
        """Note that a request was executed."""
        self.outcomes.finish(self.sessions[sent.connection], sent.number, reply, now)


def _frozen(value: Any) -> object:
    """Return a value that is equal for equal contents."""
    if isinstance(value, dict):
        items = ((key, _frozen(inner)) for key, inner in value.items())
        return tuple(items) if isinstance(value, OrderedDict) else frozenset(items)
    if isinstance(value, (set, frozenset)):
        return frozenset(map(_frozen, value))
    return (value.client, value.closed, value.last) if isinstance(value, Session) else value


class State(NamedTuple):
    """One state.

    Attributes:
        node: its memory.
        incarnation: of the node.
        known: the incarnation in the client's view.
        asked: the incarnation to which the client has sent the request.
        connection: the one that the client uses; all before have ended for it.
        number: of the client's last request.
        lost: how many repeats have failed; None if no reply to a change is lost.
        losses: how many replies to changes were lost.
        unreachable: whether the client has looked the node up, because it was not there.
        result: how the call has ended; empty while it is under way.
        expired: whether the deadline is over.
        buffered: requests that the node has not read.
        running: requests that a worker executes.
        reply: what the client will read next on its connection.
        effects: how often the call has taken effect.
        faults: how many more may happen.
    """

    node: Node
    incarnation: int = 0
    known: int = 0
    asked: int = 0
    connection: int = 0
    number: int = 1
    lost: int | None = None
    losses: int = 0
    unreachable: bool = False
    result: str = ""
    expired: bool = False
    buffered: frozenset[Sent] = frozenset()
    running: frozenset[Sent] = frozenset()
    reply: bytes | Refusal | str = ""
    effects: int = 0
    faults: int = 3

    @property
    def now(self) -> float:
        return _PAST_IT if self.expired else EARLY


class RequestModel:
    """The steps that are possible.

    Args:
        by_worker: whether a worker executes the change.
    """

    def __init__(self, rules: RequestRules, *, by_worker: bool) -> None:
        self.rules = rules
        self.by_worker = by_worker
        self._new = Node(rules)
        self._nodes = {self._new.key(): self._new}  # so that equal ones are the same object
        self._memory: dict[tuple[object, ...], tuple[Node, Any]] = {}

    def start(self, faults: int) -> State:
        """Return the state after the client has sent its request."""
        node, _ = self._after(self._new, Node.open, 0)
        state = State(node, faults=faults)
        return self._sent(state, state.number)

    def steps(self, state: State) -> Iterator[tuple[Label, State]]:
        """Yield each step, with its name. Raises `AssertionError` where an invariant does not hold."""
        for label, after in self._steps(state):
            assert after.effects <= 1, f"the call took effect twice ({label[0]})"
            assert after.result != "returned" or after.effects == 1, "the call returned, and took no effect"
            assert after.result != "failed" or after.effects == 0, "the call failed, and took effect"
            assert not (state.expired and after.effects > state.effects), "it took effect after its deadline"
            yield label, after

    def _after(self, node: Node, event: Callable[..., Any], *arguments: object) -> tuple[Node, Any]:
        """Return a node after an event, and what the event's method returned."""
        reaction = node, event, arguments
        if reaction not in self._memory:
            after = copy.deepcopy(node)
            returned = event(after, *arguments)
            self._memory[reaction] = self._nodes.setdefault(after.key(), after), returned
        return self._memory[reaction]

    def _steps(self, state: State) -> Iterator[tuple[Label, State]]:
        for sent in state.buffered:
            yield ("read", *sent), self._read(state._replace(buffered=state.buffered - {sent}), sent)
        for sent in state.running:
            yield ("finish", *sent), self._executed(state._replace(running=state.running - {sent}), sent)
        for connection, session in state.node.sessions.items():
            if not session.closed and connection < state.connection:
                yield ("node closes", connection), self._closed(state, connection)
        if state.reply and not state.result:
            yield ("receive", state.reply), self._received(state._replace(reply=""), state.reply)
        if not state.expired:
            yield ("deadline",), state._replace(expired=True, result=state.result or "raised")
        if state.known != state.incarnation and not state.result:
            yield ("client looks up",), state._replace(known=state.incarnation)
        if state.faults:
            less = state._replace(faults=state.faults - 1)
            yield from self._faults(less)

    def _faults(self, state: State) -> Iterator[tuple[Label, State]]:
        if not state.result and state.asked == state.incarnation:
            yield ("connection lost",), self._disconnected(state)
        if state.buffered:
            waited = frozenset(sent._replace(waited=True) for sent in state.buffered)
            yield ("node stands still",), state._replace(buffered=waited)
        yield ("memory full",), state._replace(node=self._after(state.node, Node.fill, state.now)[0])
        yield ("node restarts",), self._restarted(state)

    # The node --------------------------------------------------------------------------------------------

    def _read(self, state: State, sent: Sent) -> State:
        node, answer = self._after(state.node, Node.answer, sent, state.now)
        if answer is not None:
            return self._replied(state._replace(node=node), sent, answer)
        if self.by_worker:
            node, _ = self._after(node, Node.begin, sent)
            return state._replace(node=node, running=state.running | {sent})
        return self._executed(state._replace(node=node), sent)

    def _executed(self, state: State, sent: Sent) -> State:
        identity = RequestId(_CLIENT, sent.number, milliseconds(_DEADLINE))
        late = self.by_worker and not self.rules.late_workers and is_late(identity, state.now)
        node, _ = self._after(state.node, Node.finish, sent, _TOO_LATE if late else _DONE, state.now)
        state = state._replace(node=node, effects=state.effects + (not late))
        return self._replied(state, sent, LATE if late else _DONE)

    def _closed(self, state: State, connection: int) -> State:
        node, _ = self._after(state.node, Node.close, connection, state.now)
        left = frozenset(sent for sent in state.buffered if sent.connection != connection)
        return state._replace(node=node, buffered=left)

    def _restarted(self, state: State) -> State:
        """The node has been killed with its data and memory, and runs again; the client has lost its connection."""
        state = state._replace(
            node=self._new,
            incarnation=state.incarnation + 1,
            buffered=frozenset(),
            running=frozenset(),
        )
        return state if state.result else self._disconnected(state)

    def _replied(self, state: State, sent: Sent, reply: bytes | Refusal) -> State:
        return state._replace(reply=reply) if sent.connection == state.connection else state

    # The client ------------------------------------------------------------------------------------------

    def _sent(self, state: State, number: int) -> State:
        """Send a request over the client's connection; to a node that has restarted, there is none."""
        state = state._replace(reply="")
        if state.asked != state.incarnation and not self.rules.any_incarnation:
            return state._replace(reply=_UNREACHABLE)
        node = state.node
        if state.connection not in node.sessions:
            node, _ = self._after(node, Node.open, state.connection)
        return state._replace(node=node, buffered=state.buffered | {Sent(state.connection, number)})

    def _received(self, state: State, reply: bytes | Refusal | str) -> State:
        if isinstance(reply, Refusal):
            return self._failed(state, Refused(reply))
        if isinstance(reply, bytes):
            return state._replace(result="returned")
        return self._failed(state, _unavailable(sent=False))

    def _disconnected(self, state: State) -> State:
        sent = state.reply != _UNREACHABLE
        state = state._replace(connection=state.connection + 1, reply="")
        return self._failed(state, _unavailable(sent=sent, number=state.number))

    def _failed(self, state: State, problem: Refused | Unavailable) -> State:
        """Do what the client's policy says."""
        request = Request(_member(state.asked), SET, (_view(state.asked).number, b"key"))
        view = _view(state.asked if self.rules.any_incarnation else state.known)
        attempts = Attempts()
        attempts.losses = state.losses
        if state.lost is not None:
            lost = Lost(_unavailable(sent=True, number=state.number))
            lost.failed = state.lost
            action = decide_repeat(lost, attempts, request, problem, 5.0, view, 0.0)
            state = state._replace(lost=lost.failed)
        else:
            if state.unreachable:
                attempts.unreachable_since[request.member] = 1.0
            action = decide(attempts, request, problem, 1.0, 5.0, 2.0 if state.unreachable else 0.0, view)
        state = state._replace(losses=attempts.losses)
        if isinstance(action, Repeat) and not self.rules.sends_anew:
            number = action.number if self.rules.unmarked else action.number | REPEAT
            return self._sent(state._replace(lost=state.lost or 0), number)
        if isinstance(action, LookUp):
            state = state._replace(known=state.incarnation, unreachable=True)
        if isinstance(action, Retry | LookUp | Repeat):
            number = state.number + 1
            return self._sent(state._replace(number=number, lost=None, asked=state.known), number)
        return state._replace(result="raised" if isinstance(action, MayHaveBeenDone) else "failed")


@cache
def _member(incarnation: int) -> Member:
    return Member("cache.node.1", "127.0.0.1", 1, incarnation=str(incarnation))


@cache
def _view(incarnation: int) -> ClusterView:
    return ClusterView([_member(incarnation)], 1 + incarnation)


def _unavailable(*, sent: bool, number: int = 0) -> Unavailable:
    return Unavailable(NodeUnavailable("gone"), maybe_executed=sent, timed_out=False, number=number)


# Mistakes ------------------------------------------------------------------------------------------------


class ForgetsSessions(Outcomes):
    """Forgets the outcome of a change with its connection."""

    def leave(self, session: Session, now: float) -> None:
        session.last = None
        super().leave(session, now)


class ForgetsLateOutcomes(Outcomes):
    """Forgets the outcome of a change that was finished after its connection had closed."""

    def finish(self, session: Session, number: int, reply: object, now: float) -> None:
        super().finish(session, number, reply, now)
        if session.closed and session.client is not None and (session.client, number) in self._kept:
            self._remove((session.client, number))


class ForgetsRunning(Outcomes):
    """Takes a change that is being executed for one that it does not know."""

    def begin(self, session: Session, number: int) -> None:
        pass


class ForgetsRefused(Outcomes):
    """Executes a request though its repeat was refused."""

    def refuse(self, key: tuple[bytes, int], now: float, left: float) -> Fate:
        return Fate.NOT_DONE


class ForgetsDiscarded(Outcomes):
    """Takes its memory to be complete when a reply was discarded."""

    def _discard(self, key: tuple[bytes, int], now: float) -> None:
        self._remove(key)


class IgnoresDeadlines(Requests):
    """Executes a request that was read after its deadline."""

    def answer(self, identity: RequestId | None, now: float, **how: bool) -> bytes | Refusal | None:
        return super().answer(identity, EARLY, **how)


class ExecutesRepeats(Requests):
    """Executes a repeat that it does not recognize."""

    def answer(self, identity: RequestId | None, now: float, **how: bool) -> bytes | Refusal | None:
        answer = super().answer(identity, now, **how)
        return None if isinstance(answer, Refusal) and answer.code == "not-done" else answer


REQUEST_MISTAKES = {
    "forget a session": (RequestRules(outcomes=ForgetsSessions), False),
    "forget what was finished after a session": (RequestRules(outcomes=ForgetsLateOutcomes), True),
    "forget what is being executed": (RequestRules(outcomes=ForgetsRunning), True),
    "execute a request whose repeat was refused": (RequestRules(outcomes=ForgetsRefused), False),
    "forget that the memory was full": (RequestRules(outcomes=ForgetsDiscarded), False),
    "execute a request after its deadline": (RequestRules(requests=IgnoresDeadlines), False),
    "execute a repeat": (RequestRules(requests=ExecutesRepeats), False),
    "execute a request after its deadline, by a worker": (RequestRules(late_workers=True), True),
    "send a lost change as a new request": (RequestRules(sends_anew=True), False),
    "send a repeat like a new request": (RequestRules(unmarked=True), False),
    "repeat at another incarnation": (RequestRules(any_incarnation=True), False),
}
"""Rules with one mistake each, and whether it shows when a worker executes the change."""
