"""`Nodes`: all connections of one client in one event loop, and the calls over them.

To each node there is a lane for calls, and one for calls that wait for somebody else or take long. On the latter the
node answers in any order. Nothing here retries: `aio.router` does, as `client.routing.retry` says. A node that does not
answer is suspected (`net.suspicion`): calls to it fail at once, except for pings, which travel over a new connection.

Thread safety: used by the thread of its event loop, except `close_soon`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from pyrocache.aio.call import Call, CallFailed, result_of
from pyrocache.aio.lane import Lane
from pyrocache.aio.waiter import Waiter
from pyrocache.cluster.routing import Member
from pyrocache.config import TransportChoice
from pyrocache.errors import ClientClosed, ValueTooLarge
from pyrocache.net.call_protocol import Caller
from pyrocache.net.calls import Request
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import BROKEN, Refused, client_closed, suspected, unavailable
from pyrocache.net.suspicion import Suspicions, Verdict
from pyrocache.protocol.commands import PING, Command, Runs
from pyrocache.protocol.handshake import PIPELINED, UNORDERED
from pyrocache.protocol.limits import DEFERRED_CALLS, PIPELINED_CALLS
from pyrocache.protocol.refusals import TRY_AGAIN
from pyrocache.protocol.request_id import SESSION_BYTES

_RESERVED = DEFERRED_CALLS // 4  # for calls that do not wait: a caller that others wait for may need one


class Node:
    """The connections to one node.

    Attributes:
        member: the node.
        suspicion: what is known about whether it answers.
        calls, waits: the two lanes.
    """

    __slots__ = ("calls", "member", "suspicion", "waits")

    def __init__(self, nodes: Nodes, member: Member) -> None:
        self.member = member
        self.suspicion = nodes.suspicions.of(member)
        greeting = nodes.caller.greeting
        pipelined = nodes.caller._replace(greeting=greeting._replace(capabilities=PIPELINED))
        unordered = nodes.caller._replace(greeting=greeting._replace(capabilities=f"{PIPELINED} {UNORDERED}"))
        loop, transport = nodes.loop, nodes.transport
        self.calls = Lane(loop, member, transport, pipelined, nodes.most, PIPELINED_CALLS)
        self.waits = Lane(loop, member, transport, unordered, 1, DEFERRED_CALLS)

    def failed(self, operation: str, deadline: Deadline, failed: CallFailed) -> BaseException:
        """Return what a call that failed raises. Doubt a node that hangs."""
        cause = failed.cause
        if isinstance(cause, (ValueTooLarge, ClientClosed)) or not isinstance(cause, (*BROKEN, RuntimeError)):
            return cause
        if isinstance(cause, TimeoutError):
            self.suspicion.timed_out(deadline.seconds)
            self.calls.retire()  # they may hang as well; a ping over a new connection tells
        return unavailable(self.member, operation, deadline, cause, sent=failed.sent, number=failed.number)


class Nodes:
    """The connections of one client in one event loop.

    Args:
        loop: the running event loop.
        most: the most connections to a node for calls.
        transport: whether nodes on this host are reached over their Unix sockets.
        suspicions: which nodes seem to hang.
        caller: describes the caller; its session is made here.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        most: int,
        transport: TransportChoice,
        suspicions: Suspicions,
        caller: Caller,
    ) -> None:
        self.loop = loop
        self.most = most
        self.transport = transport
        self.suspicions = suspicions
        self.caller = caller._replace(greeting=caller.greeting._replace(session=os.urandom(SESSION_BYTES)))
        self._nodes: dict[str, Node] = {}
        self._former: list[Node] = []  # those whose calls have not ended when they moved
        self._closed = False

    def node(self, member: Member) -> Node:
        """Return the connections to a node. Raises `ClientClosed` after `close`."""
        node = self._nodes.get(member.name)
        if node is None or (node.member is not member and node.member != member):
            if self._closed:
                raise client_closed()
            if node is not None:
                node.calls.leave()
                node.waits.leave()
                self._former = [
                    one for one in [*self._former, node] if one.calls.connected or one.waits.connected
                ]
            node = self._nodes[member.name] = Node(self, member)
        return node

    def get(self, member: Member, view: int, key: bytes, deadline: Deadline) -> asyncio.Future[Any] | None:
        """Begin to read a value. Return the future of its frame; None if the node is in doubt: use `call`.

        `failed` returns what to raise for a `CallFailed` of the future.
        """
        node = self._nodes.get(member.name)
        if node is None or node.member is not member:
            node = self.node(member)
        return None if node.suspicion.doubted else node.calls.get(view, key, deadline)

    async def call(self, request: Request, deadline: Deadline, repeats: int = 0) -> Any:
        """Make a call and return its result.

        Args:
            repeats: the number of the request whose outcome is asked for; 0 to make a new one.

        Raises:
            Refused: the node refused.
            Unavailable: the node could not be reached, or did not answer; or nothing was sent, as it seems to hang.
            ValueTooLarge: the node does not accept the value; nothing was sent.
        """
        member, command, arguments, largest = request
        node = self.node(member)
        if node.suspicion.doubted and command is not PING:
            await self._ping(node, command, deadline)
        lane = node.calls if command.runs is Runs.INLINE else node.waits
        future = self.loop.create_future()
        lane.submit(Call(command.name, arguments, deadline, future, largest, repeats))
        try:
            return await result_of(future)
        except Refused as refused:
            if refused.refusal.code == TRY_AGAIN:  # the node's clock may have to be asked again
                lane.retire()
            raise
        except CallFailed as failed:
            raise node.failed(command.title, deadline, failed) from None

    def failed(
        self, member: Member, command: Command, deadline: Deadline, failed: CallFailed
    ) -> BaseException:
        """Return what a read that began with `get` raises after a failure."""
        known = self._nodes.get(member.name)
        node = known if known is not None and known.member == member else Node(self, member)
        return node.failed(command.title, deadline, failed)

    async def wait(
        self,
        member: Member,
        command: Command,
        arguments: Callable[[bool], tuple[Any, ...]],
        deadline: Deadline,
        waiter: Waiter | None,
    ) -> Waiter | None:
        """Make a call that may wait for somebody else. Return the waiter, which has the answer.

        Args:
            arguments: returns the arguments; takes whether the node may wait.
            waiter: of an earlier call, perhaps to another node. Do not use it afterwards.

        Returns:
            None, without a request, if too many calls wait.

        Raises:
            Refused, Unavailable: as `call`; the waiter is dropped.
        """
        node = self.node(member)
        if waiter is not None and (waiter.closed or waiter.member != member):
            waiter.drop()
            waiter = None
        try:
            if node.suspicion.doubted:
                await self._ping(node, command, deadline)
            if waiter is None:
                waiter = Waiter(await node.waits.connection(deadline))
            connection = waiter.connection
            under_way = len(connection.calls)
            if under_way >= DEFERRED_CALLS or (under_way and not connection.pipelined):
                waiter.drop()
                return None
            sent = arguments(connection.unordered and under_way < DEFERRED_CALLS - _RESERVED)
            if connection.unordered:
                sent = (*sent, waiter.number)
            future = self.loop.create_future()
            connection.send(Call(command.name, sent, deadline, future))
            self.loop.call_soon(connection.flush)
            waiter.answer = await future
        except CallFailed as failed:
            if waiter is not None:
                waiter.drop()
            raise node.failed(command.title, deadline, failed) from None
        except BaseException:
            if waiter is not None:
                waiter.drop()
            raise
        return waiter

    async def _ping(self, node: Node, command: Command, deadline: Deadline) -> None:
        """Ping a node in doubt before a command is sent. Raises `Unavailable` if the node is suspected."""
        suspicion = node.suspicion
        verdict = suspicion.ask(deadline)
        if verdict is Verdict.SEND:
            return
        if verdict is Verdict.PING:
            seconds, since = suspicion.patience(deadline), time.monotonic()
            try:
                await node.calls.connection(Deadline(seconds))
                future = self.loop.create_future()
                node.calls.submit(Call(PING.name, (), Deadline(min(seconds, deadline.remaining())), future))
                await future
            except (Refused, CallFailed) as error:
                if not isinstance(error, CallFailed) or not isinstance(error.cause, TimeoutError):
                    suspicion.answered()  # the request itself will tell
                    return
                node.calls.retire()
                if not suspicion.silent(since):
                    return
            else:
                suspicion.answered(since)
                return
        raise suspected(node.member, command.title, suspicion)

    @property
    def open_connections(self) -> int:
        """Return the number of open connections. Any thread may ask."""
        nodes = [*self._nodes.copy().values(), *self._former]
        return sum(node.calls.open_connections + node.waits.open_connections for node in nodes)

    def disconnect(self) -> None:
        """Close each connection when its calls and its grants have ended. Later calls connect again."""
        for node in self._nodes.values():
            node.calls.retire()
            node.waits.retire()

    def close(self) -> None:
        """Close the connections. Calls under way fail with `ClientClosed`."""
        self._closed = True
        nodes, self._nodes = [*self._nodes.values(), *self._former], {}
        for node in nodes:
            node.calls.close()
            node.waits.close()

    def abandon(self) -> None:
        """Close the descriptors only, in a forked child or when the event loop has ended."""
        for node in (*self._nodes.values(), *self._former):
            node.calls.abandon()
            node.waits.abandon()
