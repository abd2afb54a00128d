"""`AsyncRouter`: sends each request to the node that owns its keys, and repeats it as the retry policy says.

What `client.routing.router.Router` is to the blocking client, for coroutines: the view, the policy (`retry.decide`) and
the division of batches are the same. Views and suspicions are shared by all event loops; connections belong to one.

Thread safety: thread-safe; each coroutine uses the connections of the loop that runs it.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple, TypeVar

from xxhash import xxh3_64_intdigest

from pyrocache.aio.call import CallFailed, result_of
from pyrocache.aio.lookups import LookUps
from pyrocache.aio.nodes import Nodes
from pyrocache.aio.waiter import Waiter
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
    error_of,
)
from pyrocache.client.routing.router import COUNTED, NodeLeft, Result, may_be_done, not_refused
from pyrocache.client.routing.views import Views
from pyrocache.cluster.routing import PARTITIONS, ClusterView, Member
from pyrocache.cluster.views import EMPTY
from pyrocache.config import TransportChoice
from pyrocache.errors import MayHaveBeenDone, NodeUnavailable, PyroCacheError, ValueTooLarge
from pyrocache.net.call_protocol import Caller
from pyrocache.net.calls import Connections, Request
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import Directory, WatchedLookUp
from pyrocache.net.failures import Refused, Unavailable, client_closed, name_in_hint
from pyrocache.net.membership import Membership, serving_members
from pyrocache.net.suspicion import Suspicions
from pyrocache.protocol.commands import CHECK_VIEW, GET, Command, Scope
from pyrocache.protocol.refusals import NOT_SERVING, STALE_VIEW, TRY_AGAIN
from pyrocache.protocol.request_id import SESSION_BYTES
from pyrocache.runtime import at_fork

_T = TypeVar("_T")

_AGAIN: Any = object()


class NotServing(NodeUnavailable):
    """The node cannot tell at the moment whether something is held."""


class GrantMoved(NodeUnavailable):
    """What was granted is not at this node any more: the key belongs to another one."""


class _Here(NamedTuple):
    """What belongs to one event loop."""

    nodes: Nodes
    lookups: LookUps


class AsyncRouter:
    """Routes the requests of one client.

    Args:
        directory: the name server.
        connections: the most connections to a node for calls, in each event loop.
        transport: whether nodes on this host are reached over their Unix sockets.
        nameserver: the address of the name server, for the hints in errors.
        caller: what this client knows and demands.

    Attributes:
        views: the cluster view and its updates.
        retries: as for `Router`.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        connections: int,
        transport: TransportChoice,
        nameserver: str,
        caller: Caller,
    ) -> None:
        self.retries = dict.fromkeys(("retries", *COUNTED.values(), "repeats", "unsettled"), 0)
        self._directory = directory
        self._most = connections
        self._transport = transport
        self._nameserver = nameserver
        self._caller = caller
        self._connect(EMPTY)
        at_fork.in_child(self._reset_after_fork)

    def _connect(self, view: ClusterView) -> None:
        self._lock = threading.Lock()  # guards: the set of _here
        self._here: dict[asyncio.AbstractEventLoop, _Here] = {}
        self._last: tuple[asyncio.AbstractEventLoop | None, _Here | None] = None, None
        self._suspicions = Suspicions()
        nameserver = WatchedLookUp(self._directory)
        session = os.urandom(SESSION_BYTES)
        caller = self._caller._replace(greeting=self._caller.greeting._replace(session=session))
        # For the one case that asks nodes in a look-up, when a cluster was replaced.
        pings = Connections(1, self._transport, None, caller)
        self._membership = Membership(nameserver, partial(serving_members, pings))
        self._membership.view = view
        self.views = Views(self._membership, nameserver, time.monotonic, self._nameserver)

    # One key

    async def call(
        self, command: Command, key: bytes, arguments: tuple[Any, ...], deadline: Deadline, largest: int = 0
    ) -> Any:
        """Send a command about one key to the node that owns it, and return the result. As `Router.call`."""
        attempts = Attempts()
        while True:
            view = await self.known(deadline)
            request = Request(view.owner(key), command, (view.number, key, *arguments), largest)
            try:
                return await self._nodes().call(request, deadline)
            except (Refused, Unavailable) as problem:
                outcome = await self._recover(attempts, request, problem, deadline)
                if outcome is not _AGAIN:
                    return outcome

    async def get(self, key: bytes, deadline: Deadline) -> Any:
        """Return the value frame of a key, or None. Reads of one turn of the loop travel together. As `call`."""
        view = self._membership.view
        owner = view.owners[xxh3_64_intdigest(key) % PARTITIONS]
        if owner < 0:
            view = await self.known(deadline)
            member = view.owner(key)
        else:
            member = view.members[owner]
        future = self._nodes().get(member, view.number, key, deadline)
        if future is None:
            return await self.call(GET, key, (), deadline)
        problem: Problem
        try:
            return await result_of(future)
        except CallFailed as failed:
            error = self._nodes().failed(member, GET, deadline, failed)
            if not isinstance(error, Unavailable):
                raise error from None
            problem = error
        except Refused as refused:
            problem = refused
        request = Request(member, GET, (view.number, key))
        outcome = await self._recover(Attempts(), request, problem, deadline)
        return await self.call(GET, key, (), deadline) if outcome is _AGAIN else outcome

    async def wait(
        self,
        command: Command,
        key: bytes,
        arguments: Callable[[bool], tuple[Any, ...]],
        deadline: Deadline,
        waiter: Waiter | None = None,
    ) -> Waiter | None:
        """Send a command that may wait for another caller to the owner of ``key``. Return the waiter with the answer.

        Safe to retry, because the waiter of a request that failed is withdrawn.

        Args:
            arguments: returns the arguments after the key; takes whether the node may wait.
            waiter: from an earlier call; the caller must not use it any more.

        Returns:
            None if too many calls wait.

        Raises:
            NodeUnavailable, RemoteError: as `call`.
        """
        attempts = Attempts()
        while True:
            view = await self.known(deadline)
            member = view.owner(key)

            def sent(may_wait: bool, number: int = view.number) -> tuple[Any, ...]:
                return number, key, *arguments(may_wait)

            try:
                return await self._nodes().wait(member, command, sent, deadline, waiter)
            except (Refused, Unavailable) as problem:
                waiter = None
                await self._recover(attempts, Request(member, command, sent(False)), problem, deadline)

    async def ask_grant(
        self, member: Member, command: Command, arguments: tuple[Any, ...], deadline: Deadline
    ) -> Any:
        """Send a command about a grant of a node to that node, once. Return the result; None if it is not known.

        Raises:
            NotServing: the node cannot tell at the moment.
            GrantMoved: the key belongs to another node by now.
            PyroCacheError: the node refused, or is unavailable.
        """
        # The node may be at another address by now; another start of it knows of no grant.
        found = self._membership.view.member(member.name)
        if found is None or found.identity != member.identity:
            raise GrantMoved(f"{member.name} has ended, with what it had granted.")
        request = Request(found, command, arguments)
        try:
            return await self._nodes().call(request, deadline)
        except (Refused, Unavailable) as problem:
            if isinstance(problem, Refused) and problem.refusal.code in (NOT_SERVING, TRY_AGAIN):
                raise NotServing(str(problem)) from None
            if isinstance(problem, Refused) and problem.refusal.code == STALE_VIEW:
                raise GrantMoved(str(problem)) from None
            action = await self._decide(Attempts(), request, problem, deadline)
            if isinstance(action, Result):
                return action.value
            raise error_of(request, problem) from None

    # Many keys, all nodes

    async def batch(
        self, batch: Batch, deadline: Deadline, *, one_reply: bool = False
    ) -> AsyncGenerator[tuple[Sequence[int], Any | PyroCacheError], None]:
        """Send a command about many keys to their owners. Arguments and results as `Router.batch`."""
        attempts = Attempts()
        pending: Sequence[int] = range(len(batch.keys))
        while pending:
            round = Round(batch, await self.known(deadline), pending)
            async with aclosing(self._exchange(attempts, round.requests, deadline)) as outcomes:
                async for index, outcome in outcomes:
                    member, chunk = round.requests[index].member, round.chunks[index]
                    if isinstance(outcome, Moved):
                        round.left_of(member)
                        round.route(await self.known(deadline), chunk)
                        continue
                    for answer in round.take(member, chunk, outcome, one_reply=one_reply):
                        yield answer
            pending = round.unanswered()

    async def broadcast(
        self,
        command: Command,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        only: Collection[str] | None = None,
        *,
        keep_refusals: bool = False,
    ) -> list[tuple[Member, Any]]:
        """Send a command that is not about data to every node. Arguments and results as `Router.broadcast`."""
        members = (await self.fresh(deadline)).members
        if only is not None:
            members = tuple(member for member in members if member.name in only)
        answers: dict[str, tuple[Member, Any]] = {}
        attempts = Attempts()
        while members:
            requests = [Request(member, command, arguments) for member in members]
            names: list[str] = []
            async with aclosing(self._exchange(attempts, requests, deadline)) as outcomes:
                async for index, outcome in outcomes:
                    member = members[index]
                    if isinstance(outcome, (Moved, Retry, LookUp)):
                        names.append(member.name)
                    else:
                        answers[member.name] = member, outcome if keep_refusals else not_refused(outcome)
            members = tuple(moved for name in names if (moved := self._membership.view.member(name)))
        return sorted(answers.values(), key=lambda answer: answer[0].number)

    async def ask_all(
        self, command: Command, arguments: tuple[Any, ...], deadline: Deadline
    ) -> tuple[ClusterView, list[tuple[Member, Any]]]:
        """Send a command about data, with the number of one view, to all its members. As `Router.ask_all`."""
        view = await self.fresh(deadline)
        attempts = Attempts()
        earlier: list[tuple[Member, Any]] = []
        answers: dict[str, tuple[Member, Any]] = {}
        while missing := [member for member in view.members if member.name not in answers]:
            requests = [Request(member, command, (view.number, *arguments)) for member in missing]
            async with aclosing(self._exchange(attempts, requests, deadline)) as outcomes:
                async for index, outcome in outcomes:
                    if not isinstance(outcome, (Moved, Retry, LookUp)):
                        answers[missing[index].name] = missing[index], not_refused(outcome)
            if len(answers) < len(view) and self._membership.view != view:
                if command.mutates:
                    earlier += [answer for answer in answers.values() if may_be_done(answer[1])]
                answers.clear()
                view = await self.known(deadline)
        return view, earlier + sorted(answers.values(), key=lambda answer: answer[0].number)

    async def agreed_view(self, deadline: Deadline) -> tuple[ClusterView, dict[Member, NodeUnavailable]]:
        """Return a view that all answering nodes have used since the call began. As `Router.agreed_view`."""
        view, answers = await self.ask_all(CHECK_VIEW, ([],), deadline)
        unreachable: dict[Member, NodeUnavailable] = {}
        for member, outcome in answers:
            if isinstance(outcome, NodeUnavailable):
                unreachable[member] = outcome
            elif outcome != []:
                raise replies.wrong(CHECK_VIEW, member.name)
        return view, unreachable

    async def ask(
        self, member: Member, command: Command, arguments: tuple[Any, ...], deadline: Deadline
    ) -> Any:
        """Send a command about the data of one node, and return the result. As `Router.ask`."""
        attempts = Attempts()
        while True:
            view = await self.known(deadline)
            found = view.member(member.name)
            if found is None:
                raise NodeLeft(
                    f"{member.name} has left, with what it held; {command.name} needs no answer from it."
                )
            request = Request(found, command, (view.number, *arguments))
            try:
                return await self._nodes().call(request, deadline)
            except (Refused, Unavailable) as problem:
                outcome = await self._recover(attempts, request, problem, deadline)
                if outcome is not _AGAIN:
                    return outcome

    # Views

    async def known(self, deadline: Deadline) -> ClusterView:
        """Return the latest view. Query the name server if no node is known. Raises as `Views.known`."""
        view = self._membership.view
        if view.members:
            return view
        return await self._look_up("known", partial(self.views.known, deadline))

    async def fresh(self, deadline: Deadline) -> ClusterView:
        """Return the view after a query of the name server. Raises as `Views.fresh`."""
        return await self._look_up("fresh", partial(self.views.fresh, deadline))

    def known_owner(self, key: bytes) -> str:
        """Return the name of the node that owns ``key`` by the latest view, ``""`` if no node is known yet."""
        view = self._membership.view
        return view.owner(key).name if view.members else ""

    async def _look_up(self, kind: str, query: Callable[[], _T]) -> _T:
        if self.views.closed:
            raise client_closed()
        return await self._of_loop().lookups.run(kind, query)

    # Life

    def close(self) -> None:
        """Close the connections in all event loops; every later call raises `ClientClosed`."""
        self.views.closed = True
        self._membership.view = EMPTY
        self._everywhere("close")
        with self._lock:
            self._here, self._last = {}, (None, None)

    def disconnect(self) -> None:
        """Close the connections in all event loops when the calls under way have ended. Keeps the view."""
        self._everywhere("disconnect")

    def _everywhere(self, method: str) -> None:
        """Call a method of the `Nodes` of each event loop, in its thread."""
        for loop, here in list(self._here.items()):
            nodes = here.nodes
            if _runs_here(loop):
                getattr(nodes, method)()
                continue
            try:
                if loop.is_running():
                    loop.call_soon_threadsafe(getattr(nodes, method))
                    continue
            except RuntimeError:  # it has ended meanwhile
                pass
            if not loop.is_closed():
                getattr(nodes, method)()  # no thread runs it
                continue
            nodes.abandon()
            with self._lock:
                self._here.pop(loop, None)
                self._last = None, None

    def _reset_after_fork(self) -> None:
        """Begin anew in a forked child, which must not use the connections of its parent."""
        for here in self._here.values():
            here.nodes.abandon()
        self._connect(self._membership.view)

    def _nodes(self) -> Nodes:
        """Return the connections of the running event loop."""
        loop, here = self._last
        if here is not None and loop is asyncio.get_running_loop():
            return here.nodes
        return self._of_loop().nodes

    def _of_loop(self) -> _Here:
        """Return what belongs to the running event loop. Raises `ClientClosed` after `close`."""
        loop = asyncio.get_running_loop()
        with self._lock:
            here = self._here.get(loop)
            if here is None:
                if self.views.closed:
                    raise client_closed()
                for ended in [other for other in self._here if other.is_closed()]:
                    self._here.pop(ended).nodes.abandon()
                nodes = Nodes(loop, self._most, self._transport, self._suspicions, self._caller)
                here = self._here[loop] = _Here(nodes, LookUps(loop))
            self._last = loop, here
        return here

    # Failures

    async def _exchange(
        self, attempts: Attempts, requests: Sequence[Request], deadline: Deadline
    ) -> AsyncGenerator[tuple[int, Any], None]:
        """Send requests to several nodes in parallel; ``requests`` may grow during iteration. As `Router._exchange`."""
        nodes = self._nodes()
        done: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()
        tasks: dict[asyncio.Task[Any], int] = {}
        begun = 0
        again: Retry | LookUp | None = None
        try:
            while begun < len(requests) or tasks:
                while begun < len(requests):
                    task = asyncio.ensure_future(nodes.call(requests[begun], deadline))
                    task.add_done_callback(done.put_nowait)
                    tasks[task] = begun
                    begun += 1
                task = await done.get()
                index = tasks.pop(task)
                outcome = await self._outcome_of(attempts, requests[index], task, deadline)
                if isinstance(outcome, (Retry, LookUp)):
                    again = outcome
                yield index, outcome
        finally:
            for task in tasks:  # their replies are dropped
                task.cancel()
        if again is not None:
            await self._perform(attempts, again, deadline)

    async def _outcome_of(
        self, attempts: Attempts, request: Request, task: asyncio.Task[Any], deadline: Deadline
    ) -> Any:
        """Return the result of a task, the error that ends its request, or what to do before it is repeated."""
        try:
            return task.result()
        except ValueTooLarge as error:
            return error
        except (Refused, Unavailable) as problem:
            action = await self._decide(attempts, request, problem, deadline)
        if isinstance(action, Result):
            return action.value
        if isinstance(action, LookUp) and self._has_moved(request, action):
            return Moved()
        return action

    def _has_moved(self, request: Request, action: LookUp) -> bool:
        routed = action.members is not None and request.command.scope is not Scope.NODE
        return routed and self.views.learn(action.members, request.arguments[0])

    async def _recover(
        self, attempts: Attempts, request: Request, problem: Problem, deadline: Deadline
    ) -> Any:
        """Return `_AGAIN` when it is time to send the request again, or its result if the node remembered that."""
        action = await self._decide(attempts, request, problem, deadline)
        if isinstance(action, Result):
            return action.value
        if isinstance(action, PyroCacheError):
            raise action from None
        await self._perform(attempts, action, deadline)
        return _AGAIN

    async def _decide(
        self, attempts: Attempts, request: Request, problem: Problem, deadline: Deadline
    ) -> Retry | LookUp | Result | PyroCacheError:
        if isinstance(problem, Refused) and problem.refusal.code in COUNTED:
            self.retries[COUNTED[problem.refusal.code]] += 1
        remaining = deadline.remaining()
        elapsed, view = deadline.seconds - remaining, self._membership.view
        looked_up_at = self.views.looked_up_at
        action: Action | Result = decide(
            attempts, request, problem, time.monotonic(), remaining, looked_up_at, view, elapsed
        )
        if isinstance(action, Repeat) and isinstance(problem, Unavailable):
            action = await self._ask_outcome(attempts, request, problem, action, deadline)
        assert not isinstance(action, Repeat)
        if isinstance(action, PyroCacheError):
            self.retries["unsettled"] += isinstance(action, MayHaveBeenDone)
            name_in_hint(action, self._nameserver)
        elif not isinstance(action, Result):
            self.retries["retries"] += 1
        return action

    async def _ask_outcome(
        self, attempts: Attempts, request: Request, problem: Unavailable, action: Action, deadline: Deadline
    ) -> Action | Result:
        """Repeat a change whose reply was lost, until its outcome is known or it is given up."""
        lost = Lost(problem)
        while isinstance(action, Repeat):
            self.retries["repeats"] += 1
            if action.after:
                attempts.rounds += 1
                await _pause(action.after, deadline)
            try:
                return Result(await self._nodes().call(request, deadline, repeats=action.number))
            except (Refused, Unavailable) as again:
                remaining = deadline.remaining()
                elapsed, view = deadline.seconds - remaining, self._membership.view
                action = decide_repeat(lost, attempts, request, again, remaining, view, elapsed)
        return action

    async def _perform(self, attempts: Attempts, action: Retry | LookUp, deadline: Deadline) -> None:
        """Query the name server if needed, then pause before a request is repeated."""
        attempts.rounds += 1
        if isinstance(action, LookUp):
            if not self.views.offer(action.members) and self.views.may_look_up():
                await self._look_up("after a failure", partial(self.views.after_failure, deadline))
            moved = action.unless_moved
            if moved is not None and self._membership.view.member(moved.name) != moved:
                return
        await _pause(action.after, deadline)


async def _pause(seconds: float, deadline: Deadline) -> None:
    # With jitter, so that callers that failed together do not retry together.
    await asyncio.sleep(min(seconds * (0.5 + random.random() / 2), deadline.remaining()))


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
