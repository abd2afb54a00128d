"""`Backend`: the interface through which a client sends every request.

Each method is a typed command on encoded keys and value frames (``codec.py``), sent by the router over its connections.
To talk to a node over something else, or for a near cache, start here: any object with the same methods can replace or
wrap a backend. A backend does not decode values and knows neither namespaces nor ``on_error``; `ClientContext` handles
these. To add TLS or another byte stream below the protocol, start at ``net/channel.py``.

Every method takes the deadline of the whole call. It raises `NodeUnavailable` when the owner does not answer,
`RemoteError` when the owner refuses or its reply is not valid, `NoNodes` or `NameServerUnavailable` when no node is
known, and `ClientClosed` after `Backend.close`. A change whose reply was lost, and whose outcome cannot be found out,
is `MayHaveBeenDone`.

Thread safety: thread-safe, except that only one thread at a time may use a `PinnedConnection`.
"""

from __future__ import annotations

# mypy: disable-error-code="no-any-return"
# Replies of nodes are of type Any. They are checked here and nowhere else, see ``replies.py``.
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, Self, TypeAlias, TypeVar

from pyrocache.client import replies
from pyrocache.client.routing.batch import Batch
from pyrocache.client.routing.router import NodeLeft, Router
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import ClientConfig
from pyrocache.errors import NodeUnavailable, PyroCacheError, RemoteError, ValueTooLarge
from pyrocache.late_imports import at_first_use
from pyrocache.net.call_protocol import ANONYMOUS, Caller, knowing
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NameServerDirectory
from pyrocache.net.failures import Refused, Unavailable
from pyrocache.net.pinned import PinnedConnection
from pyrocache.protocol import commands
from pyrocache.protocol.commands import Command
from pyrocache.protocol.int_frame import INT_TOO_LARGE, MAX_INT_BYTES
from pyrocache.protocol.limits import NO_VIEW
from pyrocache.protocol.messages import Pieces
from pyrocache.protocol.refusals import NOT_SERVING, TRY_AGAIN

_R = TypeVar("_R", covariant=True)

ABANDON_SECONDS = 1.0  # independent of the call's deadline, which may have passed while the factory ran

Frame: TypeAlias = bytes | memoryview
"""The value frame in a reply; a `memoryview` is of memory that no other object uses."""

NewFrame: TypeAlias = bytes | Pieces
"""A value frame to be stored."""

Seconds: TypeAlias = float | None
"""A time to live; None for no expiry, negative to keep the entry's (see `KEEP_TTL`)."""

Tags: TypeAlias = Sequence[bytes] | None
"""The tags of an entry; None for no tags, or with a negative TTL to keep the entry's."""

LoadTimes: TypeAlias = tuple[Seconds, float, float]
"""The time to live of a loaded value, the seconds it is kept after that, and the seconds that loading took."""

Condition: TypeAlias = str | int | None
"""The condition of a write: ``"absent"``, ``"present"``, a version, or None for no condition."""

Pinned: TypeAlias = PinnedConnection | None
"""A connection that the caller keeps between calls, or None."""

Replies: TypeAlias = Iterator[tuple[Sequence[int], _R | PyroCacheError]]
"""Yielded as replies arrive: the indices of some of the keys, and the owner's answer about them or its error."""

FrameReplies: TypeAlias = Replies[Sequence[Frame | None]]
"""The value frames of entries, None where there is no entry."""

Answers: TypeAlias = list[tuple[Member, Any]]
"""Each node with its answer, or with a `NodeUnavailable` if it did not answer. See also `Backend.hot_keys`."""

Valid: TypeAlias = Callable[[Any], bool]
"""Whether a reply has the form of one to its command."""


class Backend:
    """The commands of ``protocol/commands.py``, on canonical keys and encoded values, sent to the nodes.

    Args:
        router: sends requests; `close` closes it.

    Attributes:
        keeps_alive: an object that must exist as long as the backend is used, such as a `LocalCluster`.
    """

    def __init__(self, router: Router) -> None:
        self.keeps_alive: object = None
        self._router = router
        self._call = router.call  # bound once: saves attribute look-ups on the path of a get

    @classmethod
    def of(cls, config: ClientConfig) -> Self:
        """Return the backend of a new client with these settings. Connects on first use."""
        caller = caller_of(config)
        directory = NameServerDirectory(config.nameserver, caller=caller._replace(trusting=True))
        settings: dict[str, Any] = {
            "max_connections": config.max_connections,
            "transport": config.transport,
            "nameserver": config.nameserver,
            "caller": caller,
        }
        return cls(Router(directory, **settings))

    @property
    def retries(self) -> dict[str, int]:
        """Return the counts of what the router did after failures, which can be changed."""
        return self._router.retries

    # One key

    def get(self, key: bytes, deadline: Deadline, touch_seconds: Seconds = None) -> Frame | None:
        """Return the value's frame, or None. ``touch_seconds`` sets the time to live of an entry that exists."""
        frame = self._call(commands.GET, key, () if touch_seconds is None else (touch_seconds,), deadline)
        if type(frame) is bytes or frame is None or type(frame) is memoryview:
            return frame
        raise self._wrong(commands.GET, key)

    def get_with_version(self, key: bytes, deadline: Deadline) -> Sequence[Any] | None:
        """Return the frame and the version of an entry, or None."""
        return self._ask(replies.is_versioned_or_none, commands.GET_WITH_VERSION, key, (), deadline)

    def get_with_times(self, key: bytes, deadline: Deadline) -> Sequence[Any] | None:
        """Return the frame, the remaining seconds (None: no expiry) and the seconds that loading took; or None."""
        return self._ask(replies.is_timed_or_none, commands.GET_WITH_TIMES, key, (), deadline)

    def get_entry(self, key: bytes, deadline: Deadline) -> Sequence[Any] | None:
        """Return the frame, the version and the other attributes of an entry, see `CacheNode.get_entry`; or None."""
        return self._ask(replies.is_entry_or_none, commands.GET_ENTRY, key, (), deadline)

    def contains(self, key: bytes, deadline: Deadline) -> bool:
        """Return whether there is an entry."""
        return self._ask(replies.is_bool, commands.CONTAINS, key, (), deadline)

    def ttl(self, key: bytes, deadline: Deadline) -> float | None:
        """Return the seconds until the entry expires, infinity if it never does, None if there is no entry."""
        return self._ask(replies.is_seconds_or_none, commands.TTL, key, (), deadline)

    def set(self, key: bytes, frame: NewFrame, ttl: Seconds, deadline: Deadline) -> None:
        """Store an entry. Raises `ValueTooLarge`."""
        if self._call(commands.SET, key, (frame, ttl), deadline, len(frame)) is not True:
            raise self._wrong(commands.SET, key)

    def put(
        self, key: bytes, frame: NewFrame, ttl: Seconds, condition: Condition, tags: Tags, deadline: Deadline
    ) -> bool:
        """Store an entry if the existing one meets ``condition``, and return whether it was stored."""
        # A write with a condition is not idempotent: sent again, it would fail because of its own first execution.
        command = commands.PUT if condition is None else commands.PUT_IF
        return self._ask(replies.is_bool, command, key, (frame, ttl, condition, tags), deadline, len(frame))

    def setdefault(self, key: bytes, frame: NewFrame, ttl: Seconds, deadline: Deadline) -> Frame | None:
        """Return the frame of the entry, or store ``frame`` and return None."""
        valid = replies.is_frame_or_none
        return self._ask(valid, commands.SETDEFAULT, key, (frame, ttl), deadline, len(frame))

    def incr(
        self, key: bytes, delta: bytes, default: bytes | None, ttl: Seconds, deadline: Deadline
    ) -> Frame | None:
        """Add to an int and return the frame of the sum; None if there is neither an int nor a ``default``.

        Raises `NotAnInt`.
        """
        # An int that is too large is refused before it is sent.
        largest = max(len(delta), len(default or b""))
        if largest > MAX_INT_BYTES:
            raise ValueTooLarge(INT_TOO_LARGE)
        frame = self._call(commands.INCR, key, (delta, default, ttl), deadline, largest)
        if not replies.is_int_frame_or_none(frame) or (frame is None and default is not None):
            raise self._wrong(commands.INCR, key)
        return frame

    def touch(self, key: bytes, ttl: Seconds, deadline: Deadline) -> bool:
        """Set the time to live of an entry and return whether it exists."""
        return self._ask(replies.is_bool, commands.TOUCH, key, (ttl,), deadline)

    def delete(self, key: bytes, deadline: Deadline, version: int | None = None) -> bool:
        """Remove an entry, if it has this version unless that is None. Return whether it was removed."""
        arguments = () if version is None else (version,)
        return self._ask(replies.is_bool, commands.DELETE, key, arguments, deadline)

    def pop(self, key: bytes, deadline: Deadline) -> Frame | None:
        """Remove an entry and return its frame, or None."""
        return self._ask(replies.is_frame_or_none, commands.POP, key, (), deadline)

    # Many keys. All owners are sent their keys in parallel.

    def get_many(self, keys: Sequence[bytes], deadline: Deadline, *, one_reply: bool = False) -> FrameReplies:
        """Yield the frames of the entries, None where there is no entry.

        Args:
            one_reply: send no further request to a node that has answered, even if its answer covers only the first of
                its keys (which happens when the values are large).
        """
        return self._router.batch(Batch(commands.GET_MANY, keys), deadline, one_reply=one_reply)

    def get_entries(self, keys: Sequence[bytes], deadline: Deadline) -> Replies[Sequence[Any]]:
        """Yield what `get_entry` returns for each key."""
        return self._router.batch(Batch(commands.GET_ENTRIES, keys), deadline)

    def set_many(
        self,
        keys: Sequence[bytes],
        frames: Sequence[NewFrame],
        ttl: Seconds | list[float],
        tags: Tags,
        deadline: Deadline,
    ) -> Replies[int]:
        """Store entries and yield how many were stored. Requests are sent during iteration, as in the other methods.

        ``ttl`` may be a list with one for each key.
        """
        ttls = ttl if isinstance(ttl, list) else None
        arguments = (*(() if ttls is not None else (ttl,)), *(() if tags is None else (tags,)))
        return self._router.batch(Batch(commands.SET_MANY, keys, frames, arguments, ttls), deadline)

    def delete_many(self, keys: Sequence[bytes], deadline: Deadline) -> Replies[int]:
        """Remove entries and yield how many existed."""
        return self._router.batch(Batch(commands.DELETE_MANY, keys), deadline)

    def touch_many(self, keys: Sequence[bytes], ttl: Seconds, deadline: Deadline) -> Replies[int]:
        """Set the time to live of entries and yield how many exist."""
        return self._router.batch(Batch(commands.TOUCH_MANY, keys, arguments=(ttl,)), deadline)

    # Leases and locks. A grant ends when the connection that it was granted on is closed, so the caller keeps that
    # connection. It ends with `PinnedConnection.release` (if nothing is granted on it) or `drop` (in any case).

    def lease(
        self, key: bytes, lease_seconds: float, wait: float, refresh: int, deadline: Deadline, pinned: Pinned
    ) -> Pinned:
        """Request a value, or the lease to load it. Wait for another loader for up to ``wait`` seconds.

        Args:
            refresh: when the lease is granted. 0: if there is no value. 1: if no other caller loads it. 2: always.
                3: as if there were no value.
            pinned: from the previous call; the caller must not use it any more.

        Returns:
            The connection; its ``answer`` is None if the wait is over. When too many calls of this client wait for that
            node, the request does not wait: then the connection is released already (``closed``) unless a lease was
            granted. None if no request was sent, because this client has too many pinned connections.
        """
        waited = self._router.pin(commands.LEASE, key, (lease_seconds, wait, refresh), deadline, pinned)
        granted = waited or self._pin_at_once(commands.LEASE, key, deadline, lease_seconds, 0.0, refresh)
        try:  # no call before: a signal handler's exception would leave the grant open
            _check_grant(replies.is_lease_answer, commands.LEASE, granted)
        except BaseException:
            if granted is not None:
                granted.drop()
            raise
        return granted

    def fill(
        self, key: bytes, token: int, frame: NewFrame, times: LoadTimes, tags: Tags, deadline: Deadline
    ) -> bool:
        """Store a value loaded under a lease and return whether it was stored. If so, the lease has ended."""
        arguments = (token, frame, *times, tags)
        return self._ask(replies.is_bool, commands.FILL, key, arguments, deadline, len(frame))

    def abandon(self, key: bytes, token: int, pinned: PinnedConnection) -> None:
        """End a lease without storing a value and give up its connection. Takes at most a second and raises nothing."""
        self._end(pinned, commands.ABANDON, Deadline(ABANDON_SECONDS), key, token)
        pinned.drop()

    def acquire(
        self, name: bytes, limit: int, ttl: float, wait: float, deadline: Deadline, pinned: Pinned
    ) -> Pinned:
        """Request a lock, or a semaphore of ``limit`` permits. Returns as `lease`; the answer is the fencing token."""
        waited = self._router.pin(commands.ACQUIRE, name, (limit, ttl, wait), deadline, pinned)
        granted = waited or self._pin_at_once(commands.ACQUIRE, name, deadline, limit, ttl, 0.0)
        try:
            _check_grant(replies.is_token_or_none, commands.ACQUIRE, granted)
        except BaseException:
            if granted is not None:
                granted.drop()
            raise
        return granted

    def begin_renew(self, name: bytes, token: int, ttl: float, pinned: PinnedConnection) -> bool:
        """Send a renewal without blocking. Return whether it was sent; if not, the connection is closed.

        When `PinnedConnection.fileno` is readable, `finish_renew` can receive the answer.
        """
        return not pinned.closed and pinned.begin(commands.RENEW, (NO_VIEW, name, token, ttl), Deadline(ttl))

    def finish_renew(self, pinned: PinnedConnection, deadline: Deadline) -> bool | None:
        """Receive the answer to a renewal and return whether the lock is still held. Raises nothing.

        Returns None if the node cannot tell at the moment: ask again.
        """
        try:
            return pinned.finish(deadline) is True
        except Refused as refused:
            return None if refused.refusal.code == NOT_SERVING else False
        except Unavailable:
            return False

    def release(self, name: bytes, token: int, deadline: Deadline, pinned: Pinned = None) -> bool:
        """Release a lock and return whether it was held. Gives up the connection, if given.

        A node without a lease cannot tell whether the lock was held to the end, so it is asked until it can. Returns
        False when the node does not answer before the deadline.
        """
        try:
            answer = (
                NOT_SERVING if pinned is None else self._end(pinned, commands.RELEASE, deadline, name, token)
            )
            if answer == NOT_SERVING:
                return self._ask(replies.is_bool, commands.RELEASE, name, (token,), deadline)
            return answer is True
        except NodeUnavailable:
            return False
        finally:
            if pinned is not None:
                pinned.drop()  # not before: the node frees the lock then

    def holders(self, name: bytes, deadline: Deadline) -> int:
        """Return how many callers hold a lock or a semaphore."""
        return self._ask(replies.is_count, commands.HOLDERS, name, (), deadline)

    # Namespaces: every node gets a request. If the view changes meanwhile, a change may have several answers of a node,
    # of which each tells what was removed then.

    def count(self, prefix: bytes, most: int | None, deadline: Deadline) -> Answers:
        """Count the entries of a namespace, up to ``most``."""
        arguments = (prefix,) if most is None else (prefix, most)
        return self._ask_all(replies.is_count, commands.COUNT, arguments, deadline)

    def clear(self, prefix: bytes, deadline: Deadline) -> Answers:
        """Remove the entries of a namespace; each node answers how many there were."""
        return self._ask_all(replies.is_count, commands.CLEAR, (prefix,), deadline)

    def invalidate_tag(self, tag: bytes, deadline: Deadline) -> Answers:
        """Remove the entries with a tag; each node answers how many there were."""
        return self._ask_all(replies.is_count, commands.INVALIDATE_TAG, (tag,), deadline)

    def agreed_view(self, deadline: Deadline) -> tuple[ClusterView, dict[Member, NodeUnavailable]]:
        """Return a view that all answering nodes have used since the call began, and the errors of the other nodes."""
        return self._router.agreed_view(deadline)

    def scan(
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
        """Return the next cursor (0: no more) and a page of a node's keys that begin with ``prefix``.

        A node that is no longer a member has no keys.

        Args:
            tag: return only keys of entries with this tag.
            details: return the key and the other attributes of an entry, see `CacheNode.scan`, in place of each key.
        """
        options = (tag, details) if tag is not None or details else ()
        valid = partial(replies.is_page, cursor=cursor, batch=batch, details=details)
        arguments = (namespace, prefix, cursor, batch, *options)
        try:
            return checked(
                valid, commands.SCAN, self._router.ask(member, commands.SCAN, arguments, deadline), member
            )
        except NodeLeft:
            return 0, ()

    def delete_prefix(
        self, member: Member, namespace: bytes, prefix: bytes, cursor: int, deadline: Deadline
    ) -> tuple[int, int]:
        """Remove some of a node's entries that begin with ``prefix``. Return the next cursor, and how many."""
        try:
            reply = self._router.ask(member, commands.DELETE_PREFIX, (namespace, prefix, cursor), deadline)
            return checked(partial(replies.is_removal, cursor=cursor), commands.DELETE_PREFIX, reply, member)
        except NodeLeft:
            return 0, 0

    # The cluster

    def nodes(self, deadline: Deadline) -> Sequence[Member]:
        """Return the nodes that the name server lists now."""
        return self._router.views.fresh(deadline).members

    def owner(self, key: bytes, deadline: Deadline) -> Member:
        """Return the node that owns a key."""
        return self._router.views.known(deadline).owner(key)

    def ping(self, deadline: Deadline, only: Collection[str] | None = None) -> Answers:
        """Return what every node, or each of these names, says of itself; ``"serving"`` is whether it serves."""
        return self._broadcast(replies.is_answer, commands.PING, (), deadline, only)

    def known_owner(self, key: bytes) -> str:
        """Return the name of the node that owns a key, ``""`` if no node is known yet. Sends nothing."""
        return self._router.known_owner(key)

    def stats(self, deadline: Deadline) -> Answers:
        """Return the statistics of every node, as the node sends them."""
        with at_first_use:
            from pyrocache.client.stats import is_stats  # imported here: making its dataclasses takes 5 ms
        return self._broadcast(is_stats, commands.STATS, (), deadline)

    def hot_keys(self, prefix: bytes, limit: int, deadline: Deadline) -> Answers:
        """Return the most used keys of a namespace at every node, see `CacheNode.hot_keys`.

        The answer of a node that refuses, as one does that is too old to know the command, is its `RemoteError`.
        """
        command, valid = commands.HOT_KEYS, partial(replies.is_hot_keys, limit=limit)
        answers = self._router.broadcast(command, (prefix, limit), deadline, keep_refusals=True)
        return self._all_valid(valid, command, answers)

    def reset_stats(self, deadline: Deadline) -> Answers:
        """Set the counters of every node to 0, except ``loads``."""
        return self._broadcast(replies.is_bool, commands.RESET_STATS, (), deadline)

    def disconnect(self) -> None:
        """Close the idle connections, and the others when they are put back. Later calls connect again."""
        self._router.disconnect()

    def close(self) -> None:
        """Close the connections. Every later call raises `ClientClosed`."""
        self._router.close()

    def _ask(
        self,
        valid: Valid,
        command: Command,
        key: bytes,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        largest: int = 0,
    ) -> Any:
        """Send a command about one key and return the reply. Raises `RemoteError` if that is not valid."""
        reply = self._call(command, key, arguments, deadline, largest)
        if not valid(reply):
            raise self._wrong(command, key)
        return reply

    def _wrong(self, command: Command, key: bytes) -> RemoteError:
        return replies.wrong(command, self._router.known_owner(key))

    def _broadcast(
        self,
        valid: Valid,
        command: Command,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        only: Collection[str] | None = None,
    ) -> Answers:
        """Send a command about the nodes to them and return the answers. Raises `RemoteError` if one is not valid."""
        return self._all_valid(valid, command, self._router.broadcast(command, arguments, deadline, only))

    def _ask_all(
        self, valid: Valid, command: Command, arguments: tuple[Any, ...], deadline: Deadline
    ) -> Answers:
        """Send a command about data to every node. Returns and raises as `_broadcast`."""
        return self._all_valid(valid, command, self._router.ask_all(command, arguments, deadline)[1])

    @staticmethod
    def _all_valid(valid: Valid, command: Command, answers: Answers) -> Answers:
        for member, answer in answers:
            if not isinstance(answer, PyroCacheError):
                checked(valid, command, answer, member)
        return answers

    def _pin_at_once(self, command: Command, key: bytes, deadline: Deadline, *arguments: Any) -> Pinned:
        """Send a command that does not wait at the node, because too many calls of this client wait already."""
        pinned = self._router.pin(command, key, arguments, deadline, may_wait=False)
        if pinned is not None and pinned.answer is None:
            pinned.release()
        return pinned

    def _end(self, pinned: PinnedConnection, command: Command, deadline: Deadline, *arguments: Any) -> Any:
        """End the grant on a connection and give up the connection. Return the answer; None if there is none.

        If the node has no lease, returns `NOT_SERVING`, and the connection, which has the grant, is still the caller's.
        """
        if pinned.closed:
            return None
        try:
            # No view: the grant is at this node, whatever the number of its view is by now.
            try:
                answer = pinned.call(command, (NO_VIEW, *arguments), deadline)
            except Refused as refused:
                if refused.refusal.code == NOT_SERVING:
                    return NOT_SERVING
                if refused.refusal.code != TRY_AGAIN:
                    raise
                # The node stood still, or a connection that was kept for long does not know its clock exactly.
                answer = pinned.settle(command, (NO_VIEW, *arguments), deadline)
        except (Refused, Unavailable) as problem:
            pinned.drop()
            sent = (NO_VIEW, *arguments)
            return self._router.outcome(pinned.member, command, sent, problem, deadline)
        pinned.release()
        return answer


def caller_of(config: ClientConfig) -> Caller:
    """Return what a client with these settings tells of itself, and demands of nodes."""
    if config.secret is None:
        return ANONYMOUS._replace(tls=config.tls)
    return knowing(config.secret, tls=config.tls)


def checked(valid: Valid, command: Command, reply: Any, member: Member) -> Any:
    if not valid(reply):
        raise replies.wrong(command, member.name)
    return reply


def _check_grant(valid: Valid, command: Command, pinned: Pinned) -> None:
    if pinned is not None and not valid(pinned.answer):
        raise replies.wrong(command, pinned.member.name)
