"""`PyroCacheClient`: the verbs of the cache.

Encodes keys and values before anything is sent, has the router find the owner, decodes what comes back, and
applies ``on_error``. Thread-safe, fork-safe and picklable; it starts no thread and connects on first use.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, overload

from pyrocache.client.backend import MISSING, Core, Duration, KeptTtl, Missing, Ttl, ttl_on_the_wire
from pyrocache.client.codec import encode_value
from pyrocache.client.features import bulk as batches
from pyrocache.client.features import compute as updates
from pyrocache.client.features import load_once as loading
from pyrocache.client.features import scan as scanning
from pyrocache.client.features.load_once import checked_terms
from pyrocache.client.features.locks import Lock, check_limit
from pyrocache.client.features.memoize import Memoizer, Settings, Tags
from pyrocache.client.features.scan import Items, Values
from pyrocache.client.keys.encoding import encode_key
from pyrocache.client.stats import NodeStats, Stats
from pyrocache.cluster.routing import Member
from pyrocache.config import (
    DEFAULT_NAMESERVER,
    DEFAULT_TIMEOUT_SECONDS,
    ClientConfig,
    OnError,
    TransportChoice,
    ttl_to_seconds,
)
from pyrocache.errors import NodeUnavailable
from pyrocache.net.deadline import Deadline
from pyrocache.protocol.int_frame import pack_int
from pyrocache.protocol.limits import MAX_BATCH

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem

_T = TypeVar("_T")

NAMESERVER_VARIABLE = "PYROCACHE_NAMESERVER"


class PyroCacheClient(MutableMapping[Any, Any]):
    """A cache of Python objects that lives in the memory of several node processes, and reads like a dict.

    Args:
        nameserver: ``host:port`` of the name server; by default what ``$PYROCACHE_NAMESERVER`` says, else
            ``127.0.0.1:9090``.
        namespace: the slice of the keys that this client sees, as by `namespace`: a name, or a path of names.
        timeout: seconds that any one call may take, looking nodes up, connecting and retries included.
        on_error: what to do when a node is away: ``"raise"`` `NodeUnavailable`, or count it, log it, and behave as on
            a ``"miss"``. Nothing else is ever turned into a miss.
        transport: ``"auto"`` reaches nodes on this host over their Unix sockets where they have one, ``"tcp"`` none.

    Keys may be anything picklable, and two are one iff ``==`` says so, as in a dict. Values may be anything picklable.
    An entry expires the instant its TTL is over, by its node's clock.

    What changes an entry is decided on the node that owns it, in one step, so two callers never undo each other's work.
    Only what may be done twice is tried again after a reply was lost; a `NodeUnavailable` from any other call (those
    with a condition, `incr`, `pop`, `setdefault`, `delete`) leaves open whether it was done.

    As a mapping it is that of its namespace: `len`, iteration, ``==`` and being true (not empty) ask all nodes. It has
    no hash, as nothing has that changes and compares by its content.

    Raises, from every method: `NameServerUnavailable` and `NoNodes` until nodes have been found, `NodeUnavailable` as
    ``on_error`` says, `InvalidKey`, `KeyTooLarge`, `ClientClosed`.

    Example:
        >>> cache = PyroCacheClient()                                        # doctest: +SKIP
        >>> cache.set("user:1", {"name": "Alice"}, ttl_seconds=60)           # doctest: +SKIP
        True
    """

    def __init__(
        self,
        nameserver: str | None = None,
        *,
        namespace: str | tuple[str, ...] = (),
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        on_error: OnError = "raise",
        transport: TransportChoice = "auto",
    ) -> None:
        if nameserver is None:
            nameserver = os.environ.get(NAMESERVER_VARIABLE) or DEFAULT_NAMESERVER
        self._core = Core(
            ClientConfig(
                nameserver=nameserver,
                namespace=(namespace,) if isinstance(namespace, str) else namespace,
                timeout=timeout,
                on_error=on_error,
                transport=transport,
            )
        )

    # One key ---------------------------------------------------------------------------------------------

    def set(
        self,
        key: object,
        value: object,
        ttl_seconds: KeptTtl = None,
        *,
        tags: Iterable[str] | None = None,
        if_version: int | None = None,
    ) -> bool:
        """Store ``value`` under ``key``.

        Args:
            ttl_seconds: how long it lives, in seconds or as a timedelta; None for good, ``...`` for as long as what it
                replaces had to live.
            tags: names by which `invalidate_tag` finds it. Those of what it replaces are gone, unless ``ttl_seconds``
                is ``...`` and this is None: then it keeps them, too.
            if_version: store it only in place of this version, from `get_with_version`.

        Returns:
            Whether it was stored: True but for another version, or when the node is away and ``on_error`` is
            ``"miss"``.

        Raises:
            ValueError, TypeError: ``ttl_seconds`` is not above 0, or no duration; the same for the other arguments.
            SerializationError: the value does not pickle; nothing was sent.
            ValueTooLarge: the node takes no value of that size; the old value stays.
        """
        if tags is not None or if_version is not None or ttl_seconds is ...:
            condition = None if if_version is None else _version(if_version)
            return self._core.put(key, value, ttl_on_the_wire(ttl_seconds), condition=condition, tags=tags)
        core = self._core
        encoded = encode_key(key, core.prefix)
        seconds = ttl_to_seconds(ttl_seconds)
        frame = encode_value(value)
        try:
            core.router.call(
                "set", encoded, frame, seconds, deadline=Deadline(core.timeout), largest_value=len(frame)
            )
        except NodeUnavailable as error:
            return core.missed(error, False)
        return True

    def add(
        self, key: object, value: object, ttl_seconds: Ttl = None, *, tags: Iterable[str] | None = None
    ) -> bool:
        """Store ``value`` if there is no entry; whether it was stored. Arguments and errors as for `set`."""
        return self._core.put(key, value, ttl_to_seconds(ttl_seconds), condition="absent", tags=tags)

    def replace(
        self, key: object, value: object, ttl_seconds: KeptTtl = None, *, tags: Iterable[str] | None = None
    ) -> bool:
        """Store ``value`` if there is an entry; whether it was stored. Arguments and errors as for `set`."""
        return self._core.put(key, value, ttl_on_the_wire(ttl_seconds), condition="present", tags=tags)

    @overload
    def get(self, key: object, default: None = None, *, touch_seconds: Ttl = None) -> Any | None: ...
    @overload
    def get(self, key: object, default: _T, *, touch_seconds: Ttl = None) -> Any | _T: ...
    def get(self, key: object, default: Any = None, *, touch_seconds: Ttl = None) -> Any:
        """The value stored under ``key``; ``default`` when there is none, or it has expired.

        Args:
            touch_seconds: how long from now the entry lives on if there is one, whatever TTL it had (sliding expiry).

        Raises:
            SerializationError: the value does not unpickle here; `CorruptValue`: it is none of ours.
        """
        core = self._core
        encoded = encode_key(key, core.prefix)
        try:
            if touch_seconds is None:
                frame = core.router.call("get", encoded, deadline=Deadline(core.timeout))
            else:
                seconds = _finite(touch_seconds)
                frame = core.router.call("get", encoded, seconds, deadline=Deadline(core.timeout))
        except NodeUnavailable as error:
            return core.missed(error, default)
        return default if frame is None else core.decode(frame)

    def get_with_version(self, key: object) -> tuple[Any, int] | None:
        """The value stored under ``key`` and its version, for `compare_and_set`; None when there is none.

        A version is of one entry as it was stored at one time; the key never has it again.
        """
        found = self._core.call("get_with_version", key, away=None)
        if found is None:
            return None
        frame, version = found
        return self._core.decode(frame), version

    def compare_and_set(self, key: object, value: object, version: int, ttl_seconds: KeptTtl = ...) -> bool:
        """Store ``value`` if the entry still has this ``version``, from `get_with_version`; whether it was stored.

        The entry keeps the time that it had to live, and its tags; with another ``ttl_seconds`` it has no tags.
        """
        return self._core.put(key, value, ttl_on_the_wire(ttl_seconds), condition=_version(version))

    @overload
    def update(
        self,
        /,
        key: object,
        function: Callable[[Any], _T],
        default: Any = MISSING,
        ttl_seconds: KeptTtl = ...,
    ) -> _T: ...
    @overload
    def update(self, entries: SupportsKeysAndGetItem[Any, Any], /, **more: Any) -> None: ...
    @overload
    def update(self, entries: Iterable[tuple[Any, Any]] = (), /, **more: Any) -> None: ...
    def update(self, /, *arguments: Any, **named: Any) -> Any:
        """Change an entry by a function; or, given entries as `dict.update` takes them, store those as `set_many` does.

        ``update(key, function, default=MISSING, ttl_seconds=...)`` stores ``function(value)`` if nobody has changed the
        entry meanwhile, and otherwise begins again, so ``function`` may run several times; its own time does not count
        to the call's. Without an entry it is given ``default``. The entry keeps the time that it had to live,
        and its tags; with another ``ttl_seconds`` it has no tags.

        Returns:
            The new value; when the node is away and ``on_error`` is ``"miss"``, what ``function`` makes of ``default``,
            which is not stored. None in the other form.

        Raises:
            KeyError: there is no entry, and no ``default``.
            Conflict: others were faster until the time was over.
        """
        if len(arguments) > 1 or "function" in named:
            return self._update_by(*arguments, **named)
        if "ttl_seconds" in named:
            raise TypeError(
                "update stores entries for good: set_many takes a ttl_seconds, and an entry of that name "
                "goes in a dict."
            )
        self.set_many(dict(*arguments, **named))
        return None

    def _update_by(
        self,
        key: object,
        function: Callable[[Any], _T],
        default: Any | Missing = MISSING,
        ttl_seconds: KeptTtl = ...,
    ) -> _T:
        if not callable(function):
            raise TypeError(
                "update takes a key and a function of its value, or entries to store: set_many stores them with a "
                "TTL, and set a single one."
            )
        return updates.update(self._core, key, function, default, ttl_seconds)

    def incr(self, key: object, delta: int = 1, default: int = 0, ttl_seconds: Ttl = None) -> int:
        """Add ``delta`` to an int, of any size; the sum. Without an entry, ``default`` is added to.

        Args:
            ttl_seconds: how long an entry lives that is new; one that there is keeps its TTL.

        Returns:
            The new value; when the node is away and ``on_error`` is ``"miss"``, that of a new entry.

        Raises:
            TypeError: the entry is no int, and unchanged (`NotAnInt`); or ``delta`` or ``default`` is none.
        """
        by, start = _int(delta, "delta"), _int(default, "default")
        frames = pack_int(by), pack_int(start)
        seconds = ttl_to_seconds(ttl_seconds)
        frame = self._core.call(
            "incr",
            key,
            *frames,
            seconds,
            away=None,
            idempotent=False,
            largest_value=max(map(len, frames)),
        )
        return start + by if frame is None else int(self._core.decode(frame))

    def decr(self, key: object, delta: int = 1, default: int = 0, ttl_seconds: Ttl = None) -> int:
        """`incr` by ``-delta``."""
        return self.incr(key, -_int(delta, "delta"), default, ttl_seconds)

    def touch(self, key: object, ttl_seconds: Ttl) -> bool:
        """Have the entry live for ``ttl_seconds`` from now, or with None for good; whether there is one."""
        return bool(self._core.call("touch", key, ttl_to_seconds(ttl_seconds), away=False))

    @overload
    def pop(self, key: object) -> Any: ...
    @overload
    def pop(self, key: object, default: _T) -> Any | _T: ...
    def pop(self, key: object, default: Any = MISSING) -> Any:
        """Remove the entry and return its value; without one ``default``, or `KeyError` if that is not given.

        Raises:
            SerializationError: the value does not unpickle here; the entry is removed all the same.
        """
        frame = self._core.call("pop", key, away=None, idempotent=False)
        if frame is not None:
            return self._core.decode(frame)
        if default is MISSING:
            raise KeyError(key)
        return default

    @overload
    def setdefault(self, key: object, default: None = None, ttl_seconds: Ttl = None) -> Any | None: ...
    @overload
    def setdefault(self, key: object, default: _T, ttl_seconds: Ttl = None) -> Any | _T: ...
    def setdefault(self, key: object, default: Any = None, ttl_seconds: Ttl = None) -> Any:
        """The value stored under ``key``; without one, ``default`` is stored and returned. Errors as for `set`."""
        seconds = ttl_to_seconds(ttl_seconds)
        frame = encode_value(default)
        found = self._core.call(
            "setdefault", key, frame, seconds, away=None, idempotent=False, largest_value=len(frame)
        )
        return default if found is None else self._core.decode(found)

    def delete(self, key: object) -> bool:
        """Remove the entry; whether there was one.

        Not retried once the request was sent: a `NodeUnavailable` then means that it may or may not be removed.
        """
        return bool(self._core.call("delete", key, away=False, idempotent=False))

    def contains(self, key: object) -> bool:
        """Whether there is an entry; it does not become more recent by that."""
        return bool(self._core.call("contains", key, away=False))

    def ttl(self, key: object) -> float | None:
        """Seconds until the entry expires: ``math.inf`` when it never does, None when there is none."""
        seconds = self._core.call("ttl", key, away=None)
        return None if seconds is None else float(seconds)

    # Loading once ----------------------------------------------------------------------------------------

    def get_or_set(
        self,
        key: object,
        factory: Callable[[], _T],
        ttl_seconds: Ttl = None,
        *,
        stale_seconds: Duration = 0,
        early: float = 0.0,
        wait_seconds: Duration | None = None,
        lease_seconds: Duration = 60,
        tags: Iterable[str] | None = None,
    ) -> _T:
        """The value stored under ``key``; without one, what ``factory()`` returns, which is stored.

        However many threads, processes and hosts ask for a missing key together, one calls its factory; the others wait
        for the value. If the factory raises, that reaches its caller unchanged, and another one's factory is called; so
        too if the caller's process ends. What was loaded is returned, but not stored, if the key was set or deleted
        meanwhile, or one of ``tags`` invalidated: it may be older than that.

        Args:
            stale_seconds: for so long after it has expired, a value is returned to others while one caller loads
                a new one.
            early: refresh a value before it expires, each caller with a chance that grows as that comes near and with
                the time that loading takes; 1.0 is a good choice, more is earlier (XFetch). Should the factory then
                raise, the value that there is is returned.
            wait_seconds: how long to wait for another caller; None waits as long as it takes, 0 does not wait.
            lease_seconds: how long a factory may take before another caller's is called too.

        Raises:
            WaitTimeout: another caller was still loading after ``wait_seconds``.
            NodeUnavailable: the key's node is away. When ``on_error`` is ``"miss"``, what the factory returns is
                returned, not stored; and so it is, whatever ``on_error`` says, if the node went away while it ran.
            SerializationError, ValueTooLarge: what the factory returned cannot be stored.
            TypeError: ``factory`` cannot be called: `setdefault` takes a value.
        """
        if not callable(factory):
            raise TypeError(
                "get_or_set takes a function that makes the value, and calls it if there is none; "
                "setdefault takes a value."
            )
        core = self._core
        terms = checked_terms(
            ttl_seconds=ttl_seconds,
            stale_seconds=stale_seconds,
            early=early,
            wait_seconds=wait_seconds,
            lease_seconds=lease_seconds,
        )
        encoded, encoded_tags = core.encode_key(key), core.encode_tags(tags)
        return loading.get_or_set(core, encoded, factory, terms, lambda: encoded_tags)

    def memoize(
        self,
        ttl_seconds: Ttl = None,
        *,
        key: Callable[..., object] | None = None,
        ignore: Iterable[str] = (),
        cache_if: Callable[[Any], object] | None = None,
        typed: bool = False,
        tags: Tags = None,
        stale_seconds: Duration = 0,
        early: float = 0.0,
        wait_seconds: Duration | None = None,
        lease_seconds: Duration = 60,
    ) -> Memoizer:
        """Keep a function's results: ``@cache.memoize(ttl_seconds=60)``, as by `get_or_set`.

        For functions, methods and ``async def`` functions, whose loop never waits for a node. Above ``@staticmethod``
        and ``@classmethod``, or below. The decorated function has ``.invalidate(...)``, ``.refresh(...)`` and
        ``.key(...)``, each called with the function's own arguments, and ``.original``.

        A result belongs to the function's module and qualified name, in ``__main__`` also to its source, and to its
        arguments, of which it does not matter how they are given or whether defaults are left out. What a function
        refers to otherwise does not count, the variables around a nested one neither: have ``key`` name them.

        Args:
            key: called with all arguments, by position and defaults included; what it returns stands for them.
            ignore: names of arguments that do not matter, like ``("self",)``. A method's ``self`` is part of the key
                otherwise, by what it pickles.
            cache_if: called with a result; whether to keep it.
            typed: whether equal arguments of different types, like 1 and 1.0, have results of their own.
            tags: of the results; or what makes them, called in the same way.
            stale_seconds, early, wait_seconds, lease_seconds: as for `get_or_set`.

        Raises, when the function is called: as `get_or_set`; `InvalidKey` if an argument is no key.
        """
        if callable(ttl_seconds):
            raise TypeError("memoize is called to decorate a function: @cache.memoize()")
        if isinstance(ignore, str):
            raise TypeError("ignore is a list of names, not one name.")
        terms = checked_terms(
            ttl_seconds=ttl_seconds,
            stale_seconds=stale_seconds,
            early=early,
            wait_seconds=wait_seconds,
            lease_seconds=lease_seconds,
        )
        return Memoizer(
            Settings(
                core=self._core,
                terms=terms,
                key=key,
                ignore=frozenset(ignore),
                cache_if=cache_if,
                typed=typed,
                tags=tags,
            )
        )

    # Locks -----------------------------------------------------------------------------------------------

    def lock(self, name: object, ttl_seconds: Duration = 30, *, wait_seconds: Duration | None = None) -> Lock:
        """A lock that at most one thread of all processes and hosts holds: ``with cache.lock("report"): ...``.

        It is renewed in the background while it is held, and free at once when the holder releases it or its process
        ends. A holder that cannot renew it, as its host is gone or it is stopped, loses it after ``ttl_seconds``.

        What this promises: as long as the name's node runs and the view of the nodes does not change, there is one
        holder at a time whose ``ttl_seconds`` are not over. A node keeps its locks in its memory, in one copy: when it
        ends, or nodes join or leave so that another one looks after the name, the lock is free, though its holder has
        it for up to a third of ``ttl_seconds`` before it notices. Copies of entries do not change this. So a lock saves
        work that need not be done twice; where doing it twice would do harm, hand `Lock.token` on to what the lock
        protects, and have that refuse a token smaller than one that it has seen: tokens only grow (from node to
        node as far as their clocks agree).

        Args:
            wait_seconds: how long to wait for it; None waits as long as it takes, 0 does not wait.

        Raises, when it is acquired: `LockTimeout`; `NodeUnavailable` whatever ``on_error`` says. When it is released:
        `LockLost` if it was lost before, unless the body of a ``with`` raised already.
        """
        return Lock(self._core, name, 1, ttl_seconds, wait_seconds)

    def semaphore(
        self, name: object, n: int, ttl_seconds: Duration = 30, *, wait_seconds: Duration | None = None
    ) -> Lock:
        """As `lock`, for up to ``n`` holders at a time; everybody is to give the same ``n``."""
        return Lock(self._core, name, check_limit(n), ttl_seconds, wait_seconds)

    # Many keys -------------------------------------------------------------------------------------------

    def get_many(self, keys: Iterable[object]) -> dict[Any, Any]:
        """The values of those ``keys`` that have one, by key, in the keys' order.

        Raises:
            TypeError: a key is not hashable, like a list; `get` takes those.
            PartialFailure: a node is away, or a value does not unpickle here; it has the other values.
        """
        return batches.get_many(self._core, keys)

    def set_many(
        self, mapping: Mapping[Any, Any], ttl_seconds: Ttl = None, *, tags: Iterable[str] | None = None
    ) -> int:
        """Store every entry of ``mapping``, each with these ``tags``; how many were stored.

        All keys and values are encoded before anything is sent.

        Raises:
            ValueError, TypeError, SerializationError: as `set`.
            PartialFailure: a node is away, or a value is too large for its node; the other entries are stored.
        """
        return batches.set_many(self._core, mapping, ttl_seconds, tags)

    def delete_many(self, keys: Iterable[object]) -> int:
        """Remove the entries of ``keys``; how many there were.

        Raises:
            PartialFailure: a node is away; the other entries are removed. Where a key is not hashable, only why.
        """
        return batches.delete_many(self._core, keys)

    def touch_many(self, keys: Iterable[object], ttl_seconds: Ttl) -> int:
        """Have the entries of ``keys`` live for ``ttl_seconds`` from now, or with None for good; how many there are.

        Raises:
            PartialFailure: a node is away; the other entries are touched. Where a key is not hashable, only why.
        """
        return batches.touch_many(self._core, keys, ttl_seconds)

    # The whole namespace ---------------------------------------------------------------------------------

    def namespace(self, name: str) -> Self:
        """A client of its own over a slice of the keys, which nothing else sees: neither `len` nor `clear` of this one.

        It shares this one's settings and connections. Closing it leaves this one open; closing this one closes it.
        ``PyroCacheClient(namespace="shop")`` is one too, and so is ``namespace("shop").namespace("eu")``.

        Raises:
            ConfigurationError: it is no str, longer than 255 bytes in UTF-8, or all names together than 512.
        """
        inner = object.__new__(type(self))
        inner._core = self._core.namespace(name)
        return inner

    def invalidate_tag(self, tag: str) -> int:
        """Remove every entry of this namespace that was stored with ``tag``, on every node; how many there were.

        No later read returns one of them. It takes no longer for many than for one, which is why those are counted too
        that were gone, but not swept yet: expired, cleared, or invalidated by another tag.
        """
        return self._core.sum_of("invalidate_tag", self._core.encode_tag(tag), idempotent=True)

    def clear(self) -> int:  # type: ignore[override]  # a dict's returns nothing
        """Remove every entry of this client's namespace; how many there were, some that had expired included."""
        return self._core.sum_of("clear", self._core.prefix)

    def scan(self, prefix: str | tuple[Any, ...] | None = None, batch: int = MAX_BATCH) -> Iterator[Any]:
        """The keys of this namespace, node by node, in no order.

        No key comes twice. Each that is there throughout comes once; of those that come or go meanwhile, some do. A key
        leaves, too, when a node joins or leaves and another owns it then.

        Args:
            prefix: only keys that are texts which begin with this text, or tuples which begin with these items.
            batch: how many to ask a node for at a time, 1,000 at most. Each time is a call with a deadline of its own.

        Raises:
            TypeError: ``prefix`` is neither a text nor a tuple.
        """
        return scanning.scan(self._core, prefix, batch)

    def __iter__(self) -> Iterator[Any]:
        return scanning.scan(self._core)

    def items(self) -> Items:
        """The entries as a view, like a dict's. Values are fetched page by page, as it is walked over."""
        return Items(self)

    def values(self) -> Values:
        """The values as a view, like a dict's; fetched page by page, as it is walked over."""
        return Values(self)

    def popitem(self) -> tuple[Any, Any]:
        """Remove some entry and return its key and value; `KeyError` without any. No two callers get the same one.

        It is removed even if it does not unpickle here.
        """
        return scanning.pop_any(self._core)

    def __len__(self) -> int:
        """Entries in this client's namespace, over all nodes."""
        return self._core.sum_of("count", self._core.prefix, idempotent=True)

    def __bool__(self) -> bool:
        """Whether there is any entry in this client's namespace."""
        return bool(self._core.sum_of("count", self._core.prefix, 1, idempotent=True))

    def __eq__(self, other: object) -> bool:
        """Whether another mapping has the same entries; all of them are fetched."""
        if self is other or not isinstance(other, Mapping):
            return self is other or NotImplemented
        try:
            return dict(self.items()) == dict(other.items())
        except TypeError:  # a key that is not hashable, which no other mapping has
            return False

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __contains__(self, key: object) -> bool:
        return self.contains(key)

    def __getitem__(self, key: object) -> Any:
        value = self.get(key, MISSING)
        if value is MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: object, value: object) -> None:
        self.set(key, value)

    def __delitem__(self, key: object) -> None:
        if not self.delete(key):
            raise KeyError(key)

    # The cluster -----------------------------------------------------------------------------------------

    def nodes(self) -> list[Member]:
        """The nodes that share the keys, as the name server lists them now."""
        core = self._core
        return list(core.router.fresh_view(core.deadline()).members)

    def node_for(self, key: object) -> Member:
        """The node that owns ``key``."""
        core = self._core
        encoded = core.encode_key(key)
        return core.router.view(core.deadline()).owner(encoded)

    def stats(self) -> Stats:
        """Figures of every node, their sums, and this client's own. A node that is away is named, not an error."""
        core = self._core
        nodes: dict[str, NodeStats] = {}
        away: list[str] = []
        for member, answer in core.router.everywhere("stats", deadline=core.deadline(), idempotent=True):
            if isinstance(answer, NodeUnavailable):
                away.append(member.name)
            else:
                nodes[member.name] = NodeStats.from_wire(answer)
        return Stats.of(nodes, core.figures(), away)

    def reset_stats(self) -> None:
        """Have every node and this client count from 0; what there is now (entries, bytes) stays."""
        self._core.sum_of("reset_stats", idempotent=True)
        self._core.reset_figures()

    # Life ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections. Every later call raises `ClientClosed`; closing again does nothing."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        config = self._core.config
        parts = [repr(config.nameserver)]
        if config.namespace:
            path = config.namespace
            parts.append(f"namespace={(path[0] if len(path) == 1 else path)!r}")
        return f"<PyroCacheClient {' '.join(parts)}{' closed' if self._core.closed else ''}>"

    def __getstate__(self) -> ClientConfig:
        return self._core.config

    def __setstate__(self, config: ClientConfig) -> None:
        self._core = Core(config)


def _version(version: int) -> int:
    if isinstance(version, bool) or not isinstance(version, int):
        raise TypeError(f"A version is an int from get_with_version, not {type(version).__name__}.")
    if not 0 < version < 2**63:
        raise ValueError("A version is an int above 0, from get_with_version.")
    return version


def _int(number: object, name: str) -> int:
    """The argument called ``name`` as an int, of those that are one (numpy's, too)."""
    try:
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is an int, not {type(number).__name__}.") from None


def _finite(touch_seconds: Ttl) -> float:
    seconds = ttl_to_seconds(touch_seconds, "touch_seconds")
    if seconds is None:
        raise ValueError("touch_seconds is finite: touch(key, None) has an entry live for good.")
    return seconds
