"""Sends each request to the node that owns its key: which view, when to try again, when to give up.

Knows nothing of values; keys are canonical bytes. One deadline covers everything that a call does here: looking up,
connecting, retries, backoff. Thread-safe; `reset_after_fork` makes it good for a child process.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

from pyrocache.cluster.routing import ClusterView, Member, is_socket_path
from pyrocache.cluster.views import EMPTY
from pyrocache.config import TransportChoice
from pyrocache.errors import (
    ClientClosed,
    KeyTooLarge,
    NameServerUnavailable,
    NodeUnavailable,
    NoNodes,
    NotAnInt,
    Overloaded,
    PyroCacheError,
    RemoteError,
    ValueTooLarge,
)
from pyrocache.net.calls import Connections, Request
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import Directory
from pyrocache.net.failures import Refused, Unavailable
from pyrocache.net.membership import Membership, serving_members
from pyrocache.net.pinned import PinnedConnection
from pyrocache.protocol import limits, refusals
from pyrocache.protocol.commands import COMMANDS, Command, Runs, Scope
from pyrocache.protocol.messages import Pieces
from pyrocache.protocol.refusals import Refusal

_ENTRY_BYTES = 16  # what msgpack adds to a key and a value, at most
_UNAVAILABLE_RETRIES = 1
_LOOKUP_PAUSE_SECONDS = 0.05
_LOOKUP_SECONDS = 1.0
_FIRST_BACKOFF_SECONDS = 0.005
_LONGEST_BACKOFF_SECONDS = 0.1


class Batch(NamedTuple):
    """What is to be said about many keys.

    Attributes:
        keys: canonical bytes.
        values: for each key its value frame; None for no values.
    """

    keys: Sequence[bytes]
    values: Sequence[bytes | Pieces] | None = None

    def columns(self, chunk: Sequence[int]) -> list[list[Any]]:
        """The keys at these indices, and their values."""
        columns = (self.keys,) if self.values is None else (self.keys, self.values)
        if len(chunk) == len(self.keys):
            return [list(column) for column in columns]
        return [list(map(column.__getitem__, chunk)) for column in columns]

    def small(self) -> bool:
        """Whether all of it fits in one message by its bytes."""
        total = sum(map(len, self.keys)) + _ENTRY_BYTES * len(self.keys)
        if self.values is not None:
            total += sum(map(len, self.values))
        return total <= limits.BATCH_BYTES

    def halves(self, chunk: Sequence[int]) -> list[list[int]]:
        """``chunk`` in two, the half with the larger values first."""
        assert self.values is not None
        values = self.values
        by_size = sorted(chunk, key=lambda index: len(values[index]), reverse=True)
        half = len(by_size) // 2
        return [sorted(by_size[:half]), sorted(by_size[half:])]

    def size(self, index: int) -> int:
        """Bytes that one key and its value add to a message."""
        value = 0 if self.values is None else len(self.values[index])
        return len(self.keys[index]) + value + _ENTRY_BYTES


class NodeLeft(NodeUnavailable):
    """The node is no member any more, and what it held is gone."""


class Router:
    """Routes requests of one client.

    Args:
        directory: the name server.
        max_connections: to any one node.
        max_held: further connections to any one node, for calls that may wait for somebody else, and for what nodes
            grant for as long as a connection lives.
        transport: whether nodes on this host are reached over their Unix sockets.
        sleep, jitter: what waits, and a number from 0 to 1 each time it is called.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        max_connections: int = 64,
        max_held: int = 256,
        transport: TransportChoice = "auto",
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._max_connections = max_connections
        self._transport = transport
        self._sleep = sleep
        self._jitter = jitter
        self._clock = clock
        self._max_held = max_held
        self._connections = Connections(max_connections, transport)
        self._holding = Connections(max_held, transport)  # apart: they may be held for long
        self._membership = Membership(directory.members, self._serving)
        self._looked_up_at = float("-inf")
        self._closed = False

    def view(self, deadline: Deadline) -> ClusterView:
        """The view to route with.

        Raises:
            ClientClosed: this was closed.
            NameServerUnavailable: there is none yet and no name server to ask.
            NoNodes: the name server knows no node.
        """
        self._check_open()
        view = self._membership.view
        if not view.members:
            view = self._look_up(deadline.remaining())
            if not view.members:
                raise NoNodes("The name server knows no node; start some with: pyrocache nodes")
        return view

    def fresh_view(self, deadline: Deadline) -> ClusterView:
        """The view after a look into the name server, or the last one when that is away."""
        self._check_open()
        try:
            known = self._membership.view.members
            self._look_up(_share(deadline) if known else deadline.remaining())
        except NameServerUnavailable:
            if not self._membership.view.members:
                raise
        return self.view(deadline)

    def call(
        self,
        method: str,
        key: bytes,
        *arguments: Any,
        deadline: Deadline,
        idempotent: bool = True,
        largest_value: int = 0,
    ) -> Any:
        """Call ``method(view, key, *arguments)`` of the node that owns ``key``.

        Args:
            idempotent: doing it twice is like doing it once, so it may be retried after its reply was lost.

        Raises:
            NodeUnavailable: the node is away; `Overloaded` when it is at a limit.
            RemoteError: it refused.
        """
        command = _command(method, idempotent)
        attempts: _Attempts | None = None
        while True:
            view = self._membership.view
            if not view.members:
                view = self.view(deadline)
            member = view.owner(key)
            told = (view.id, key, *arguments)
            try:
                return self._connections.call(member, command, told, deadline, largest_value)
            except (Refused, Unavailable) as problem:
                attempts = attempts or _Attempts(self, deadline)
                attempts.failed(Request(member, command, told, largest_value), problem, idempotent=idempotent)

    def hold(
        self,
        method: str,
        key: bytes,
        *arguments: Any,
        deadline: Deadline,
        held: PinnedConnection | None = None,
        waits: bool = True,
    ) -> PinnedConnection | None:
        """Call ``method(view, key, *arguments)`` of the node that owns ``key``, which is done twice without harm if the
        connection that it was done on first is closed; the result is its `answer`.

        Args:
            held: from an earlier call, to go on with if it is to the same node; not the caller's any more.
            waits: the node may let this wait. Some connections are kept back from such calls: those who are waited for
                may need one to get on.

        Returns:
            None, without waiting, when too many connections to the node are held already.

        Raises:
            NodeUnavailable, RemoteError: as `call`.
        """
        attempts: _Attempts | None = None
        while True:
            view = self._membership.view
            if not view.members:
                view = self.view(deadline)
            member = view.owner(key)
            told = (view.id, key, *arguments)
            try:
                reserve = self._max_held // 4 if waits else 0
                return self._holding.pin(member, _command(method), told, deadline, held, reserve)
            except (Refused, Unavailable) as problem:
                self._check_open()
                held = None
                attempts = attempts or _Attempts(self, deadline)
                attempts.failed(Request(member, _command(method), told), problem, idempotent=True)

    def batch(
        self,
        method: str,
        batch: Batch,
        *arguments: Any,
        deadline: Deadline,
        on_reply: Callable[[Sequence[int], Any], int],
        idempotent: bool = True,
        one_reply: bool = False,
    ) -> list[tuple[Sequence[int], PyroCacheError]]:
        """Call ``method(view, keys, [values,] *arguments)`` of each owner, for as many messages as it takes.

        A message to each node is sent before the first reply is read, and the next to a node as soon as it has
        answered: none waits for another. A message with a value that is too large for its node is halved until that
        value is alone in it.

        Args:
            on_reply: called with the indices of a message's keys, which grow, and the reply as it comes; returns how
                many of them, from the first on, the reply is about. The others are asked again.
            one_reply: ask no node again that has answered; the caller knows what it has been told.

        Returns:
            For each message that failed the indices of its keys, and why.
        """
        errors: list[tuple[Sequence[int], PyroCacheError]] = []
        attempts: _Attempts | None = None
        pending: Sequence[int] = range(len(batch.keys))
        while pending:
            view = self.view(deadline)
            round = _Round(_command(method, idempotent), view, batch, arguments, pending)
            problem: tuple[Request, Refused | Unavailable] | None = None
            outcomes = self._connections.exchange(round.requests, deadline)
            with closing(outcomes):
                for index, outcome in outcomes:
                    request, chunk = round.requests[index], round.asked[index]
                    left = round.left[request.member]
                    if _is_too_large(outcome):
                        if len(chunk) > 1:
                            left += batch.halves(chunk)
                        else:
                            errors.append((chunk, _error_of(request, outcome)))
                        round.ask(request.member)
                        continue
                    if isinstance(outcome, Refused | Unavailable):
                        attempts = attempts or _Attempts(self, deadline)
                        left.append(chunk)  # what the node was not asked yet meets the same fate
                        if attempts.hopeless(request, outcome, idempotent=idempotent):
                            error = _error_of(request, outcome)
                            errors += [(unanswered, error) for unanswered in left]
                            left.clear()
                        else:
                            problem = (request, outcome)
                        continue
                    count = on_reply(chunk, outcome)
                    if not 0 < count <= len(chunk):
                        raise RemoteError(
                            f"{request.member.name} answered {method} with a reply of the wrong kind or length."
                        )
                    if one_reply:
                        left.clear()
                        continue
                    if count < len(chunk):
                        left.append(chunk[count:])
                    round.ask(request.member)
            if problem is not None:
                assert attempts is not None
                attempts.wait(*problem)
            pending = round.unanswered()
        return errors

    def everywhere(
        self, method: str, *arguments: Any, deadline: Deadline, idempotent: bool = False
    ) -> list[tuple[Member, Any | NodeUnavailable]]:
        """Call ``method(*arguments)`` of every node: each with its result, or why it is away.

        A node that leaves meanwhile, and all that it held with it, is left out.
        """
        members = self.fresh_view(deadline).members
        answers: dict[Member, Any | NodeUnavailable] = {}
        attempts = _Attempts(self, deadline)
        while members:
            requests = [Request(member, _command(method, idempotent), arguments) for member in members]
            problem: tuple[Request, Refused | Unavailable] | None = None
            again: list[str] = []
            with closing(self._connections.exchange(requests, deadline)) as outcomes:
                for index, outcome in outcomes:
                    request = requests[index]
                    if isinstance(outcome, Refused | Unavailable):
                        if not attempts.hopeless(request, outcome, idempotent=idempotent):
                            problem = (request, outcome)
                            again.append(request.member.name)
                            continue
                        outcome = _node_unavailable(request, outcome)
                    answers[request.member] = outcome
            if problem is not None:
                attempts.wait(*problem)
            members = tuple(member for name in again if (member := self._membership.view.member(name)))
        return sorted(answers.items(), key=lambda answer: answer[0].number)

    def settled_view(self, deadline: Deadline) -> tuple[ClusterView, dict[Member, NodeUnavailable]]:
        """The view that all nodes which answer serve under at this moment, and why the others do not.

        So each key that is reachable is at its owner by this view, and nowhere else.
        """
        attempts = _Attempts(self, deadline)
        while True:
            view = self.fresh_view(deadline)
            away: dict[Member, NodeUnavailable] = {}
            requests = [Request(member, COMMANDS["get_many"], (view.id, [])) for member in view.members]
            problem: tuple[Request, Refused | Unavailable] | None = None
            with closing(self._connections.exchange(requests, deadline)) as outcomes:
                for index, outcome in outcomes:
                    request = requests[index]
                    if not isinstance(outcome, Refused | Unavailable):
                        continue
                    if attempts.hopeless(request, outcome, idempotent=True):
                        away[request.member] = _node_unavailable(request, outcome)
                    else:
                        problem = (request, outcome)
            if problem is None:
                return view, away
            attempts.wait(*problem)

    def ask(self, member: Member, method: str, *arguments: Any, deadline: Deadline) -> Any:
        """Call ``method(*arguments)``, which is idempotent, of ``member``, wherever it is by now.

        Raises:
            NodeLeft: it is no member any more.
            NodeUnavailable, RemoteError: as `call`.
        """
        self._check_open()
        attempts: _Attempts | None = None
        while True:
            try:
                return self._connections.call(member, _command(method), arguments, deadline)
            except (Refused, Unavailable) as problem:
                attempts = attempts or _Attempts(self, deadline)
                attempts.failed(Request(member, _command(method), arguments), problem, idempotent=True)
            found = self._membership.view.member(member.name)
            if found is None:
                raise NodeLeft(
                    f"{member.name} has left, with what it held; {method} needs no answer from it."
                )
            member = found

    def close(self) -> None:
        """Close the connections; every later call raises `ClientClosed`."""
        self._closed = True
        self._membership.adopt(EMPTY)
        self._connections.close()
        self._holding.close()

    def reset_after_fork(self) -> None:
        """Make this good for a child process, which must not touch its parent's connections or locks."""
        view = self._membership.view
        self._connections.abandon()
        self._holding.abandon()
        self._connections = Connections(self._max_connections, self._transport)
        self._holding = Connections(self._max_held, self._transport)
        self._membership = Membership(self._directory.members, self._serving)
        self._membership.adopt(view)

    # For _Attempts ---------------------------------------------------------------------------------------

    def learn(self, members: Any) -> None:
        """Adopt the view that a node told of; nonsense is ignored."""
        try:
            view = ClusterView(Member(*fields) for fields in members)
            believed = all(
                not member.socket_path or is_socket_path(member.socket_path, member.incarnation)
                for member in view.members
            )
        except (TypeError, ValueError):
            return
        if view.members and believed:
            self._membership.adopt(view)

    def look_up_after_failure(self, deadline: Deadline) -> bool:
        """Look into the name server, unless that was done a moment ago; False when it is away."""
        if self._clock() - self._looked_up_at < _LOOKUP_PAUSE_SECONDS:
            return True
        try:
            self._look_up(_share(deadline))
        except NameServerUnavailable:
            return False
        return True

    def looked_up_since(self, moment: float) -> bool:
        """Whether a look into the name server, perhaps a vain one, began after ``moment``."""
        return self._looked_up_at >= moment

    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock()

    def owner_changed(self, member: Member) -> bool:
        """Whether the view has other news of ``member`` than the caller."""
        return self._membership.view.member(member.name) != member

    def back_off(self, seconds: float) -> None:
        """Wait for half of ``seconds`` to all of them."""
        self._sleep(seconds * (0.5 + self._jitter() / 2))

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosed("This client was closed; make a new PyroCacheClient.")

    def _look_up(self, seconds: float) -> ClusterView:
        self._looked_up_at = self._clock()
        return self._membership.refresh(max(seconds, 0.001))

    def _serving(self, members: Sequence[Member], seconds: float) -> Collection[Member]:
        return serving_members(self._connections, members, seconds)


def _command(method: str, idempotent: bool = True) -> Command:
    command = COMMANDS.get(method) or Command(method, Scope.NODE, idempotent, Runs.INLINE, False)
    return command if command.idempotent == idempotent else replace(command, idempotent=idempotent)


def _share(deadline: Deadline) -> float:
    """How long a look into the name server may take when what matters comes after it."""
    return min(deadline.remaining() / 2, _LOOKUP_SECONDS)


class _Attempts:
    """The failures of one call, and what to do after each."""

    __slots__ = ("_count", "_deadline", "_previous", "_router", "_unavailable", "_unavailable_since")

    def __init__(self, router: Router, deadline: Deadline) -> None:
        self._router = router
        self._deadline = deadline
        self._count = 0
        self._previous: tuple[Request, Refused | Unavailable] | None = None
        self._unavailable = 0
        self._unavailable_since = 0.0

    def failed(self, request: Request, problem: Refused | Unavailable, *, idempotent: bool) -> None:
        """Return when the call is to be made again, raise when it is not."""
        if self.hopeless(request, problem, idempotent=idempotent):
            if self._previous is not None and isinstance(problem, Unavailable) and problem.timed_out:
                request, problem = self._previous  # says more than that the time was up
            raise _node_unavailable(request, problem) from problem
        self._previous = (request, problem)
        self.wait(request, problem)

    def wait(self, request: Request, problem: Refused | Unavailable) -> None:
        """Learn what there is to learn from a failure, and give the cluster a moment."""
        if isinstance(problem, Unavailable):
            if not self._unavailable:
                self._unavailable_since = self._router.now()
            self._unavailable += 1
            self._router.look_up_after_failure(self._deadline)
            if self._router.owner_changed(request.member):
                self._unavailable = 0  # another node is asked next, or this one elsewhere
                return
        elif problem.refusal.code == refusals.STALE_VIEW:
            self._settle_views(problem.refusal.detail)
        self._router.back_off(self._pause())
        self._count += 1

    def _settle_views(self, members: Any) -> None:
        """Have the name server decide, and the node, which holds ``members``, only while that is away.

        The node may know less than we do, as when another has just joined; what it stored by its old view would be
        dropped with that.
        """
        if not self._router.look_up_after_failure(self._deadline):
            self._router.learn(members)

    def hopeless(self, request: Request, problem: Refused | Unavailable, *, idempotent: bool) -> bool:
        """Whether trying again is useless, or could do a thing twice."""
        if self._deadline.remaining() <= self._pause():
            return True  # and this problem says more than the time-out would that follows it
        if isinstance(problem, Refused):
            return problem.refusal.code not in (refusals.STALE_VIEW, refusals.OVERLOADED)
        if isinstance(problem.error, Overloaded):
            return False
        if problem.timed_out or (problem.maybe_executed and not idempotent):
            return True
        # Once more at least, and not before the name server was asked: the node may have left or moved.
        return self._unavailable >= _UNAVAILABLE_RETRIES and self._router.looked_up_since(
            self._unavailable_since
        )

    def _pause(self) -> float:
        """Seconds to wait, at most, before the next attempt: longer each time."""
        return min(_FIRST_BACKOFF_SECONDS * float(2 ** min(self._count, 10)), _LONGEST_BACKOFF_SECONDS)


class _Round:
    """What is asked of whom while one view holds, a message to each node at a time.

    Attributes:
        requests: made so far.
        asked: the indices that each of them is about.
        left: for each owner those still to be asked, a message each, the next one last.
    """

    __slots__ = ("_arguments", "_batch", "_command", "_view", "asked", "left", "requests")

    def __init__(
        self,
        command: Command,
        view: ClusterView,
        batch: Batch,
        arguments: tuple[Any, ...],
        pending: Sequence[int],
    ) -> None:
        self._command = command
        self._view = view
        self._batch = batch
        self._arguments = arguments
        self.requests: list[Request] = []
        self.asked: list[list[int]] = []
        self.left: dict[Member, list[list[int]]] = {}
        small = batch.small()
        for member, indices in zip(view.members, view.split(batch.keys, pending), strict=True):
            if indices:
                self.left[member] = _chunks(batch, indices, small)
                self.ask(member)

    def ask(self, member: Member) -> None:
        """Make the next request to a node, if there is one."""
        if not self.left[member]:
            return
        chunk = self.left[member].pop()
        columns = self._batch.columns(chunk)
        largest = max(map(len, columns[1])) if self._batch.values is not None else 0
        told = (self._view.id, *columns, *self._arguments)
        self.asked.append(chunk)
        self.requests.append(Request(member, self._command, told, largest))

    def unanswered(self) -> list[int]:
        """The indices to ask about again, in order."""
        return sorted(index for left in self.left.values() for chunk in left for index in chunk)


def _chunks(batch: Batch, indices: list[int], small: bool) -> list[list[int]]:
    """``indices`` in messages, the last one first."""
    chunks: list[list[int]] = []
    begin = 0
    while begin < len(indices):
        chunk = indices[begin : begin + limits.MAX_BATCH]
        if not small:
            del chunk[_fitting(batch, chunk) :]
        chunks.append(chunk)
        begin += len(chunk)
    chunks.reverse()
    return chunks


def _fitting(batch: Batch, indices: Sequence[int]) -> int:
    """How many of ``indices``, from the first on, make one message; at least one."""
    room = limits.BATCH_BYTES
    for count, index in enumerate(indices):
        room -= batch.size(index)
        if room < 0 and count:
            return count
    return len(indices)


def _is_too_large(outcome: Any) -> bool:
    if isinstance(outcome, Refused):
        return outcome.refusal.code == refusals.VALUE_TOO_LARGE
    return isinstance(outcome, ValueTooLarge)


def _error_of(request: Request, problem: Refused | Unavailable | ValueTooLarge) -> PyroCacheError:
    """The exception for the user."""
    if isinstance(problem, ValueTooLarge):
        return problem
    if isinstance(problem, Unavailable):
        return problem.error
    return _error_from(request, problem.refusal)


def _node_unavailable(request: Request, problem: Refused | Unavailable) -> NodeUnavailable:
    """The exception for the user; raises it when it is no `NodeUnavailable`."""
    error = _error_of(request, problem)
    if isinstance(error, NodeUnavailable):
        return error
    raise error from problem


def _error_from(request: Request, refusal: Refusal) -> PyroCacheError:
    said = f"{request.member.name} refused {request.command.name}: {refusal.message}"
    if refusal.code == refusals.VALUE_TOO_LARGE:
        return ValueTooLarge(said)
    if refusal.code == refusals.KEY_TOO_LARGE:
        return KeyTooLarge(said)
    if refusal.code == refusals.NOT_AN_INT:
        return NotAnInt(said)
    if refusal.code == refusals.OVERLOADED:
        return Overloaded(said)
    if refusal.code == refusals.STALE_VIEW:
        return NodeUnavailable(
            f"{said} It did not agree within the deadline on which nodes there are; try again."
        )
    return RemoteError(said)
