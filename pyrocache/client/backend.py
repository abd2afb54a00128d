"""The door: every request of a client leaves through a `Backend`, as a typed command on encoded keys and frames.

`Backend` says what the client and its features may ask for. `ClusterBackend` implements it with the router and its
connections. Whatever wraps a `Backend` and implements the same methods can stand in its place, for instance a near
cache. A backend knows no values, no namespaces and no ``on_error``: that is `ClientContext`'s.

Every method takes the deadline of the whole call and raises `NodeUnavailable` when the owner does not answer,
`RemoteError` when it refuses, `NoNodes` or `NameServerUnavailable` when no node is known, and `ClientClosed`. Which
commands are retried after a lost reply is in ``protocol/commands.py``.

Thread-safe, except that one thread at a time uses a `PinnedConnection`.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from enum import Enum
from types import EllipsisType
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from pyrocache.client.codec import decode_value, encode_value
from pyrocache.client.keys.encoding import encode_key, namespace_prefix
from pyrocache.client.keys.format import utf8
from pyrocache.client.routing.router import Router
from pyrocache.client.stats import ClientStats
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import ClientConfig, ttl_to_seconds
from pyrocache.errors import ClientClosed, CorruptValue, NodeUnavailable, PyroCacheError
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NameServerDirectory
from pyrocache.net.failures import Unavailable
from pyrocache.net.pinned import PinnedConnection as Held
from pyrocache.protocol.limits import KEEP_TTL, MAX_TAG_BYTES, MAX_TAGS
from pyrocache.protocol.messages import Pieces

log = logging.getLogger("pyrocache.client")

_R = TypeVar("_R")

Frame: TypeAlias = bytes | memoryview | Pieces
"""An encoded value. Replies hold `bytes`, or a `memoryview` of memory that nobody else uses."""

Replies: TypeAlias = Iterator[tuple[Sequence[int], _R | PyroCacheError]]
"""As the replies come: the indices of some of the keys, and what the owner answered about them, or why it did not."""

Answers: TypeAlias = list[tuple[Member, Any]]
"""Each node with its answer, or the `NodeUnavailable` that says why there is none."""


class Backend(Protocol):
    """The commands of ``protocol/commands.py``, on canonical keys and encoded values.

    ``ttl`` is in seconds, None for no expiry, `KEEP_TTL` for the one that the entry has.
    """

    # One key

    def get(self, key: bytes, deadline: Deadline, touch_seconds: float | None = None) -> Frame | None:
        """Return the value's frame, or None. ``touch_seconds`` sets the time to live of an entry that exists."""
        ...

    def get_with_version(self, key: bytes, deadline: Deadline) -> Sequence[Any] | None:
        """Return the frame and the version of an entry, or None."""
        ...

    def get_with_times(self, key: bytes, deadline: Deadline) -> Sequence[Any] | None:
        """Return the frame, the remaining seconds (None: no expiry) and the seconds that loading took; or None."""
        ...

    def contains(self, key: bytes, deadline: Deadline) -> bool:
        """Return whether there is an entry."""
        ...

    def ttl(self, key: bytes, deadline: Deadline) -> float | None:
        """Return the seconds until the entry expires, infinity if it never does, None if there is no entry."""
        ...

    def set(self, key: bytes, frame: Frame, ttl: float | None, deadline: Deadline) -> None:
        """Store an entry. Raises `ValueTooLarge`."""
        ...

    def put(
        self,
        key: bytes,
        frame: Frame,
        ttl: float | None,
        condition: str | int | None,
        tags: Sequence[bytes] | None,
        deadline: Deadline,
    ) -> bool:
        """Store an entry if the one that exists is as ``condition`` says, and return whether it was stored.

        Args:
            condition: ``"absent"``, ``"present"``, a version, or None for no condition.
            tags: of the entry; None for none, or with `KEEP_TTL` for those that it has.
        """
        ...

    def setdefault(self, key: bytes, frame: Frame, ttl: float | None, deadline: Deadline) -> Frame | None:
        """Return the frame of the entry, or store ``frame`` and return None."""
        ...

    def incr(
        self, key: bytes, delta: bytes, default: bytes, ttl: float | None, deadline: Deadline
    ) -> Frame | None:
        """Add to an int and return the frame of the sum. Raises `NotAnInt`."""
        ...

    def touch(self, key: bytes, ttl: float | None, deadline: Deadline) -> bool:
        """Set the time to live of an entry and return whether it exists."""
        ...

    def delete(self, key: bytes, deadline: Deadline) -> bool:
        """Remove an entry and return whether it existed."""
        ...

    def pop(self, key: bytes, deadline: Deadline) -> Frame | None:
        """Remove an entry and return its frame, or None."""
        ...

    # Many keys. Each owner is asked about its own keys, all owners at once.

    def get_many(
        self, keys: Sequence[bytes], deadline: Deadline, *, one_reply: bool = False
    ) -> Replies[Sequence[Frame | None]]:
        """Yield the frames of the entries, None where there is no entry.

        Args:
            one_reply: ask no node again that has answered, although its answer was about the first of its keys only,
                as it is when the values are large.
        """
        ...

    def set_many(
        self,
        keys: Sequence[bytes],
        frames: Sequence[Frame],
        ttl: float | None,
        tags: Sequence[bytes] | None,
        deadline: Deadline,
    ) -> Replies[int]:
        """Store entries and yield how many were stored. Runs while it is iterated, as do the others."""
        ...

    def delete_many(self, keys: Sequence[bytes], deadline: Deadline) -> Replies[int]:
        """Remove entries and yield how many existed."""
        ...

    def touch_many(self, keys: Sequence[bytes], ttl: float | None, deadline: Deadline) -> Replies[int]:
        """Set the time to live of entries and yield how many exist."""
        ...

    # Leases and locks. What a node grants ends when the connection that it was granted on is closed, so that one stays
    # with the caller, who ends with `PinnedConnection.release` (nothing is granted on it) or `drop` (whatever is).

    def lease(
        self,
        key: bytes,
        lease_seconds: float,
        wait_seconds: float,
        refresh: int,
        deadline: Deadline,
        pinned: Held | None = None,
    ) -> Held | None:
        """Ask for a value or for the lease to load it, waiting for another loader for up to ``wait_seconds``.

        Args:
            refresh: 0 to load if there is no value, 1 even if there is one unless another caller loads, 2 always.
            pinned: from the call before; it is the backend's from now on.

        Returns:
            The connection; its ``answer`` is None if the wait was over. When too many calls of this client wait for
            that node, it is asked without waiting: then the connection is released already (``closed``) unless a
            lease was granted. None: it could not be asked, since this client has too many pinned connections.
        """
        ...

    def fill(
        self,
        key: bytes,
        token: int,
        frame: Frame,
        ttl: float | None,
        stale_seconds: float,
        load_seconds: float,
        tags: Sequence[bytes] | None,
        deadline: Deadline,
    ) -> bool:
        """Store what was loaded under a lease and return whether it was stored. The lease has ended if so."""
        ...

    def abandon(self, key: bytes, token: int, pinned: Held) -> None:
        """End a lease unused and give up its connection. Takes a second at most, and raises nothing."""
        ...

    def acquire(
        self,
        name: bytes,
        limit: int,
        ttl: float,
        wait_seconds: float,
        deadline: Deadline,
        pinned: Held | None = None,
    ) -> Held | None:
        """Ask for a lock that up to ``limit`` callers hold. Returns as `lease`; the answer is the token."""
        ...

    def begin_renew(self, name: bytes, token: int, ttl: float, pinned: Held) -> bool:
        """Send a renewal without waiting. Return whether it was sent; if not, the connection is closed.

        When `PinnedConnection.fileno` is readable, the answer is there for `finish_renew`.
        """
        ...

    def finish_renew(self, pinned: Held, deadline: Deadline) -> bool:
        """Receive the answer to a renewal and return whether the lock is still held. Raises nothing."""
        ...

    def release(self, name: bytes, token: int, deadline: Deadline, pinned: Held | None = None) -> bool:
        """Release a lock and return whether it was held. Gives up the connection, if given.

        Returns False when the node does not answer.
        """
        ...

    # Namespaces: every node is asked.

    def count(self, prefix: bytes, deadline: Deadline, most: int | None = None) -> Answers:
        """Count the entries of a namespace, up to ``most``."""
        ...

    def clear(self, prefix: bytes, deadline: Deadline) -> Answers:
        """Remove the entries of a namespace; each node answers how many there were."""
        ...

    def invalidate_tag(self, tag: bytes, deadline: Deadline) -> Answers:
        """Remove the entries with a tag; each node answers how many there were."""
        ...

    def agreed_view(self, deadline: Deadline) -> tuple[ClusterView, dict[Member, NodeUnavailable]]:
        """Return the view that all nodes which answer use at this moment, and why the others do not answer."""
        ...

    def scan(
        self,
        member: Member,
        namespace: bytes,
        prefix: bytes,
        cursor: int,
        batch: int,
        deadline: Deadline,
    ) -> tuple[int, Sequence[bytes]]:
        """Return the next cursor (0: no more) and a page of a node's keys that begin with ``prefix``.

        Raises:
            NodeLeft: the node is no longer a member.
        """
        ...

    # The cluster

    def nodes(self, deadline: Deadline) -> Sequence[Member]:
        """Return the nodes that the name server lists now."""
        ...

    def owner(self, key: bytes, deadline: Deadline) -> Member:
        """Return the node that owns a key."""
        ...

    def stats(self, deadline: Deadline) -> Answers:
        """Return the figures of every node, as it sends them."""
        ...

    def reset_stats(self, deadline: Deadline) -> Answers:
        """Set the counters of every node to 0."""
        ...

    def close(self) -> None:
        """Close the connections. Every later call raises `ClientClosed`."""
        ...


# To be replaced by ClientContext

_T = TypeVar("_T")


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return self.name


MISSING: Final = Missing.MISSING
"""No default was given, or there is no value: None is a value like any other."""

Duration: TypeAlias = float | timedelta
"""Seconds, or a timedelta."""

Ttl: TypeAlias = Duration | None
"""How long an entry lives: seconds or a timedelta above 0; None for good."""

KeptTtl: TypeAlias = Ttl | EllipsisType
"""The same; ``...`` for as long as it had anyway."""


class Core:
    """One client's share of a router.

    Args:
        config: settings; the namespace among them.
        router: of the client that this is a namespace of; None to make one, which is closed with this.

    Attributes:
        config, router: as given; the router is replaced by a closed one when this is closed.
        prefix: what stands before every key.
        timeout: seconds for a call.
        closed: whether `close` was called.
    """

    def __init__(self, config: ClientConfig, router: Router | None = None) -> None:
        self.config = config
        self.prefix = namespace_prefix(*config.namespace)
        self.timeout = config.timeout
        self.router = _new_router(config) if router is None else router
        self.closed = False
        self._owns_router = router is None
        self._namespaces: weakref.WeakSet[Core] = weakref.WeakSet()
        self._lock = threading.Lock()  # guards: _figures
        self._figures = ClientStats()
        _cores.add(self)

    def namespace(self, name: str) -> Core:
        """The core of a namespace within this one's."""
        inner = Core(replace(self.config, namespace=(*self.config.namespace, name)), self.router)
        self._namespaces.add(inner)
        if self.closed:  # looked at last: `close` may have run just before the line above
            inner.close()
            raise _closed()
        return inner

    def close(self) -> None:
        """Refuse every later call, here and in the namespaces made from this."""
        self.closed = True
        if self._owns_router:
            self.router.close()
        else:
            self.router = _new_router(self.config)
            self.router.close()
        for inner in list(self._namespaces):
            inner.close()

    def deadline(self, seconds: float | None = None) -> Deadline:
        """The deadline of a call that begins now. Raises `ClientClosed`."""
        if self.closed:
            raise _closed()
        return Deadline(self.timeout if seconds is None else seconds)

    def encode_key(self, key: object) -> bytes:
        """The canonical bytes of a key of this namespace."""
        return encode_key(key, self.prefix)

    def decode(self, frame: Any) -> Any:
        """The value in a frame; one that is corrupt counts."""
        try:
            return decode_value(frame)
        except CorruptValue:
            self.count("corrupt_values")
            raise

    def encode_tag(self, tag: str) -> bytes:
        """A tag as the nodes know it: tags of one namespace are not those of another."""
        if not isinstance(tag, str):
            raise TypeError(f"A tag is a str, not {type(tag).__name__}.")
        encoded = self.prefix + utf8(tag)
        if len(encoded) > MAX_TAG_BYTES:
            most = MAX_TAG_BYTES - len(self.prefix)
            raise ValueError(f"A tag takes at most {most} bytes in UTF-8 here, not {len(encoded)}.")
        return encoded

    def encode_tags(self, tags: Iterable[str] | None) -> list[bytes] | None:
        """The tags of an entry, each once; None when nothing is said of tags."""
        if tags is None:
            return None
        if isinstance(tags, str) or not isinstance(tags, Iterable):
            raise TypeError(f"tags is a list of texts, not one {type(tags).__name__}.")
        encoded = list(dict.fromkeys(map(self.encode_tag, tags)))
        if len(encoded) > MAX_TAGS:
            raise ValueError(f"An entry has at most {MAX_TAGS} tags, not {len(encoded)}.")
        return encoded

    def call(
        self,
        method: str,
        key: object,
        *arguments: Any,
        away: Any,
        idempotent: bool = True,
        largest_value: int = 0,
    ) -> Any:
        """What the owner of ``key`` returns, or ``away`` when it is away and that counts as a miss."""
        encoded = self.encode_key(key)
        try:
            return self.call_owner(
                method,
                encoded,
                *arguments,
                deadline=self.deadline(),
                idempotent=idempotent,
                largest_value=largest_value,
            )
        except NodeUnavailable as error:
            return self.missed(error, away)

    def call_owner(
        self,
        method: str,
        encoded: bytes,
        *arguments: Any,
        deadline: Deadline,
        idempotent: bool = True,
        largest_value: int = 0,
    ) -> Any:
        """What the owner of a key returns. Raises `NodeUnavailable` whatever ``on_error`` says."""
        try:
            return self.router.call(
                method,
                encoded,
                *arguments,
                deadline=deadline,
                idempotent=idempotent,
                largest_value=largest_value,
            )
        except NodeUnavailable as error:
            if not idempotent and isinstance(error.__cause__, Unavailable) and error.__cause__.maybe_executed:
                error.add_note(f"The node may have done the {method} all the same: it was sent.")
            raise

    def put(
        self,
        key: object,
        value: object,
        ttl: float | None,
        *,
        condition: str | int | None = None,
        tags: Iterable[str] | None = None,
    ) -> bool:
        """Store a value if the entry is as ``condition`` says: ``"absent"``, ``"present"`` or of that version.

        ``ttl`` is as the nodes take it.
        """
        encoded_tags = self.encode_tags(tags)
        frame = encode_value(value)
        return bool(
            self.call(
                "put",
                key,
                frame,
                ttl,
                condition,
                encoded_tags,
                away=False,
                idempotent=condition is None,
                largest_value=len(frame),
            )
        )

    def missed(self, error: NodeUnavailable, value: _T) -> _T:
        """What ``on_error`` says: raise, or count, log and go on with ``value``."""
        if self.config.on_error == "raise":
            raise error
        self.count("misses_on_error")
        log.warning("Counted as a miss: %s", error)
        return value

    def sum_of(self, method: str, *arguments: Any, idempotent: bool = False) -> int:
        """The sum of what the nodes answer."""
        total = 0
        for _, answer in self.router.everywhere(
            method, *arguments, deadline=self.deadline(), idempotent=idempotent
        ):
            if isinstance(answer, NodeUnavailable):
                self.missed(answer, None)
            else:
                total += answer
        return total

    def count(self, figure: str, by: int = 1) -> None:
        """Add to one of this client's own figures, a field of `ClientStats`."""
        with self._lock:
            self._figures = replace(self._figures, **{figure: getattr(self._figures, figure) + by})

    def figures(self) -> ClientStats:
        """This client's own figures."""
        return self._figures

    def reset_figures(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self._figures = ClientStats()

    def reset_after_fork(self) -> None:
        """Make this good for a child process; the router apart."""
        self._lock = threading.Lock()


def ttl_on_the_wire(ttl_seconds: KeptTtl) -> float | None:
    """A TTL as the nodes take it. Raises as `ttl_to_seconds`."""
    return KEEP_TTL if ttl_seconds is ... else ttl_to_seconds(ttl_seconds)


def _new_router(config: ClientConfig) -> Router:
    return Router(
        NameServerDirectory(config.nameserver),
        max_connections=config.max_connections,
        transport=config.transport,
    )


def _closed() -> ClientClosed:
    return ClientClosed("This client was closed; make a new PyroCacheClient.")


_cores: weakref.WeakSet[Core] = weakref.WeakSet()


def _reset_cores_after_fork() -> None:
    cores = list(_cores)
    for core in cores:
        core.reset_after_fork()
    for router in {id(core.router): core.router for core in cores}.values():
        router.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_cores_after_fork)
