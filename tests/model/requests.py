"""A model of one change that a client sends: lost replies, late requests, repeats, and a node that restarts.

It follows the rule that the node's memory of outcomes and the client's retries implement: a change whose reply was lost
is sent again under its number, marked as a repeat. The node answers a repeat with the remembered outcome and never
executes it; one that it does not remember is refused for ever, so that the original is not executed either when it
arrives late. The client then sends the call as a new request if the node's memory is complete, and gives up otherwise.

Checked in each state: the call takes effect at most once, it takes effect exactly once if it returns, and never after
its deadline. The other client of an "A, B, A" is left out, as it sees A again only if the call takes effect twice.

Modelled: requests that stay in a receive buffer after their connection has ended, a worker that is slow, memory that
is thrown out, a restart with the loss of all data. A worker looks at the deadline in the moment in which it executes.
Not modelled: sizes, several calls at once, numbers that wrap around.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

Label = tuple[object, ...]


@dataclass(frozen=True)
class RequestRules:
    """The mistakes that can be made.

    Attributes:
        forgets_sessions: the node forgets outcomes when a connection ends, and takes its memory to be complete.
        repeats_unmarked: a repeat looks like a new request.
        executes_refused: a request is executed though its repeat was refused.
        executes_late: a request is executed after its deadline.
        any_incarnation: a repeat goes to a node that has restarted, whose memory is empty.
    """

    forgets_sessions: bool = False
    repeats_unmarked: bool = False
    executes_refused: bool = False
    executes_late: bool = False
    any_incarnation: bool = False


class Request(NamedTuple):
    """A request in a receive buffer, or with a worker.

    Attributes:
        connection: on which it came.
        number: its number in the session.
        repeat: whether it is marked as one.
    """

    connection: int
    number: int
    repeat: bool


class State(NamedTuple):
    """One state.

    Attributes:
        connection: the one that the client uses; all before have ended.
        number: of the request that the client waits for.
        result: how the call has ended; empty while it is under way.
        expired: whether the deadline is over.
        buffered: requests that the node has not read.
        running: requests that a worker executes.
        reply: what the client will read next on its connection.
        incarnation: of the node.
        known: the incarnation that the client has sent the change to.
        effects: how often the call has taken effect.
        remembered: the numbers whose outcome the node remembers.
        refused: the numbers that it does not execute any more.
        complete: whether it has forgotten nothing that could be asked for.
        faults: how many more may happen.
    """

    connection: int = 0
    number: int = 0
    result: str = ""
    expired: bool = False
    buffered: frozenset[Request] = frozenset()
    running: frozenset[Request] = frozenset()
    reply: str = ""
    incarnation: int = 0
    known: int = 0
    effects: int = 0
    remembered: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()
    complete: bool = True
    faults: int = 3


class RequestModel:
    """The steps that are possible."""

    def __init__(self, rules: RequestRules) -> None:
        self.rules = rules

    def start(self, faults: int) -> State:
        """Return the state after the client has sent its request."""
        return self._sent(State(faults=faults), repeat=False)

    def steps(self, state: State) -> Iterator[tuple[Label, State]]:
        """Yield each step, with its name. Raises `AssertionError` where an invariant does not hold."""
        for label, after in self._steps(state):
            assert after.effects <= 1, f"the call took effect twice ({label[0]})"
            assert after.result != "returned" or after.effects == 1, "the call returned, and took no effect"
            assert not (state.expired and after.effects > state.effects), "it took effect after its deadline"
            yield label, after

    def _steps(self, state: State) -> Iterator[tuple[Label, State]]:
        for request in state.buffered:
            yield ("read", *request), self._read(state._replace(buffered=state.buffered - {request}), request)
        for request in state.running:
            yield ("finish", *request), self._finished(state, request)
        if state.reply and not state.result:
            yield ("receive", state.reply), self._received(state._replace(reply=""), state.reply)
        if not state.expired:
            yield ("deadline",), state._replace(expired=True, result=state.result or "raised")
        if state.faults:
            less = state._replace(faults=state.faults - 1)
            if not state.result:
                yield ("connection lost",), self._repeated(less)
            if state.remembered:
                yield ("memory full",), less._replace(remembered=frozenset(), complete=False)
            yield ("node restarts",), self._restarted(less)

    def _sent(self, state: State, *, repeat: bool) -> State:
        request = Request(state.connection, state.number, repeat)
        return state._replace(buffered=state.buffered | {request}, known=state.incarnation, reply="")

    def _repeated(self, state: State) -> State:
        """The client has lost its connection, and sends the request again on another one."""
        if self.rules.forgets_sessions:
            state = state._replace(remembered=frozenset())
        state = state._replace(connection=state.connection + 1, reply="")
        if state.known != state.incarnation and not self.rules.any_incarnation:
            return state._replace(result="raised")
        return self._sent(state, repeat=not self.rules.repeats_unmarked)

    def _restarted(self, state: State) -> State:
        """The node has been killed with its data and memory, and runs again; the client has lost its connection."""
        state = state._replace(
            incarnation=state.incarnation + 1,
            buffered=frozenset(),
            running=frozenset(),
            remembered=frozenset(),
            refused=frozenset(),
            complete=True,
        )
        return state if state.result else self._repeated(state)

    def _read(self, state: State, request: Request) -> State:
        if state.expired and not self.rules.executes_late:
            return self._replied(state, request, "too late")
        if not request.repeat:
            if request.number in state.refused and not self.rules.executes_refused:
                return self._replied(state, request, "too late")
            return state._replace(running=state.running | {request})
        if request.number in (running.number for running in state.running):
            return self._replied(state, request, "running")
        if request.number in state.remembered:
            return self._replied(state, request, "done")
        if not state.complete:
            return self._replied(state, request, "forgotten")
        return self._replied(state._replace(refused=state.refused | {request.number}), request, "not done")

    def _finished(self, state: State, request: Request) -> State:
        """A worker has executed a request; past the deadline it refuses instead."""
        state = state._replace(running=state.running - {request})
        if state.expired and not self.rules.executes_late:
            return self._replied(state, request, "too late")
        lost = self.rules.forgets_sessions and request.connection != state.connection
        remembered = state.remembered if lost else state.remembered | {request.number}
        return self._replied(
            state._replace(effects=state.effects + 1, remembered=remembered), request, "done"
        )

    def _replied(self, state: State, request: Request, reply: str) -> State:
        return state._replace(reply=reply) if request.connection == state.connection else state

    def _received(self, state: State, reply: str) -> State:
        if reply == "done":
            return state._replace(result="returned")
        if reply == "not done":
            return self._sent(state._replace(number=state.number + 1), repeat=False)
        if reply == "running":
            return self._sent(state, repeat=True)
        return state._replace(result="raised")


REQUEST_MISTAKES = {
    "forget a session": RequestRules(forgets_sessions=True),
    "send a repeat like a new request": RequestRules(repeats_unmarked=True),
    "execute a request whose repeat was refused": RequestRules(executes_refused=True),
    "execute a request after its deadline": RequestRules(executes_late=True),
    "repeat at another incarnation": RequestRules(any_incarnation=True),
}
