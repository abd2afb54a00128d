"""`Router`: sends each request to the node that owns its keys, and repeats it as the retry policy says.

Holds the view of the cluster and the connections of one client. Does not decode values; keys are canonical bytes. The
retry policy is `decide` in ``retry.py``; every loop here performs what it returns. One deadline covers everything that
a call does: querying the name server, connecting, retries, pauses. The connections are in ``net/calls.py``.

Thread safety: thread-safe; `reset_after_fork` makes a router usable in a child process.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

from xxhash import xxh3_64_intdigest

from pyrocache.client import replies
from pyrocache.client.routing.batch import Batch, Round
from pyrocache.client.routing.retry import (
    Action,
    Attempts,
    LookUp,
    Lost,
    Moved,
    Problem,
    Repeat,
    Retry,
    decide,
    decide_repeat,
)
from pyrocache.client.routing.views import Views
from pyrocache.cluster.routing import PARTITIONS, ClusterView, Member
from pyrocache.cluster.views import EMPTY
from pyrocache.config import TransportChoice
from pyrocache.errors import MayHaveBeenDone, NodeUnavailable, PyroCacheError
from pyrocache.net.call_protocol import ANONYMOUS, Caller
from pyrocache.net.calls import Connections, Request
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import Directory, WatchedLookUp
from pyrocache.net.failures import Refused, Unavailable, name_in_hint
from pyrocache.net.membership import Membership, serving_members
from pyrocache.net.pinned import PinnedConnection
from pyrocache.net.suspicion import Suspicions
from pyrocache.protocol.commands import CHECK_VIEW, Command, Scope
from pyrocache.protocol.refusals import NOT_SERVING, TRY_AGAIN
from pyrocache.protocol.request_id import SESSION_BYTES
from pyrocache.runtime import at_fork

_AGAIN: Any = object()
COUNTED = {NOT_SERVING: "not_serving", TRY_AGAIN: "try_again"}
"""Refusals that are counted, by code, and what `ClientStats` calls them."""


class Result(NamedTuple):
    """The result of a change whose reply was lost, as the node remembered it."""

    value: Any


class NodeLeft(NodeUnavailable):
    """The node is no longer a member; its entries are lost."""


class Router:
    """Routes the requests of one client.

    Args:
        directory: the name server.
        max_connections: the most connections to one node.
        max_pinned: the most additional connections to one node, for calls that may wait for another caller, and for
            grants that end with their connection.
        transport: whether nodes on this host are reached over their Unix sockets.
        sleep: pauses for a number of seconds.
        jitter: returns a random number from 0 to 1.
        clock: monotonic seconds.
        nameserver: the address of the name server, for the hints in errors.
        caller: what this client knows and demands; its greeting is completed here.

    Attributes:
        views: the cluster view and its updates.
        retries: the counts that `ClientStats` has of requests which were not answered at once. Not exact if threads
            count at the same time.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        max_connections: int = 64,
        max_pinned: int = 256,
        transport: TransportChoice = "auto",
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        nameserver: str = "",
        caller: Caller = ANONYMOUS,
    ) -> None:
        self._caller = caller
        self.retries = dict.fromkeys(("retries", *COUNTED.values(), "repeats", "unsettled"), 0)
        self._directory = directory
        self._nameserver = nameserver
        self._max_connections = max_connections
        self._max_pinned = max_pinned
        self._transport = transport
        self._sleep = sleep
        self._jitter = jitter
        self._clock = clock
        self._connect(EMPTY)
        at_fork.in_child(self.reset_after_fork)

    def call(
        self, command: Command, key: bytes, arguments: tuple[Any, ...], deadline: Deadline, largest: int = 0
    ) -> Any:
        """Send a command about one key to the node that owns it, and return the result.

        Args:
            arguments: the arguments after the view and the key.
            largest: bytes of the largest value among the arguments.

        Raises:
            NodeUnavailable: the node does not answer; `Overloaded` if it is at a limit.
            RemoteError, ValueTooLarge, KeyTooLarge, NotAnInt: the node refused the request.
        """
        attempts: Attempts | None = None  # made after the first failure, which most calls do not have
        while True:
            view = self._membership.view
            owner = view.owners[xxh3_64_intdigest(key) % PARTITIONS]
            if owner >= 0:  # inlined `ClusterView.owner`, saves a function call
                member = view.members[owner]
            else:
                view = self.views.known(deadline)
                member = view.owner(key)
            try:
                return self._connections.call(
                    member, command, (view.number, key, *arguments), deadline, largest
                )
            except (Refused, Unavailable) as problem:
                attempts = attempts or Attempts()
                request = Request(member, command, (view.number, key, *arguments), largest)
                outcome = self._recover(attempts, request, problem, deadline)
                if outcome is not _AGAIN:
                    return outcome

    def pin(
        self,
        command: Command,
        key: bytes,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        pinned: PinnedConnection | None = None,
        *,
        may_wait: bool = True,
    ) -> PinnedConnection | None:
        """Send a command whose effect ends with its connection to the owner of ``key``. Return the connection.

        The connection has the answer. Safe to retry, because closing the connection undoes the effect.

        Args:
            pinned: from an earlier call, to reuse if it is to the same node; the caller must not use it any more.
            may_wait: the node may delay the answer. Some connections are reserved for calls whose answer is not
                delayed, because a caller that other callers wait for may need one.

        Returns:
            The connection; None, without waiting, when too many connections to the node are pinned already.

        Raises:
            NodeUnavailable, RemoteError: as `call`.
        """
        reserve = self._max_pinned // 4 if may_wait else 0
        attempts = Attempts()
        while True:
            view = self.views.known(deadline)
            member = view.owner(key)
            sent = (view.number, key, *arguments)
            try:
                return self._pinning.pin(member, command, sent, deadline, pinned, reserve)
            except (Refused, Unavailable) as problem:
                pinned = None
                self._recover(attempts, Request(member, command, sent), problem, deadline)

    def batch(
        self, batch: Batch, deadline: Deadline, *, one_reply: bool = False
    ) -> Iterator[tuple[Sequence[int], Any | PyroCacheError]]:
        """Send a command about many keys to their owners, in as many messages as needed.

        Each owner gets a message before the first reply is read, and its next message as soon as it has answered: no
        node waits for another. A message with a value that is too large for its node is halved until that value is
        alone. Keys that a reply does not cover are requested again.

        Args:
            one_reply: send no further request to a node that has answered.

        Yields:
            The indices of some keys, ascending, with the reply about them or the error.
        """
        attempts = Attempts()
        pending: Sequence[int] = range(len(batch.keys))
        while pending:
            round = Round(batch, self.views.known(deadline), pending)
            for index, outcome in self._exchange(attempts, round.requests, deadline):
                member, chunk = round.requests[index].member, round.chunks[index]
                if isinstance(outcome, Moved):
                    round.left_of(member)
                    round.route(self.views.known(deadline), chunk)
                    continue
                yield from round.take(member, chunk, outcome, one_reply=one_reply)
            pending = round.unanswered()

    def broadcast(
        self,
        command: Command,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        only: Collection[str] | None = None,
        *,
        keep_refusals: bool = False,
    ) -> list[tuple[Member, Any]]:
        """Send a command that is not about data to every node. Return each with its result or its `NodeUnavailable`.

        A node that leaves meanwhile is omitted.

        Args:
            only: names; send it to these nodes, not to all.
            keep_refusals: return the error of a node that refuses, in place of its result.

        Raises:
            RemoteError: a node refused the request, without ``keep_refusals``.
        """
        members = self.views.fresh(deadline).members
        if only is not None:
            members = tuple(member for member in members if member.name in only)
        answers: dict[str, tuple[Member, Any]] = {}
        attempts = Attempts()
        while members:
            requests = [Request(member, command, arguments) for member in members]
            names: list[str] = []
            for index, outcome in self._exchange(attempts, requests, deadline):
                member = members[index]
                if isinstance(outcome, (Moved, Retry, LookUp)):
                    names.append(member.name)
                else:
                    answers[member.name] = member, outcome if keep_refusals else not_refused(outcome)
            # Repeat at the current address of each node; a node that has left is omitted.
            members = tuple(moved for name in names if (moved := self._membership.view.member(name)))
        return sorted(answers.values(), key=lambda answer: answer[0].number)

    def ask_all(
        self, command: Command, arguments: tuple[Any, ...], deadline: Deadline
    ) -> tuple[ClusterView, list[tuple[Member, Any]]]:
        """Send a command about data, with the number of one view, to all its members. Return the view and the answers.

        If the view has changed before all have answered, all members of the new one are asked: the keys may have moved.

        Args:
            arguments: the arguments after the view.

        Returns:
            The view, and each member with its result or its `NodeUnavailable`. The results that members gave under
            earlier views come first, if the command is a change: it has been executed each time. So do
            `MayHaveBeenDone` errors.

        Raises:
            RemoteError: a node refused the request.
        """
        view = self.views.fresh(deadline)
        attempts = Attempts()
        earlier: list[tuple[Member, Any]] = []
        answers: dict[str, tuple[Member, Any]] = {}
        while missing := [member for member in view.members if member.name not in answers]:
            requests = [Request(member, command, (view.number, *arguments)) for member in missing]
            for index, outcome in self._exchange(attempts, requests, deadline):
                if not isinstance(outcome, (Moved, Retry, LookUp)):
                    answers[missing[index].name] = missing[index], not_refused(outcome)
            if len(answers) < len(view) and self._membership.view != view:
                if command.mutates:
                    earlier += [answer for answer in answers.values() if may_be_done(answer[1])]
                answers.clear()
                view = self.views.known(deadline)
        return view, earlier + sorted(answers.values(), key=lambda answer: answer[0].number)

    def agreed_view(self, deadline: Deadline) -> tuple[ClusterView, dict[Member, NodeUnavailable]]:
        """Return a view that all answering nodes have used since the call began, and the errors of the other nodes.

        Thus each reachable key that was stored before the call was at its owner by this view, and at no other node.
        """
        # Without keys, this is the cheapest request by which a node checks the view.
        view, answers = self.ask_all(CHECK_VIEW, ([],), deadline)
        unreachable: dict[Member, NodeUnavailable] = {}
        for member, outcome in answers:
            if isinstance(outcome, NodeUnavailable):
                unreachable[member] = outcome
            elif outcome != []:
                raise replies.wrong(CHECK_VIEW, member.name)
        return view, unreachable

    def known_owner(self, key: bytes) -> str:
        """Return the name of the node that owns ``key`` by the latest view, ``""`` if no node is known yet."""
        view = self._membership.view
        return view.owner(key).name if view.members else ""

    def ask(self, member: Member, command: Command, arguments: tuple[Any, ...], deadline: Deadline) -> Any:
        """Send a command about the data of one node, at its current address, and return the result.

        If the view changes, the node is asked under the new one.

        Args:
            member: the node, perhaps as an older view has it.
            arguments: the arguments after the view.

        Raises:
            NodeLeft: the node is no longer a member.
            NodeUnavailable, RemoteError: as `call`.
        """
        attempts = Attempts()
        while True:
            view = self.views.known(deadline)
            found = view.member(member.name)
            if found is None:
                raise NodeLeft(
                    f"{member.name} has left, with what it held; {command.name} needs no answer from it."
                )
            sent = (view.number, *arguments)
            try:
                return self._connections.call(found, command, sent, deadline)
            except (Refused, Unavailable) as problem:
                outcome = self._recover(attempts, Request(found, command, sent), problem, deadline)
                if outcome is not _AGAIN:
                    return outcome

    def outcome(
        self,
        member: Member,
        command: Command,
        arguments: tuple[Any, ...],
        problem: Problem,
        deadline: Deadline,
    ) -> Any:
        """Return the result of a change that has failed on a connection of its own; None if it is not known."""
        if not command.once or isinstance(problem, Refused):
            return None
        request = Request(member, command, arguments)
        action = self._decide(Attempts(), request, problem, deadline)
        return action.value if isinstance(action, Result) else None

    def close(self) -> None:
        """Close the connections; every later call raises `ClientClosed`."""
        self.views.closed = True
        self._membership.view = EMPTY
        self._connections.close()
        self._pinning.close()

    def disconnect(self) -> None:
        """Close the connections that are not in use, and the others when they are put back. Keeps the view."""
        self._connections.disconnect()
        self._pinning.disconnect()

    def reset_after_fork(self) -> None:
        """Replace connections and locks in a forked child, which must not use those of its parent.

        The child trusts each node anew.
        """
        self._connections.abandon()
        self._pinning.abandon()
        self._connect(self._membership.view)

    def _connect(self, view: ClusterView) -> None:
        suspicions = Suspicions()
        greeting = self._caller.greeting._replace(session=os.urandom(SESSION_BYTES))
        caller = self._caller._replace(greeting=greeting)
        self._connections = Connections(self._max_connections, self._transport, suspicions, caller)
        # Callers may keep these for long.
        self._pinning = Connections(self._max_pinned, self._transport, suspicions, caller)
        nameserver = WatchedLookUp(self._directory)
        self._membership = Membership(nameserver, partial(serving_members, self._connections))
        self._membership.view = view
        self.views = Views(self._membership, nameserver, self._clock, self._nameserver, sleep=self._sleep)

    def _exchange(
        self, attempts: Attempts, requests: Sequence[Request], deadline: Deadline
    ) -> Iterator[tuple[int, Any]]:
        """Send requests to several nodes in parallel; ``requests`` may grow during iteration.

        Yields:
            As replies arrive, a request's index and its result, the error that ends it, or a `Moved`, `Retry` or
            `LookUp` if the request is to be repeated. The pause or query before the latter two is made when all replies
            have arrived.
        """
        again: Retry | LookUp | None = None
        # `closing`: if the caller stops early, connections with unread replies are closed now.
        with closing(self._connections.exchange(requests, deadline)) as outcomes:
            for index, outcome in outcomes:
                if isinstance(outcome, (Refused, Unavailable)):
                    # An outcome that is asked for delays the others, whose replies wait in the buffers of sockets.
                    outcome = self._decide(attempts, requests[index], outcome, deadline)
                    if isinstance(outcome, Result):
                        outcome = outcome.value
                    elif isinstance(outcome, LookUp) and self._has_moved(requests[index], outcome):
                        outcome = Moved()
                    elif not isinstance(outcome, PyroCacheError):
                        again = outcome
                yield index, outcome
        if again is not None:
            self._perform(attempts, again, deadline)

    def _has_moved(self, request: Request, action: LookUp) -> bool:
        """Return whether there is a newer view than the one that a refused request was routed by."""
        routed = action.members is not None and request.command.scope is not Scope.NODE
        return routed and self.views.learn(action.members, request.arguments[0])

    def _recover(self, attempts: Attempts, request: Request, problem: Problem, deadline: Deadline) -> Any:
        """Return `_AGAIN` when it is time to send the request again, or its result, if the node remembered that.

        Raise the error if neither is so.
        """
        action = self._decide(attempts, request, problem, deadline)
        if isinstance(action, Result):
            return action.value
        if isinstance(action, PyroCacheError):
            raise action from None
        self._perform(attempts, action, deadline)
        return _AGAIN

    def _decide(
        self, attempts: Attempts, request: Request, problem: Problem, deadline: Deadline
    ) -> Retry | LookUp | Result | PyroCacheError:
        if isinstance(problem, Refused) and problem.refusal.code in COUNTED:
            self.retries[COUNTED[problem.refusal.code]] += 1
        remaining = deadline.remaining()
        elapsed, looked_up_at, view = (
            deadline.seconds - remaining,
            self.views.looked_up_at,
            self._membership.view,
        )
        action: Action | Result = decide(
            attempts, request, problem, self._clock(), remaining, looked_up_at, view, elapsed
        )
        if isinstance(action, Repeat) and isinstance(problem, Unavailable):
            action = self._ask_outcome(attempts, request, problem, action, deadline)
        assert not isinstance(action, Repeat)
        if isinstance(action, PyroCacheError):
            self.retries["unsettled"] += isinstance(action, MayHaveBeenDone)
            name_in_hint(action, self._nameserver)
        elif not isinstance(action, Result):
            self.retries["retries"] += 1
        return action

    def _ask_outcome(
        self, attempts: Attempts, request: Request, problem: Unavailable, action: Action, deadline: Deadline
    ) -> Action | Result:
        """Repeat a change whose reply was lost, until its outcome is known or it is given up."""
        lost = Lost(problem)
        while isinstance(action, Repeat):
            self.retries["repeats"] += 1
            if action.after:
                attempts.rounds += 1
                self._pause(action.after, deadline)
            try:
                return Result(self._connections.repeat(request, action.number, deadline))
            except (Refused, Unavailable) as again:
                remaining = deadline.remaining()
                elapsed, view = deadline.seconds - remaining, self._membership.view
                action = decide_repeat(lost, attempts, request, again, remaining, view, elapsed)
        return action

    def _perform(self, attempts: Attempts, action: Retry | LookUp, deadline: Deadline) -> None:
        """Query the name server if needed, then pause before a request is repeated."""
        attempts.rounds += 1
        if isinstance(action, LookUp):
            self.views.after_failure(deadline, action.members)
            moved = action.unless_moved
            if moved is not None and self._membership.view.member(moved.name) != moved:
                return
        self._pause(action.after, deadline)

    def _pause(self, seconds: float, deadline: Deadline) -> None:
        # With jitter, so that clients that failed together do not retry together.
        self._sleep(min(seconds * (0.5 + self._jitter() / 2), deadline.remaining()))


def may_be_done(outcome: Any) -> bool:
    """Return whether a change with this outcome was executed, or may have been."""
    return not isinstance(outcome, NodeUnavailable) or isinstance(outcome, MayHaveBeenDone)


def not_refused(outcome: Any) -> Any:
    """Return a node's answer or its `NodeUnavailable`. Raises the error if the node refused."""
    if isinstance(outcome, PyroCacheError) and not isinstance(outcome, NodeUnavailable):
        raise outcome
    return outcome
