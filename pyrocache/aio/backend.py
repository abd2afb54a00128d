"""`AsyncBackend`: the interface through which an asyncio client sends every request.

The methods are those of `client.backend.Backend`, as coroutines; that module describes arguments, results and errors.
In place of a connection of its own, a caller that waits for a lease or a lock, or has one, has a `Waiter`.

Thread safety: thread-safe; each coroutine uses the connections of the event loop that runs it.
"""

from __future__ import annotations

# mypy: disable-error-code="no-any-return"
# Replies of nodes are of type Any. They are checked here and nowhere else, see ``client/replies.py``.
from collections.abc import AsyncGenerator, Collection, Sequence
from functools import partial
from typing import Any, Self, TypeAlias, TypeVar

from pyrocache.aio.router import AsyncRouter, GrantMoved, NotServing
from pyrocache.aio.waiter import Waiter
from pyrocache.client import replies
from pyrocache.client.backend import (
    ABANDON_SECONDS,
    Answers,
    Condition,
    Frame,
    LoadTimes,
    NewFrame,
    Seconds,
    Tags,
    Valid,
    caller_of,
    checked,
)
from pyrocache.client.routing.batch import Batch
from pyrocache.client.routing.router import NodeLeft
from pyrocache.client.stats import is_stats
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import ClientConfig
from pyrocache.errors import NodeUnavailable, PyroCacheError, RemoteError, ValueTooLarge
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NameServerDirectory
from pyrocache.protocol import commands
from pyrocache.protocol.commands import Command
from pyrocache.protocol.int_frame import INT_TOO_LARGE, MAX_INT_BYTES
from pyrocache.protocol.limits import NO_VIEW

_R = TypeVar("_R", covariant=True)

AsyncReplies: TypeAlias = AsyncGenerator[tuple[Sequence[int], _R | PyroCacheError], None]
"""Yielded as replies arrive: the indices of some of the keys, and the owner's answer about them or its error. Close it
(`contextlib.aclosing`) if it is not run to its end."""


class AsyncBackend:
    """The commands of ``protocol/commands.py``, on canonical keys and encoded values, sent to the nodes.

    Args:
        router: sends requests; `close` closes it.

    Attributes:
        keeps_alive: an object that must exist as long as the backend is used, such as a `LocalCluster`.
    """

    def __init__(self, router: AsyncRouter) -> None:
        self.keeps_alive: object = None
        self._router = router
        self._call = router.call

    @classmethod
    def of(cls, config: ClientConfig) -> Self:
        """Return the backend of a new client with these settings. Connects on first use."""
        caller = caller_of(config)
        directory = NameServerDirectory(config.nameserver, caller=caller._replace(trusting=True))
        return cls(
            AsyncRouter(
                directory,
                connections=config.connections,
                transport=config.transport,
                nameserver=config.nameserver,
                caller=caller,
            )
        )

    @property
    def retries(self) -> dict[str, int]:
        """Return the counts of what the router did after failures, which can be changed."""
        return self._router.retries

    # One key

    async def get(self, key: bytes, deadline: Deadline, touch_seconds: Seconds = None) -> Frame | None:
        """As `Backend.get`."""
        if touch_seconds is None:
            frame = await self._router.get(key, deadline)
        else:
            frame = await self._call(commands.GET, key, (touch_seconds,), deadline)
        if type(frame) is bytes or frame is None or type(frame) is memoryview:
            return frame
        raise self._wrong(commands.GET, key)

    async def get_with_version(self, key: bytes, deadline: Deadline) -> Sequence[Any] | None:
        """As `Backend.get_with_version`."""
        return await self._ask(replies.is_versioned_or_none, commands.GET_WITH_VERSION, key, (), deadline)

    async def get_with_times(self, key: bytes, deadline: Deadline) -> Sequence[Any] | None:
        """As `Backend.get_with_times`."""
        return await self._ask(replies.is_timed_or_none, commands.GET_WITH_TIMES, key, (), deadline)

    async def get_entry(self, key: bytes, deadline: Deadline) -> Sequence[Any] | None:
        """As `Backend.get_entry`."""
        return await self._ask(replies.is_entry_or_none, commands.GET_ENTRY, key, (), deadline)

    async def contains(self, key: bytes, deadline: Deadline) -> bool:
        """As `Backend.contains`."""
        return await self._ask(replies.is_bool, commands.CONTAINS, key, (), deadline)

    async def ttl(self, key: bytes, deadline: Deadline) -> float | None:
        """As `Backend.ttl`."""
        return await self._ask(replies.is_seconds_or_none, commands.TTL, key, (), deadline)

    async def set(self, key: bytes, frame: NewFrame, ttl: Seconds, deadline: Deadline) -> None:
        """As `Backend.set`."""
        if await self._call(commands.SET, key, (frame, ttl), deadline, len(frame)) is not True:
            raise self._wrong(commands.SET, key)

    async def put(
        self, key: bytes, frame: NewFrame, ttl: Seconds, condition: Condition, tags: Tags, deadline: Deadline
    ) -> bool:
        """As `Backend.put`."""
        command = commands.PUT if condition is None else commands.PUT_IF
        arguments = (frame, ttl, condition, tags)
        return await self._ask(replies.is_bool, command, key, arguments, deadline, len(frame))

    async def setdefault(self, key: bytes, frame: NewFrame, ttl: Seconds, deadline: Deadline) -> Frame | None:
        """As `Backend.setdefault`."""
        valid = replies.is_frame_or_none
        return await self._ask(valid, commands.SETDEFAULT, key, (frame, ttl), deadline, len(frame))

    async def incr(
        self, key: bytes, delta: bytes, default: bytes | None, ttl: Seconds, deadline: Deadline
    ) -> Frame | None:
        """As `Backend.incr`."""
        largest = max(len(delta), len(default or b""))
        if largest > MAX_INT_BYTES:
            raise ValueTooLarge(INT_TOO_LARGE)
        frame = await self._call(commands.INCR, key, (delta, default, ttl), deadline, largest)
        if not replies.is_int_frame_or_none(frame) or (frame is None and default is not None):
            raise self._wrong(commands.INCR, key)
        return frame

    async def touch(self, key: bytes, ttl: Seconds, deadline: Deadline) -> bool:
        """As `Backend.touch`."""
        return await self._ask(replies.is_bool, commands.TOUCH, key, (ttl,), deadline)

    async def delete(self, key: bytes, deadline: Deadline, version: int | None = None) -> bool:
        """As `Backend.delete`."""
        arguments = () if version is None else (version,)
        return await self._ask(replies.is_bool, commands.DELETE, key, arguments, deadline)

    async def pop(self, key: bytes, deadline: Deadline) -> Frame | None:
        """As `Backend.pop`."""
        return await self._ask(replies.is_frame_or_none, commands.POP, key, (), deadline)

    # Many keys

    def get_many(
        self, keys: Sequence[bytes], deadline: Deadline, *, one_reply: bool = False
    ) -> AsyncReplies[Sequence[Frame | None]]:
        """As `Backend.get_many`."""
        return self._router.batch(Batch(commands.GET_MANY, keys), deadline, one_reply=one_reply)

    def get_entries(self, keys: Sequence[bytes], deadline: Deadline) -> AsyncReplies[Sequence[Any]]:
        """As `Backend.get_entries`."""
        return self._router.batch(Batch(commands.GET_ENTRIES, keys), deadline)

    def set_many(
        self,
        keys: Sequence[bytes],
        frames: Sequence[NewFrame],
        ttl: Seconds | list[float],
        tags: Tags,
        deadline: Deadline,
    ) -> AsyncReplies[int]:
        """As `Backend.set_many`."""
        ttls = ttl if isinstance(ttl, list) else None
        arguments = (*(() if ttls is not None else (ttl,)), *(() if tags is None else (tags,)))
        return self._router.batch(Batch(commands.SET_MANY, keys, frames, arguments, ttls), deadline)

    def delete_many(self, keys: Sequence[bytes], deadline: Deadline) -> AsyncReplies[int]:
        """As `Backend.delete_many`."""
        return self._router.batch(Batch(commands.DELETE_MANY, keys), deadline)

    def touch_many(self, keys: Sequence[bytes], ttl: Seconds, deadline: Deadline) -> AsyncReplies[int]:
        """As `Backend.touch_many`."""
        return self._router.batch(Batch(commands.TOUCH_MANY, keys, arguments=(ttl,)), deadline)

    # Leases and locks

    async def lease(
        self,
        key: bytes,
        lease_seconds: float,
        wait: float,
        refresh: int,
        deadline: Deadline,
        waiter: Waiter | None = None,
    ) -> Waiter | None:
        """As `Backend.lease`, with a waiter in place of a connection.

        If the coroutine is cancelled, or an error is raised, nothing is held or awaited any more.
        """

        def arguments(may_wait: bool) -> tuple[Any, ...]:
            return lease_seconds, wait if may_wait else 0.0, refresh

        granted = await self._router.wait(commands.LEASE, key, arguments, deadline, waiter)
        self._check_grant(replies.is_lease_answer, commands.LEASE, granted)
        if granted is not None and granted.answer is not None and granted.answer[0] == "load":
            granted.granted(commands.ABANDON, key, granted.answer[1])
        return granted

    async def fill(
        self, key: bytes, token: int, frame: NewFrame, times: LoadTimes, tags: Tags, deadline: Deadline
    ) -> bool:
        """As `Backend.fill`."""
        arguments = (token, frame, *times, tags)
        return await self._ask(replies.is_bool, commands.FILL, key, arguments, deadline, len(frame))

    async def abandon(self, key: bytes, token: int, waiter: Waiter) -> None:
        """End a lease without storing a value. Takes at most a second and raises nothing but a cancellation."""
        try:
            if not waiter.closed:
                arguments = (NO_VIEW, key, token)
                await self._router.ask_grant(
                    waiter.member, commands.ABANDON, arguments, Deadline(ABANDON_SECONDS)
                )
        except PyroCacheError:
            pass
        finally:
            waiter.drop()

    async def acquire(
        self,
        name: bytes,
        limit: int,
        ttl: float,
        wait: float,
        deadline: Deadline,
        waiter: Waiter | None = None,
    ) -> Waiter | None:
        """As `Backend.acquire`, with a waiter in place of a connection; see `lease`."""

        def arguments(may_wait: bool) -> tuple[Any, ...]:
            return limit, ttl, wait if may_wait else 0.0

        granted = await self._router.wait(commands.ACQUIRE, name, arguments, deadline, waiter)
        self._check_grant(replies.is_token_or_none, commands.ACQUIRE, granted)
        if granted is not None and granted.answer is not None:
            granted.granted(commands.RELEASE, name, granted.answer)
        return granted

    async def renew(
        self, name: bytes, token: int, ttl: float, waiter: Waiter, deadline: Deadline
    ) -> bool | None:
        """Renew a lock. Return whether it is still held; None if the node cannot tell at the moment: ask again.

        Raises nothing but a cancellation.
        """
        if waiter.closed:
            return False
        try:
            arguments = (NO_VIEW, name, token, ttl)
            return await self._router.ask_grant(waiter.member, commands.RENEW, arguments, deadline) is True
        except NotServing:
            return None
        except GrantMoved:
            return False
        except NodeUnavailable:
            return False if waiter.closed else None  # it may only be suspected; the lock has its time to live
        except PyroCacheError:
            return False

    async def release(
        self, name: bytes, token: int, deadline: Deadline, waiter: Waiter | None = None
    ) -> bool:
        """Release a lock and return whether it was held; False when the node does not answer. Ends the waiter."""
        try:
            if waiter is not None:
                if waiter.closed:
                    return False
                try:
                    arguments = (NO_VIEW, name, token)
                    return (
                        await self._router.ask_grant(waiter.member, commands.RELEASE, arguments, deadline)
                        is True
                    )
                except NotServing:
                    pass
            return await self._ask(replies.is_bool, commands.RELEASE, name, (token,), deadline)
        except NodeUnavailable:
            return False
        finally:
            if waiter is not None:
                waiter.drop()  # not before: the node frees the lock then

    async def holders(self, name: bytes, deadline: Deadline) -> int:
        """As `Backend.holders`."""
        return await self._ask(replies.is_count, commands.HOLDERS, name, (), deadline)

    # Namespaces

    async def count(self, prefix: bytes, most: int | None, deadline: Deadline) -> Answers:
        """As `Backend.count`."""
        arguments = (prefix,) if most is None else (prefix, most)
        return await self._ask_all(replies.is_count, commands.COUNT, arguments, deadline)

    async def clear(self, prefix: bytes, deadline: Deadline) -> Answers:
        """As `Backend.clear`."""
        return await self._ask_all(replies.is_count, commands.CLEAR, (prefix,), deadline)

    async def invalidate_tag(self, tag: bytes, deadline: Deadline) -> Answers:
        """As `Backend.invalidate_tag`."""
        return await self._ask_all(replies.is_count, commands.INVALIDATE_TAG, (tag,), deadline)

    async def agreed_view(self, deadline: Deadline) -> tuple[ClusterView, dict[Member, NodeUnavailable]]:
        """As `Backend.agreed_view`."""
        return await self._router.agreed_view(deadline)

    async def scan(
        self,
        member: Member,
        namespace: bytes,
        prefix: bytes,
        cursor: int,
        batch: int,
        deadline: Deadline,
        *,
        tag: bytes | None = None,
        details: bool = False,
    ) -> tuple[int, Sequence[Any]]:
        """As `Backend.scan`."""
        options = (tag, details) if tag is not None or details else ()
        valid = partial(replies.is_page, cursor=cursor, batch=batch, details=details)
        arguments = (namespace, prefix, cursor, batch, *options)
        try:
            reply = await self._router.ask(member, commands.SCAN, arguments, deadline)
        except NodeLeft:
            return 0, ()
        return checked(valid, commands.SCAN, reply, member)

    async def delete_prefix(
        self, member: Member, namespace: bytes, prefix: bytes, cursor: int, deadline: Deadline
    ) -> tuple[int, int]:
        """As `Backend.delete_prefix`."""
        arguments = (namespace, prefix, cursor)
        try:
            reply = await self._router.ask(member, commands.DELETE_PREFIX, arguments, deadline)
        except NodeLeft:
            return 0, 0
        return checked(partial(replies.is_removal, cursor=cursor), commands.DELETE_PREFIX, reply, member)

    # The cluster

    async def nodes(self, deadline: Deadline) -> Sequence[Member]:
        """As `Backend.nodes`."""
        return (await self._router.fresh(deadline)).members

    async def owner(self, key: bytes, deadline: Deadline) -> Member:
        """As `Backend.owner`."""
        return (await self._router.known(deadline)).owner(key)

    async def ping(self, deadline: Deadline, only: Collection[str] | None = None) -> Answers:
        """As `Backend.ping`."""
        return await self._broadcast(replies.is_answer, commands.PING, deadline, only)

    def known_owner(self, key: bytes) -> str:
        """As `Backend.known_owner`."""
        return self._router.known_owner(key)

    async def stats(self, deadline: Deadline) -> Answers:
        """As `Backend.stats`."""
        return await self._broadcast(is_stats, commands.STATS, deadline)

    async def hot_keys(self, prefix: bytes, limit: int, deadline: Deadline) -> Answers:
        """As `Backend.hot_keys`."""
        command, valid = commands.HOT_KEYS, partial(replies.is_hot_keys, limit=limit)
        answers = await self._router.broadcast(command, (prefix, limit), deadline, keep_refusals=True)
        return _all_valid(valid, command, answers)

    async def reset_stats(self, deadline: Deadline) -> Answers:
        """As `Backend.reset_stats`."""
        return await self._broadcast(replies.is_bool, commands.RESET_STATS, deadline)

    def disconnect(self) -> None:
        """Close the connections when the calls under way have ended. Later calls connect again."""
        self._router.disconnect()

    def close(self) -> None:
        """Close the connections in all event loops. Every later call raises `ClientClosed`."""
        self._router.close()

    async def _ask(
        self,
        valid: Valid,
        command: Command,
        key: bytes,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        largest: int = 0,
    ) -> Any:
        """Send a command about one key and return the reply. Raises `RemoteError` if that is not valid."""
        reply = await self._call(command, key, arguments, deadline, largest)
        if not valid(reply):
            raise self._wrong(command, key)
        return reply

    def _wrong(self, command: Command, key: bytes) -> RemoteError:
        return replies.wrong(command, self._router.known_owner(key))

    async def _broadcast(
        self, valid: Valid, command: Command, deadline: Deadline, only: Collection[str] | None = None
    ) -> Answers:
        answers = await self._router.broadcast(command, (), deadline, only)
        return _all_valid(valid, command, answers)

    async def _ask_all(
        self, valid: Valid, command: Command, arguments: tuple[Any, ...], deadline: Deadline
    ) -> Answers:
        _, answers = await self._router.ask_all(command, arguments, deadline)
        return _all_valid(valid, command, answers)

    @staticmethod
    def _check_grant(valid: Valid, command: Command, waiter: Waiter | None) -> None:
        if waiter is not None and not valid(waiter.answer):
            waiter.drop()
            raise replies.wrong(command, waiter.member.name)


def _all_valid(valid: Valid, command: Command, answers: Answers) -> Answers:
    for member, answer in answers:
        if not isinstance(answer, PyroCacheError):
            checked(valid, command, answer, member)
    return answers
