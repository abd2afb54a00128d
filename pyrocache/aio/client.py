"""`AsyncPyroCacheClient`: the public methods of the cache, for programs with an event loop.

A thin facade, as `client.client` is for blocking programs: it checks and encodes arguments, sends a command through the
`AsyncBackend` of its `ClientContext`, decodes the answer and applies ``on_error``. Methods that need more than one
command are in modules of their own. A client is picklable and connects on first use. It starts no thread, except for a
moment when it asks the name server.

Thread safety: thread-safe. A client works in any number of event loops; each has connections of its own.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Never, Self, TypeVar, overload

from pyrocache.aio import bulk, load_once, scan
from pyrocache.aio.backend import AsyncBackend
from pyrocache.aio.compute import compute
from pyrocache.aio.hot_keys import hot_keys
from pyrocache.aio.locks import AsyncLock
from pyrocache.aio.memoize import AsyncMemoizer
from pyrocache.aio.scan import AsyncScan
from pyrocache.client.backend import Answers, Condition
from pyrocache.client.context import (
    DEFAULT_TTL,
    MISSING,
    ClientContext,
    Duration,
    KeptTtl,
    NewTtl,
    Ttl,
    When,
)
from pyrocache.client.features.bulk import Change
from pyrocache.client.features.entries import Entry, EntryInfo, entry
from pyrocache.client.features.hot_keys import HotKey
from pyrocache.client.features.load_once import Load, load_options
from pyrocache.client.features.memoize import Tags
from pyrocache.client.hints import hide_unknown, unknown_argument
from pyrocache.client.keys.encoding import encode_key
from pyrocache.client.keys.format import path_text
from pyrocache.client.options import (
    checked_version,
    config_from,
    entries_of,
    finite_seconds,
    number_serving,
    stats_of,
    to_int,
)
from pyrocache.client.serializers import UserCodec
from pyrocache.cluster.routing import Member
from pyrocache.config import (
    TLS,
    ClientConfig,
    OnError,
    OnUndecodable,
    SerializerChoice,
    TransportChoice,
    ttl_to_seconds,
)
from pyrocache.errors import CacheUnavailable, NodeUnavailable, SerializationError
from pyrocache.net.deadline import Deadline
from pyrocache.protocol.int_frame import pack_int
from pyrocache.protocol.limits import MAX_BATCH
from pyrocache.tracebacks import brief

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem

    from pyrocache.client.stats import Stats

_T = TypeVar("_T")


class AsyncPyroCacheClient:
    """A cache of Python objects in the memory of several node processes, for coroutines.

    The methods are those of `PyroCacheClient`, which describes arguments, results and errors. They are coroutines,
    except for `namespace`, `lock`, `semaphore` and `memoize`, which return an object, and `scan`, `keys`, `values` and
    `items`, which return asynchronous iterators. As a mapping has no coroutines, use ``await cache.get(key)``,
    ``await cache.contains(key)`` and ``await cache.size()`` in place of ``cache[key]``, ``in`` and ``len``.

    Calls of many coroutines share a few connections to each node. Requests that are made in one turn of the event loop
    leave together, and so one coroutine need not wait for the reply of another. A coroutine may be cancelled at any
    time: a change that was sent may have been executed then; a lease or a lock is given back.

    Args:
        connections: the most connections to each node for calls, in each event loop; one more is opened for calls that
            wait for another caller.

    The other arguments are those of `PyroCacheClient`.

    Example:
        >>> async with AsyncPyroCacheClient() as cache:                                # doctest: +SKIP
        ...     await cache.set("user:1", {"name": "Alice"}, ttl_seconds=60)
        ...     await cache.get("user:1")
    """

    def __init__(
        self,
        nameserver: str | None = None,
        *,
        namespace: str | tuple[str, ...] = (),
        timeout: float | None = None,
        on_error: OnError | None = None,
        transport: TransportChoice | None = None,
        ttl_seconds: Ttl = None,
        serializer: SerializerChoice | None = None,
        codec: UserCodec | None = None,
        allowed_classes: Iterable[type | Callable[..., Any] | str] | None = None,
        compress_above: int | str | None = None,
        on_undecodable: OnUndecodable | None = None,
        signing_key_file: str | os.PathLike[str] | None = None,
        counters: bool | None = None,
        secret_file: str | os.PathLike[str] | None = None,
        tls: TLS | Literal[False] | None = None,
        authenticate: bool = True,
        connections: int | None = None,
        **unknown: Never,
    ) -> None:
        if unknown:
            raise unknown_argument(type(self), unknown)
        config = config_from(
            nameserver=nameserver,
            namespace=namespace,
            timeout=timeout,
            on_error=on_error,
            transport=transport,
            ttl_seconds=ttl_seconds,
            serializer=serializer,
            codec=codec,
            allowed_classes=allowed_classes,
            compress_above=compress_above,
            on_undecodable=on_undecodable,
            signing_key_file=signing_key_file,
            counters=counters,
            secret_file=secret_file,
            tls=tls,
            authenticate=authenticate,
            connections=connections,
        )
        self._context: ClientContext[AsyncBackend] = ClientContext(config, AsyncBackend.of(config))

    @classmethod
    def _of(cls, context: ClientContext[AsyncBackend]) -> Self:
        """Return the client of a context."""
        client = object.__new__(cls)
        client._context = context
        return client

    # One key ---------------------------------------------------------------------------------------------

    async def set(
        self,
        key: object,
        value: object,
        ttl_seconds: KeptTtl = DEFAULT_TTL,
        *,
        tags: Iterable[str] | None = None,
        if_version: int | None = None,
        expires_at: When | None = None,
        **unknown: Never,
    ) -> bool:
        """Store ``value`` under ``key``. Arguments, result and errors as for `PyroCacheClient.set`."""
        if unknown:
            raise unknown_argument(self.set, unknown)
        if tags is not None or if_version is not None or ttl_seconds is ... or expires_at is not None:
            condition = None if if_version is None else checked_version(if_version)
            return await self._put(key, value, ttl_seconds, condition, tags, expires_at)
        context = self._context
        encoded = encode_key(key, context.prefix, context.encode)
        seconds = context.ttl_seconds if ttl_seconds is DEFAULT_TTL else ttl_to_seconds(ttl_seconds)
        frame = context.codec.encode(encoded, value)
        try:
            await context.backend.set(encoded, frame, seconds, Deadline(context.timeout))
        except CacheUnavailable as error:
            return context.missed(error, False)
        return True

    async def add(
        self,
        key: object,
        value: object,
        ttl_seconds: KeptTtl = DEFAULT_TTL,
        *,
        tags: Iterable[str] | None = None,
        expires_at: When | None = None,
        **unknown: Never,
    ) -> bool:
        """Store ``value`` if there is no entry. Return whether it was stored. As `PyroCacheClient.add`."""
        if unknown:
            raise unknown_argument(self.add, unknown)
        return await self._put(key, value, ttl_seconds, "absent", tags, expires_at)

    async def replace(
        self,
        key: object,
        value: object,
        ttl_seconds: KeptTtl = DEFAULT_TTL,
        *,
        tags: Iterable[str] | None = None,
        expires_at: When | None = None,
        **unknown: Never,
    ) -> bool:
        """Store ``value`` if there is an entry. Return whether it was stored. As `PyroCacheClient.replace`."""
        if unknown:
            raise unknown_argument(self.replace, unknown)
        return await self._put(key, value, ttl_seconds, "present", tags, expires_at)

    async def _put(
        self,
        key: object,
        value: object,
        ttl_seconds: KeptTtl,
        condition: Condition,
        tags: Iterable[str] | None,
        expires_at: When | None = None,
    ) -> bool:
        context = self._context
        ttl, encoded_tags = context.ttl(ttl_seconds, expires_at), context.encode_tags(tags)
        encoded = context.encode_key(key)
        if ttl == 0:
            return await self._put_expired(encoded, condition)
        frame = context.codec.encode(encoded, value)
        put = context.backend.put(encoded, frame, ttl, condition, encoded_tags, context.deadline())
        if isinstance(condition, int):
            # Not a miss if its node is away: False says that another caller has changed the entry.
            return await put
        return await self._answer(put, False)

    async def _put_expired(self, key: bytes, condition: Condition) -> bool:
        """Store an entry that has expired already: remove the one that it replaces. Return whether it was stored."""
        if condition == "absent":
            context = self._context
            return not await self._answer(context.backend.contains(key, context.deadline()), True)
        if condition is None:
            return await self._remove(key, None) is not None
        return await self._remove(key, False, None if isinstance(condition, str) else condition)

    @overload
    async def get(self, key: object, default: None = None, *, touch_seconds: Ttl = None) -> Any | None: ...
    @overload
    async def get(self, key: object, default: _T, *, touch_seconds: Ttl = None) -> Any | _T: ...
    async def get(self, key: object, default: Any = None, *, touch_seconds: Ttl = None) -> Any:
        """Return the value stored under ``key``, or ``default``. As `PyroCacheClient.get`.

        Reads that are made in one turn of the event loop travel together, in one request to each node.
        """
        context = self._context
        encoded = encode_key(key, context.prefix, context.encode)
        touch = None if touch_seconds is None else finite_seconds(touch_seconds)
        try:
            frame = await context.backend.get(encoded, Deadline(context.timeout), touch)
        except CacheUnavailable as error:
            return context.missed(error, default)
        if frame is None:
            return default
        try:
            return context.codec.decode(encoded, frame)  # `ClientContext.read`, inlined for speed
        except SerializationError as error:
            return context.undecodable(error, default)

    async def get_with_version(self, key: object) -> tuple[Any, int] | None:
        """Return the value stored under ``key`` and its version, or None. As `PyroCacheClient.get_with_version`."""
        context = self._context
        encoded = context.encode_key(key)
        found = await self._answer(context.backend.get_with_version(encoded, context.deadline()), None)
        value = MISSING if found is None else context.read(encoded, found[0], MISSING)
        return None if found is None or value is MISSING else (value, found[1])

    async def get_entry(self, key: object) -> Entry | None:
        """Return the value stored under ``key`` with its attributes, or None. As `PyroCacheClient.get_entry`."""
        context = self._context
        encoded = context.encode_key(key)
        found = await self._answer(context.backend.get_entry(encoded, context.deadline()), None)
        value = MISSING if found is None else context.read(encoded, found[0], MISSING)
        return None if found is None or value is MISSING else entry(context, value, found[1], found[2:])

    async def compare_and_set(
        self, key: object, value: object, version: int, ttl_seconds: KeptTtl = ..., **unknown: Never
    ) -> bool:
        """Store ``value`` if the entry still has this ``version``. As `PyroCacheClient.compare_and_set`."""
        if unknown:
            raise unknown_argument(self.compare_and_set, unknown)
        return await self._put(key, value, ttl_seconds, checked_version(version), None)

    @overload
    async def compute(
        self,
        key: object,
        function: Callable[[Any], Awaitable[_T]],
        default: Any = MISSING,
        ttl_seconds: KeptTtl = ...,
    ) -> _T: ...
    @overload
    async def compute(
        self, key: object, function: Callable[[Any], _T], default: Any = MISSING, ttl_seconds: KeptTtl = ...
    ) -> _T: ...
    async def compute(
        self,
        key: object,
        function: Callable[[Any], Any],
        default: Any = MISSING,
        ttl_seconds: KeptTtl = ...,
        **unknown: Never,
    ) -> Any:
        """Replace the value stored under ``key`` by ``function(value)``, atomically. As `PyroCacheClient.compute`.

        ``function`` may be a coroutine function.
        """
        if unknown:
            raise unknown_argument(self.compute, unknown)
        if not callable(function):
            raise brief(TypeError("compute takes a key and a function of its value; set stores a value."))
        return await compute(self._context, key, function, default, ttl_seconds)

    @overload
    async def update(self, entries: SupportsKeysAndGetItem[Any, Any], /, **more: Any) -> None: ...
    @overload
    async def update(self, entries: Iterable[tuple[Any, Any]] = (), /, **more: Any) -> None: ...
    async def update(self, /, *arguments: Any, **named: Any) -> None:
        """Store entries, given as `dict.update` takes them. As `PyroCacheClient.update`."""
        await self.set_many(entries_of(arguments, named))

    async def incr(
        self,
        key: object,
        delta: int = 1,
        default: int | None = 0,
        ttl_seconds: NewTtl = DEFAULT_TTL,
        **unknown: Never,
    ) -> int:
        """Add ``delta`` to the int stored under ``key`` and return the sum. As `PyroCacheClient.incr`."""
        if unknown:
            raise unknown_argument(self.incr, unknown)
        by, start = to_int(delta, "delta"), None if default is None else to_int(default, "default")
        context = self._context
        context.check_counters()
        seconds = context.new_ttl(ttl_seconds)
        encoded = context.encode_key(key)
        begin = None if start is None else pack_int(start)
        frame = await context.backend.incr(encoded, pack_int(by), begin, seconds, context.deadline())
        if frame is None:
            raise KeyError(key)
        return int(context.decode(encoded, frame))

    async def decr(
        self,
        key: object,
        delta: int = 1,
        default: int | None = 0,
        ttl_seconds: NewTtl = DEFAULT_TTL,
        **unknown: Never,
    ) -> int:
        """Subtract ``delta``; as `incr` with ``-delta``."""
        if unknown:
            raise unknown_argument(self.decr, unknown)
        return await self.incr(key, -to_int(delta, "delta"), default, ttl_seconds)

    async def touch(
        self,
        key: object,
        ttl_seconds: NewTtl = DEFAULT_TTL,
        *,
        expires_at: When | None = None,
        **unknown: Never,
    ) -> bool:
        """Set the time to live of an entry. Return whether the entry exists. As `PyroCacheClient.touch`."""
        if unknown:
            raise unknown_argument(self.touch, unknown)
        context = self._context
        seconds = context.touch_ttl(ttl_seconds, expires_at)
        encoded = context.encode_key(key)
        if seconds == 0:
            return await self._remove(encoded, False)
        return await self._answer(context.backend.touch(encoded, seconds, context.deadline()), False)

    @overload
    async def pop(self, key: object) -> Any: ...
    @overload
    async def pop(self, key: object, default: _T) -> Any | _T: ...
    async def pop(self, key: object, default: Any = MISSING) -> Any:
        """Remove the entry and return its value, or ``default``. As `PyroCacheClient.pop`."""
        context = self._context
        encoded = context.encode_key(key)
        frame = await self._answer(context.backend.pop(encoded, context.deadline()), None)
        value = default if frame is None else context.read(encoded, frame, default)
        if value is MISSING:
            raise KeyError(key)
        return value

    @overload
    async def setdefault(
        self, key: object, default: None = None, ttl_seconds: NewTtl = DEFAULT_TTL
    ) -> Any | None: ...
    @overload
    async def setdefault(self, key: object, default: _T, ttl_seconds: NewTtl = DEFAULT_TTL) -> Any | _T: ...
    async def setdefault(
        self, key: object, default: Any = None, ttl_seconds: NewTtl = DEFAULT_TTL, **unknown: Never
    ) -> Any:
        """Return the value stored under ``key``; if there is none, store and return ``default``. Errors as `set`."""
        if unknown:
            raise unknown_argument(self.setdefault, unknown)
        context = self._context
        seconds = context.new_ttl(ttl_seconds)
        encoded = context.encode_key(key)
        frame = context.codec.encode(encoded, default)
        found = await self._answer(
            context.backend.setdefault(encoded, frame, seconds, context.deadline()), None
        )
        return default if found is None else context.decode(encoded, found)

    async def delete(self, key: object, *, if_version: int | None = None) -> bool:
        """Remove the entry. Return whether it existed. As `PyroCacheClient.delete`."""
        version = None if if_version is None else checked_version(if_version)
        return await self._remove(self._context.encode_key(key), False, version)

    async def _remove(self, key: bytes, missed: _T, version: int | None = None) -> bool | _T:
        context = self._context
        try:
            return await context.backend.delete(key, context.deadline(), version)
        except CacheUnavailable as error:
            if version is not None:  # False would say that another caller has changed the entry
                raise
            return context.missed(error, missed)

    async def contains(self, key: object) -> bool:
        """Return whether there is an entry. As `PyroCacheClient.contains`."""
        context = self._context
        return await self._answer(
            context.backend.contains(context.encode_key(key), context.deadline()), False
        )

    async def ttl(self, key: object) -> float | None:
        """Return the seconds until the entry expires, ``math.inf`` if it never does, None if there is no entry."""
        context = self._context
        seconds = await self._answer(context.backend.ttl(context.encode_key(key), context.deadline()), None)
        return None if seconds is None else float(seconds)

    async def _answer(self, answer: Awaitable[_T], missed: Any) -> _T:
        """Return what a method of the backend returns, or ``missed`` if a `CacheUnavailable` counts as a miss."""
        try:
            return await answer
        except CacheUnavailable as error:
            return self._context.missed(error, missed)  # type: ignore[no-any-return]

    # Loading once ----------------------------------------------------------------------------------------

    @overload
    async def get_or_set(
        self,
        key: object,
        factory: Callable[[], Awaitable[_T]],
        ttl_seconds: NewTtl = DEFAULT_TTL,
        *,
        ttl_jitter: float = 0.0,
        stale_seconds: Duration = 0,
        early: float = 0.0,
        wait_seconds: Duration | None = None,
        lease_seconds: Duration = 60,
        tags: Iterable[str] | None = None,
    ) -> _T: ...
    @overload
    async def get_or_set(
        self,
        key: object,
        factory: Callable[[], _T],
        ttl_seconds: NewTtl = DEFAULT_TTL,
        *,
        ttl_jitter: float = 0.0,
        stale_seconds: Duration = 0,
        early: float = 0.0,
        wait_seconds: Duration | None = None,
        lease_seconds: Duration = 60,
        tags: Iterable[str] | None = None,
    ) -> _T: ...
    async def get_or_set(
        self,
        key: object,
        factory: Callable[[], Any],
        ttl_seconds: NewTtl = DEFAULT_TTL,
        *,
        ttl_jitter: float = 0.0,
        stale_seconds: Duration = 0,
        early: float = 0.0,
        wait_seconds: Duration | None = None,
        lease_seconds: Duration = 60,
        tags: Iterable[str] | None = None,
        **unknown: Never,
    ) -> Any:
        """Return the value stored under ``key``; if there is none, load it once. As `PyroCacheClient.get_or_set`.

        ``factory`` may be a coroutine function. A plain function runs in the event loop, which does nothing else
        meanwhile; for one that blocks, pass ``lambda: asyncio.to_thread(function)``. If the coroutine is cancelled
        while it loads, another caller's factory is called at once.
        """
        if unknown:
            raise unknown_argument(self.get_or_set, unknown)
        __tracebackhide__ = True  # the factory's exceptions
        if not callable(factory):
            raise brief(
                TypeError(
                    "get_or_set takes a function that makes the value, and calls it if there is none; "
                    "setdefault takes a value."
                )
            )
        context = self._context
        # All arguments are checked before the factory can run.
        ttl = context.new_ttl(ttl_seconds)
        options = load_options(ttl, stale_seconds, early, wait_seconds, lease_seconds, ttl_jitter)
        encoded, encoded_tags = context.encode_key(key), context.encode_tags(tags)
        return await load_once.get_or_set(Load(context, encoded, factory, options, lambda: encoded_tags))

    def memoize(
        self,
        ttl_seconds: NewTtl = DEFAULT_TTL,
        *,
        ttl_jitter: float = 0.0,
        key: Callable[..., object] | None = None,
        ignore: Iterable[str] = (),
        cache_if: Callable[[Any], object] | None = None,
        typed: bool = False,
        tags: Tags = None,
        name: str | None = None,
        stale_seconds: Duration = 0,
        early: float = 0.0,
        wait_seconds: Duration | None = None,
        lease_seconds: Duration = 60,
        **unknown: Never,
    ) -> AsyncMemoizer:
        """Cache the results of an ``async def`` function: ``@cache.memoize(ttl_seconds=60)``.

        Arguments and errors as for `PyroCacheClient.memoize`. ``.invalidate(...)`` and ``.refresh(...)`` of the
        decorated function are coroutines.
        """
        if unknown:
            raise unknown_argument(self.memoize, unknown)
        if callable(ttl_seconds):
            raise brief(TypeError("memoize is called to decorate a function: @cache.memoize()"))
        if isinstance(ignore, str):
            raise brief(TypeError("ignore is a list of names, not one name."))
        ttl = self._context.new_ttl(ttl_seconds)
        options = load_options(ttl, stale_seconds, early, wait_seconds, lease_seconds, ttl_jitter)
        return AsyncMemoizer(self._context, options, key, frozenset(ignore), cache_if, typed, tags, name)

    # Locks -----------------------------------------------------------------------------------------------

    def lock(
        self,
        name: object,
        ttl_seconds: Duration = 30,
        *,
        wait_seconds: Duration | None = None,
        thread_local: bool = True,
        **unknown: Never,
    ) -> AsyncLock:
        """Return a lock that at most one task of all processes and hosts holds: ``async with cache.lock("report"):``.

        Arguments, promise and errors as for `PyroCacheClient.lock`, with tasks in place of threads.
        """
        if unknown:
            raise unknown_argument(self.lock, unknown)
        return AsyncLock(self._context, name, 1, ttl_seconds, wait_seconds, thread_local)

    def semaphore(
        self,
        name: object,
        n: int,
        ttl_seconds: Duration = 30,
        *,
        wait_seconds: Duration | None = None,
        thread_local: bool = True,
        **unknown: Never,
    ) -> AsyncLock:
        """Return a semaphore with ``n`` permits, one for each holder. As `PyroCacheClient.semaphore`."""
        if unknown:
            raise unknown_argument(self.semaphore, unknown)
        return AsyncLock(self._context, name, n, ttl_seconds, wait_seconds, thread_local)

    # Many keys -------------------------------------------------------------------------------------------

    async def get_many(self, keys: Iterable[object], *, progress: bool | None = None) -> dict[Any, Any]:
        """Return the values of those ``keys`` that have an entry, by key. As `PyroCacheClient.get_many`."""
        return await bulk.get_many(self._context, keys, progress)

    async def get_entries(self, keys: Iterable[object]) -> dict[Any, Entry]:
        """Return `get_entry` of those ``keys`` that have an entry, by key. As `PyroCacheClient.get_entries`."""
        return await bulk.get_entries(self._context, keys)

    async def set_many(
        self,
        mapping: Mapping[Any, Any],
        ttl_seconds: KeptTtl = DEFAULT_TTL,
        *,
        tags: Iterable[str] | None = None,
        expires_at: When | None = None,
        ttl_jitter: float = 0.0,
        progress: bool | None = None,
        **unknown: Never,
    ) -> int:
        """Store every entry of ``mapping``. Return how many were stored. As `PyroCacheClient.set_many`."""
        if unknown:
            raise unknown_argument(self.set_many, unknown)
        return await bulk.make(
            self._context,
            Change.set_many(self._context, mapping, ttl_seconds, tags, expires_at, ttl_jitter),
            progress,
        )

    async def delete_many(self, keys: Iterable[object], *, progress: bool | None = None) -> int:
        """Remove the entries of ``keys``. Return how many existed. As `PyroCacheClient.delete_many`."""
        return await bulk.make(self._context, Change.delete_many(self._context, keys), progress)

    async def touch_many(
        self,
        keys: Iterable[object],
        ttl_seconds: NewTtl = DEFAULT_TTL,
        *,
        expires_at: When | None = None,
        **unknown: Never,
    ) -> int:
        """Set the time to live of the entries of ``keys``. Return how many exist. As `PyroCacheClient.touch_many`."""
        if unknown:
            raise unknown_argument(self.touch_many, unknown)
        return await bulk.make(self._context, Change.touch_many(self._context, keys, ttl_seconds, expires_at))

    # The whole namespace ---------------------------------------------------------------------------------

    def namespace(
        self,
        name: str,
        *,
        ttl_seconds: NewTtl = DEFAULT_TTL,
        counters: bool | None = None,
        **unknown: Never,
    ) -> Self:
        """Return a client for a namespace, which shares this client's connections. As `PyroCacheClient.namespace`."""
        if unknown:
            raise unknown_argument(self.namespace, unknown)
        return self._of(self._context.namespace(name, ttl_seconds, counters))

    async def invalidate_tag(self, tag: str) -> int:
        """Remove every entry with ``tag``. Return how many there were. As `PyroCacheClient.invalidate_tag`."""
        context = self._context
        return await self._total(context.backend.invalidate_tag(context.encode_tag(tag), context.deadline()))

    async def clear(self) -> int:
        """Remove every entry of this namespace. Return how many there were. As `PyroCacheClient.clear`."""
        context = self._context
        return await self._total(context.backend.clear(context.prefix, context.deadline()))

    async def delete_prefix(self, prefix: str | tuple[Any, ...], *, progress: bool | None = None) -> int:
        """Remove the entries whose keys begin with ``prefix``. As `PyroCacheClient.delete_prefix`."""
        return await scan.delete_prefix(self._context, prefix, progress)

    @overload
    def scan(
        self,
        prefix: str | tuple[Any, ...] | None = None,
        batch: int = MAX_BATCH,
        *,
        tag: str | None = None,
        details: Literal[False] = False,
        progress: bool | None = None,
    ) -> AsyncScan[Any]: ...
    @overload
    def scan(
        self,
        prefix: str | tuple[Any, ...] | None = None,
        batch: int = MAX_BATCH,
        *,
        tag: str | None = None,
        details: Literal[True],
        progress: bool | None = None,
    ) -> AsyncScan[EntryInfo]: ...
    @overload
    def scan(
        self,
        prefix: str | tuple[Any, ...] | None = None,
        batch: int = MAX_BATCH,
        *,
        tag: str | None = None,
        details: bool,
        progress: bool | None = None,
    ) -> AsyncScan[Any]: ...
    def scan(
        self,
        prefix: str | tuple[Any, ...] | None = None,
        batch: int = MAX_BATCH,
        *,
        tag: str | None = None,
        details: bool = False,
        progress: bool | None = None,
    ) -> AsyncScan[Any]:
        """Iterate over the keys of this namespace: ``async for key in cache.scan()``. As `PyroCacheClient.scan`."""
        encoded = None if tag is None else self._context.encode_tag(tag)
        if details:
            return scan.details(self._context, prefix, batch, encoded, progress)
        return scan.scan(self._context, prefix, batch, encoded, progress)

    def __aiter__(self) -> AsyncScan[Any]:
        return self.keys()

    def keys(self) -> AsyncScan[Any]:
        """Iterate over the keys of this namespace, as `scan` does."""
        return scan.scan(self._context)

    def items(self, *, progress: bool | None = None) -> AsyncScan[tuple[Any, Any]]:
        """Iterate over keys and values. Values are fetched page by page during iteration."""
        return scan.items(self._context, progress)

    def values(self, *, progress: bool | None = None) -> AsyncScan[Any]:
        """Iterate over the values. They are fetched page by page during iteration."""
        return scan.values(self._context, progress)

    async def popitem(self) -> tuple[Any, Any]:
        """Remove some entry and return its key and value. As `PyroCacheClient.popitem`."""
        return await scan.pop_any(self._context)

    async def size(self) -> int:
        """Return the number of entries in this namespace, over all nodes: ``len`` of the blocking client."""
        context = self._context
        return await self._total(context.backend.count(context.prefix, None, context.deadline()))

    # The cluster -----------------------------------------------------------------------------------------

    async def nodes(self) -> list[Member]:
        """Return the nodes that share the keys, as the name server lists them now."""
        return list(await self._context.backend.nodes(self._context.deadline()))

    async def node_for(self, key: object) -> Member:
        """Return the node that owns ``key``."""
        context = self._context
        return await context.backend.owner(context.encode_key(key), context.deadline())

    async def ping(self) -> int:
        """Return the number of nodes, once each of them has answered that it serves. As `PyroCacheClient.ping`."""
        return number_serving(await self._context.backend.ping(self._context.deadline()))

    async def stats(self) -> Stats:
        """Return the statistics of every node, their sums, and those of this client. As `PyroCacheClient.stats`."""
        context = self._context
        return stats_of(context, await context.backend.stats(context.deadline()))

    async def hot_keys(self, count: int = 10, *, seconds: float = 1.0) -> list[HotKey]:
        """Return the keys of this namespace that are used most often now. As `PyroCacheClient.hot_keys`."""
        return await hot_keys(self._context, count, seconds)

    async def reset_stats(self) -> None:
        """Set the counters of every node and of this client to 0, except ``loads``. Gauges do not change."""
        context = self._context
        await self._total(context.backend.reset_stats(context.deadline()))
        context.reset_figures()

    async def _total(self, answers: Awaitable[Answers]) -> int:
        """Return the sum of the nodes' answers. ``on_error`` decides whether a `CacheUnavailable` is raised."""
        total = 0
        try:
            answered = await answers
        except CacheUnavailable as error:
            return self._context.missed(error, 0)
        for _, answer in answered:
            if isinstance(answer, NodeUnavailable):
                self._context.missed(answer, None)
            else:
                total += answer
        return total

    # Life ------------------------------------------------------------------------------------------------

    async def disconnect(self) -> None:
        """Close the connections when the calls under way have ended; the next call connects again.

        Held locks stay held, and loads go on. A client and its namespaces share their connections.
        """
        self._context.disconnect()

    async def close(self) -> None:
        """Close the connections. Calls under way, and every later call, raise `ClientClosed`."""
        self._context.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        config = self._context.config
        path = f" namespace={path_text(config.namespace)}" if config.namespace else ""
        return (
            f"<AsyncPyroCacheClient {config.nameserver!r}{path}{' closed' if self._context.closed else ''}>"
        )

    def __getstate__(self) -> ClientConfig:
        return self._context.config  # connections do not pickle; a copy connects on its first use

    def __setstate__(self, config: ClientConfig) -> None:
        self._context = ClientContext(config, AsyncBackend.of(config))


hide_unknown(AsyncPyroCacheClient)
