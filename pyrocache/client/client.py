"""`PyroCacheClient`: the public methods of the cache.

A thin facade: it checks and encodes arguments, sends a command through the `Backend` of its `ClientContext`, decodes
the answer and applies ``on_error``. Methods that need more than one command are in ``features/``. A client is
picklable and connects on first use. Only held locks start a thread, see ``features/locks.py``. Memoized coroutines use
the asyncio client.

Thread safety: thread-safe, and usable in a child process after a fork.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Never, Self, TypeVar, overload

from pyrocache.client.backend import Answers, Backend, Condition
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
from pyrocache.client.features import bulk, load_once, scan
from pyrocache.client.features.bulk import Change
from pyrocache.client.features.load_once import Load, load_options
from pyrocache.client.features.scan import Items, Values
from pyrocache.client.hints import hide_unknown, unknown_argument
from pyrocache.client.keys.encoding import encode_key
from pyrocache.client.keys.format import path_text
from pyrocache.client.nodes import Nodes
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
from pyrocache.display.shown import Shown
from pyrocache.errors import CacheUnavailable, NodeUnavailable, SerializationError
from pyrocache.late_imports import at_first_use
from pyrocache.net.deadline import Deadline
from pyrocache.protocol.int_frame import pack_int
from pyrocache.protocol.limits import MAX_BATCH
from pyrocache.runtime.throttle import Throttle
from pyrocache.tracebacks import brief

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem

    from pyrocache.client.features.entries import Entry, EntryInfo
    from pyrocache.client.features.hot_keys import HotKey
    from pyrocache.client.features.locks import Lock
    from pyrocache.client.features.memoize import Memoizer, Tags
    from pyrocache.client.features.watch import LiveView
    from pyrocache.client.stats import Stats
    from pyrocache.display.card import Card

_T = TypeVar("_T")

_warnings = Throttle(math.inf)


class PyroCacheClient(Shown, MutableMapping[Any, Any]):
    """A cache of Python objects in the memory of several node processes, with the interface of a dict.

    Arguments that are None, or left out, are taken from the user's settings: a variable such as
    ``$PYROCACHE_CLIENT_TIMEOUT``, or the file ``pyrocache.toml`` (the guide has the rules). Else they have the default
    that is said here.

    Args:
        nameserver: ``host:port`` of the name server; by default ``127.0.0.1:9090``.
        namespace: the namespace of this client's keys, a name or a path of names; see `namespace`.
        timeout: seconds that a call may take, including queries of the name server, connecting and retries. It does not
            include the time that a call waits for another caller, and applies to each page of a scan separately. By
            default 5.
        on_error: what to do on a `CacheUnavailable` error: `NameServerUnavailable`, `NoNodes`, `NodeUnavailable` or
            `Overloaded`. ``"raise"``, the default, raises it; ``"miss"`` counts and logs it, and returns what a miss
            returns. No other error becomes a miss. Locks, `compute`, `compare_and_set`, ``if_version``, `incr`, `decr`,
            `ping`, `nodes`, `node_for` and `stats` always raise it.
        transport: ``"auto"``, the default, connects to nodes on this host over their Unix sockets; ``"tcp"`` never
            does.
        ttl_seconds: the time to live of entries that are stored without one, in seconds or as a timedelta; by default,
            and with ``math.inf``, they do not expire. It applies where a method's ``ttl_seconds`` is `DEFAULT_TTL`;
            None there means no expiry.
        serializer: how values other than None, bool, int, float, str and bytes are stored: ``"pickle"``, the default,
            ``"msgpack"`` or ``"json"``. The last two carry plain values only and never run code that a stored value
            contains. All clients that share entries must use the same one.
        codec: an object with ``dumps(obj) -> bytes`` and ``loads(bytes) -> obj``, used instead of ``serializer`` for
            all values but ints. It is pickled with the client.
        allowed_classes: the classes and functions, or their names like ``"module.Class"``, that stored values and keys
            may refer to; others raise `SerializationError` when they are read. By default, pickle is not restricted.
            Values of builtin types are always allowed.
        compress_above: compress values (with zlib) whose stored form has more bytes than this, a number or like
            ``"64KiB"``; by default never.
        on_undecodable: what a read does with a stored key or value that does not decode in this process, because its
            class was renamed, for example. ``"raise"``, the default, raises; ``"miss"`` counts and logs it, and behaves
            as if there were no such entry. `compute`, `incr` and `setdefault` always raise.
        signing_key_file: the path of a file of signing keys, which ``pyrocache secret --secret-file PATH`` makes.
            Values are signed with its first key; a value that none of its keys has signed for its key and namespace
            raises `TamperedValue` before anything of it is decoded. All clients that share entries need the same keys.
            The file is read once, and a pickled client has its path.
        counters: with a signing key, store and read ints without signatures, so that `incr` and `decr` work. A node
            can then forge ints, and nothing else. It has no effect without a signing key. By default False.
        secret_file: the path of the secret file, by which name server, nodes and clients recognize each other; by
            default the one of this user, which is made if there is none. A pickled client has its path.
        tls: how TCP connections are protected: `TLS` for TLS on all of them; by default none, which only works
            with servers on this host; False for none, although whoever is on the path can read and change values.
        authenticate: False to use nodes that do not know the secret, such as a stock Pyro5 daemon; only with a name
            server on this host. Whoever is at their addresses can run code in this process.

    Keys and values are any picklable objects. Two keys are the same if they are equal, as in a dict; the guide lists
    the exceptions. An entry expires when its time to live is over, by its node's clock.

    The node that owns an entry executes each change of it atomically, so concurrent callers do not undo each other's
    changes. A change whose reply was lost is not executed twice: the node is asked for its outcome. If that cannot be
    found out, the call raises `MayHaveBeenDone`, a `NodeUnavailable`: the change may have been executed, or may be
    until the timeout of the call has passed, but not later.

    Methods that take ``progress`` show a progress bar with True, and none with False. By default, they show one if they
    take longer than a second and a person is looking: in a notebook, in IPython, or in a Python prompt at a terminal,
    in the main thread, unless a bar of tqdm is there already. This needs tqdm: ``pip install 'pyrocache[jupyter]'``.

    As a mapping, a client holds the entries of its namespace: `len`, iteration, ``==`` and ``bool`` query all nodes. It
    is not hashable.

    As ``on_error`` says, every method raises `NameServerUnavailable` or `NoNodes` until nodes have been found, and
    `NodeUnavailable`. It raises `InvalidKey` or `KeyTooLarge` for an object that cannot be a key, and `ClientClosed`
    after `close`.

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
        )
        self._context = ClientContext(config, Backend.of(config))

    @classmethod
    def _of(cls, context: ClientContext) -> Self:
        """Return the client of a context, which may have any backend."""
        client = object.__new__(cls)  # `__init__` would create a backend
        client._context = context
        return client

    # One key ---------------------------------------------------------------------------------------------

    def set(
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
        """Store ``value`` under ``key``.

        Args:
            ttl_seconds: the time to live, in seconds or as a timedelta; None for no expiry, ``...`` to keep the expiry
                of the entry that is replaced. By default, and for a new entry with ``...``, that of the client.
            tags: names by which `invalidate_tag` finds the entry. They replace those of the old entry, unless
                ``ttl_seconds`` is ``...`` and this is None: then the entry keeps its tags.
            if_version: store only if the entry has this version, from `get_with_version`.
            expires_at: when the entry expires, in place of ``ttl_seconds``: an aware datetime, or seconds since the
                epoch. If that time has passed, the entry that would be replaced is removed, and the value is not sent.

        Returns:
            True if it was stored. False if the version differs, or if the node is unreachable, ``on_error`` is
            ``"miss"`` and there is no ``if_version``.

        Raises:
            ValueError, TypeError: ``ttl_seconds`` is not above 0 or not a duration, or another argument is not valid.
            SerializationError: the value does not pickle; nothing was sent.
            ValueTooLarge: the node does not accept a value of that size; the old value is kept.
        """
        if unknown:
            raise unknown_argument(self.set, unknown)
        # The plain write below is the most frequent one. It does not go through `_put`, which saves function calls.
        if tags is not None or if_version is not None or ttl_seconds is ... or expires_at is not None:
            condition = None if if_version is None else checked_version(if_version)
            return self._put(key, value, ttl_seconds, condition, tags, expires_at)
        context = self._context
        encoded = encode_key(key, context.prefix, context.encode)
        seconds = context.ttl_seconds if ttl_seconds is DEFAULT_TTL else ttl_to_seconds(ttl_seconds)
        frame = context.codec.encode(encoded, value)
        try:
            context.backend.set(encoded, frame, seconds, Deadline(context.timeout))
        except CacheUnavailable as error:
            return context.missed(error, False)
        return True

    def add(
        self,
        key: object,
        value: object,
        ttl_seconds: KeptTtl = DEFAULT_TTL,
        *,
        tags: Iterable[str] | None = None,
        expires_at: When | None = None,
        **unknown: Never,
    ) -> bool:
        """Store ``value`` if there is no entry. Return whether it was stored. Arguments and errors as for `set`."""
        if unknown:
            raise unknown_argument(self.add, unknown)
        return self._put(key, value, ttl_seconds, "absent", tags, expires_at)

    def replace(
        self,
        key: object,
        value: object,
        ttl_seconds: KeptTtl = DEFAULT_TTL,
        *,
        tags: Iterable[str] | None = None,
        expires_at: When | None = None,
        **unknown: Never,
    ) -> bool:
        """Store ``value`` if there is an entry. Return whether it was stored. Arguments and errors as for `set`."""
        if unknown:
            raise unknown_argument(self.replace, unknown)
        return self._put(key, value, ttl_seconds, "present", tags, expires_at)

    def _put(
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
            return self._put_expired(encoded, condition)
        frame = context.codec.encode(encoded, value)
        if isinstance(condition, int):
            # Not a miss if its node is away: False says that another caller has changed the entry.
            return context.backend.put(encoded, frame, ttl, condition, encoded_tags, context.deadline())
        return self._answer(context.backend.put, encoded, False, frame, ttl, condition, encoded_tags)

    def _put_expired(self, key: bytes, condition: Condition) -> bool:
        """Store an entry that has expired already: remove the one that it replaces. Return whether it was stored."""
        if condition == "absent":
            return not self._answer(self._context.backend.contains, key, True)
        if condition is None:
            return self._remove(key, None) is not None
        return self._remove(key, False, None if isinstance(condition, str) else condition)

    @overload
    def get(self, key: object, default: None = None, *, touch_seconds: Ttl = None) -> Any | None: ...
    @overload
    def get(self, key: object, default: _T, *, touch_seconds: Ttl = None) -> Any | _T: ...
    def get(self, key: object, default: Any = None, *, touch_seconds: Ttl = None) -> Any:
        """Return the value stored under ``key``, or ``default`` if there is none or it has expired.

        Args:
            touch_seconds: set the time to live of the entry, if there is one, counted from now (sliding expiry).

        Raises:
            SerializationError: the value does not unpickle here, and ``on_undecodable`` is ``"raise"``.
            CorruptValue: likewise, because the stored bytes are not a value frame of pyrocache.
            TamperedValue: likewise, because this client's signing key has not signed it.
        """
        context = self._context
        encoded = encode_key(key, context.prefix, context.encode)
        try:
            if touch_seconds is None:
                frame = context.backend.get(encoded, Deadline(context.timeout))
            else:
                frame = context.backend.get(encoded, context.deadline(), finite_seconds(touch_seconds))
        except CacheUnavailable as error:
            return context.missed(error, default)
        if frame is None:
            return default
        try:
            return context.codec.decode(encoded, frame)  # `ClientContext.read`, inlined for speed
        except SerializationError as error:
            return context.undecodable(error, default)

    def get_with_version(self, key: object) -> tuple[Any, int] | None:
        """Return the value stored under ``key`` and its version, for `compare_and_set`, or None if there is no entry.

        Every write of a value gives the entry a new version, which is never reused for this key. `touch` keeps the
        version.
        """
        context = self._context
        encoded = context.encode_key(key)
        found = self._answer(context.backend.get_with_version, encoded, None)
        value = MISSING if found is None else context.read(encoded, found[0], MISSING)
        return None if found is None or value is MISSING else (value, found[1])

    def get_entry(self, key: object) -> Entry | None:
        """Return the value stored under ``key`` with its version, time to live, tags, age and size, or None.

        Does not count as a use of the entry for eviction, nor in `stats`.

        Raises:
            SerializationError, CorruptValue: as `get`.
        """
        with at_first_use:
            from pyrocache.client.features.entries import entry  # imported here: its dataclasses take 1 ms
        context = self._context
        encoded = context.encode_key(key)
        found = self._answer(context.backend.get_entry, encoded, None)
        value = MISSING if found is None else context.read(encoded, found[0], MISSING)
        return None if found is None or value is MISSING else entry(context, value, found[1], found[2:])

    def compare_and_set(
        self, key: object, value: object, version: int, ttl_seconds: KeptTtl = ..., **unknown: Never
    ) -> bool:
        """Store ``value`` if the entry still has this ``version``. Return whether it was stored.

        By default the entry keeps its expiry and its tags; with another ``ttl_seconds`` it has no tags.
        """
        if unknown:
            raise unknown_argument(self.compare_and_set, unknown)
        return self._put(key, value, ttl_seconds, checked_version(version), None)

    def compute(
        self,
        key: object,
        function: Callable[[Any], _T],
        default: Any = MISSING,
        ttl_seconds: KeptTtl = ...,
        **unknown: Never,
    ) -> _T:
        """Replace the value stored under ``key`` by ``function(value)``, atomically: no caller's change is lost.

        If another caller has changed the entry meanwhile, this starts over, so ``function`` may run several times. It
        runs in the caller's thread, and its run time does not count towards the timeout. By default the entry keeps its
        expiry and its tags; with another ``ttl_seconds`` it has no tags.

        Args:
            default: given to ``function`` if there is no entry.

        Returns:
            The new value.

        Raises:
            CacheUnavailable: the node is unreachable, whatever ``on_error`` says.
            KeyError: there is no entry, and no ``default``.
            Conflict: other callers changed the entry during every attempt, until the timeout.
            SerializationError, ValueTooLarge: as `set`.
        """
        if unknown:
            raise unknown_argument(self.compute, unknown)
        if not callable(function):
            raise brief(TypeError("compute takes a key and a function of its value; set stores a value."))
        with at_first_use:
            from pyrocache.client.features.compute import compute  # imported here: few programs need it
        return compute(self._context, key, function, default, ttl_seconds)

    @overload
    def update(self, entries: SupportsKeysAndGetItem[Any, Any], /, **more: Any) -> None: ...
    @overload
    def update(self, entries: Iterable[tuple[Any, Any]] = (), /, **more: Any) -> None: ...
    def update(self, /, *arguments: Any, **named: Any) -> None:
        """Store entries, given as `dict.update` takes them; as `set_many` does.

        Raises:
            TypeError: these are not entries. `compute` changes one entry by a function.
        """
        self.set_many(entries_of(arguments, named))

    def incr(
        self,
        key: object,
        delta: int = 1,
        default: int | None = 0,
        ttl_seconds: NewTtl = DEFAULT_TTL,
        **unknown: Never,
    ) -> int:
        """Add ``delta`` to the int stored under ``key`` and return the sum. Ints may have up to 64 KiB, 157,000 digits.

        Args:
            default: what ``delta`` is added to if there is no entry; None to raise `KeyError`.
            ttl_seconds: the time to live of a new entry; one that exists keeps its own.

        Returns:
            The new value.

        Raises:
            CacheUnavailable: the node is unreachable, whatever ``on_error`` says.
            KeyError: there is no entry, and ``default`` is None.
            NotAnInt: the value is not an int; it is unchanged.
            ValueTooLarge: an int has more than 64 KiB.
            TypeError: ``delta`` or ``default`` is not an int.
            ConfigurationError: the client has a signing key, and not ``counters=True``.
        """
        if unknown:
            raise unknown_argument(self.incr, unknown)
        by, start = to_int(delta, "delta"), None if default is None else to_int(default, "default")
        context = self._context
        context.check_counters()
        seconds = context.new_ttl(ttl_seconds)
        encoded = context.encode_key(key)
        begin = None if start is None else pack_int(start)
        frame = context.backend.incr(encoded, pack_int(by), begin, seconds, context.deadline())
        if frame is None:
            raise KeyError(key)
        return int(context.decode(encoded, frame))

    def decr(
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
        return self.incr(key, -to_int(delta, "delta"), default, ttl_seconds)

    def touch(
        self,
        key: object,
        ttl_seconds: NewTtl = DEFAULT_TTL,
        *,
        expires_at: When | None = None,
        **unknown: Never,
    ) -> bool:
        """Set the time to live of an entry, counted from now (None: no expiry). Return whether the entry exists.

        Args:
            expires_at: as for `set`; a time that has passed removes the entry.
        """
        if unknown:
            raise unknown_argument(self.touch, unknown)
        context = self._context
        seconds = context.touch_ttl(ttl_seconds, expires_at)
        encoded = context.encode_key(key)
        if seconds == 0:
            return self._remove(encoded, False)
        return self._answer(context.backend.touch, encoded, False, seconds)

    @overload
    def pop(self, key: object) -> Any: ...
    @overload
    def pop(self, key: object, default: _T) -> Any | _T: ...
    def pop(self, key: object, default: Any = MISSING) -> Any:
        """Remove the entry and return its value; if there is none, return ``default`` or raise `KeyError`.

        Raises:
            KeyError: there is no entry, and no ``default``.
            SerializationError: the value does not unpickle here, and ``on_undecodable`` is ``"raise"``. The entry is
                removed nevertheless.
        """
        context = self._context
        encoded = context.encode_key(key)
        frame = self._answer(context.backend.pop, encoded, None)
        value = default if frame is None else context.read(encoded, frame, default)
        if value is MISSING:
            raise KeyError(key)
        return value

    @overload
    def setdefault(
        self, key: object, default: None = None, ttl_seconds: NewTtl = DEFAULT_TTL
    ) -> Any | None: ...
    @overload
    def setdefault(self, key: object, default: _T, ttl_seconds: NewTtl = DEFAULT_TTL) -> Any | _T: ...
    def setdefault(
        self, key: object, default: Any = None, ttl_seconds: NewTtl = DEFAULT_TTL, **unknown: Never
    ) -> Any:
        """Return the value stored under ``key``; if there is none, store and return ``default``. Errors as `set`."""
        if unknown:
            raise unknown_argument(self.setdefault, unknown)
        context = self._context
        seconds = context.new_ttl(ttl_seconds)
        encoded = context.encode_key(key)
        frame = context.codec.encode(encoded, default)
        found = self._answer(context.backend.setdefault, encoded, None, frame, seconds)
        return default if found is None else context.decode(encoded, found)

    def delete(self, key: object, *, if_version: int | None = None) -> bool:
        """Remove the entry. Return whether it existed.

        Not retried once the request was sent: after a `NodeUnavailable` the entry may or may not be removed.

        Args:
            if_version: remove the entry only if it has this version; return whether it was removed.
        """
        version = None if if_version is None else checked_version(if_version)
        return self._remove(self._context.encode_key(key), False, version)

    def _remove(self, key: bytes, missed: _T, version: int | None = None) -> bool | _T:
        context = self._context
        try:
            return context.backend.delete(key, context.deadline(), version)
        except CacheUnavailable as error:
            if version is not None:  # False would say that another caller has changed the entry
                raise
            return context.missed(error, missed)

    def contains(self, key: object) -> bool:
        """Return whether there is an entry. Does not count as a use of it for eviction, nor in `stats`."""
        return self._answer(self._context.backend.contains, self._context.encode_key(key), False)

    def ttl(self, key: object) -> float | None:
        """Return the seconds until the entry expires, ``math.inf`` if it never does, None if there is no entry."""
        seconds = self._answer(self._context.backend.ttl, self._context.encode_key(key), None)
        return None if seconds is None else float(seconds)

    def _answer(self, method: Callable[..., _T], key: bytes, missed: Any, *arguments: Any) -> _T:
        """Return what a method of the backend returns, or ``missed`` if a `CacheUnavailable` counts as a miss."""
        try:
            return method(key, *arguments, self._context.deadline())
        except CacheUnavailable as error:
            return self._context.missed(error, missed)  # type: ignore[no-any-return]

    # Loading once ----------------------------------------------------------------------------------------

    def get_or_set(
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
        **unknown: Never,
    ) -> _T:
        """Return the value stored under ``key``; if there is none, call ``factory()``, store its result and return it.

        When callers in several threads, processes or hosts request a missing key at the same time, one of them calls
        its factory and the rest wait for the value. If the factory raises, its caller gets the exception, and another
        caller's factory is called. Another caller's factory is also called if the loading process ends. A loaded value
        is returned but not stored if the key was set or deleted meanwhile, or one of ``tags`` invalidated, because it
        may be outdated.

        A loaded value is always returned. If it cannot be stored, because it does not pickle, is too large, or its node
        or the client is gone, this is counted (`ClientStats.loads_not_stored`) and logged once per function. A stored
        value that does not decode in this process is loaded anew and replaced.

        Args:
            ttl_seconds, tags: of the stored value, as for `set`, without ``...``.
            ttl_jitter: as for `set_many`.
            stale_seconds: how long after its expiry a value is still returned to other callers while one caller loads a
                new one.
            early: refresh a value before it expires. Each caller does so with a probability that grows as the expiry
                approaches, and with the time that loading takes (XFetch). 1.0 is a good choice; larger values
                refresh earlier. If the factory raises during a refresh, the existing value is returned.
            wait_seconds: how long to wait for another caller; None for no limit, 0 for not at all.
            lease_seconds: how long a factory may take before another caller's is called too.

        Raises:
            WaitTimeout: another caller was still loading after ``wait_seconds``.
            LoadDeadlock: called by a factory, for a value whose load in this process waits for that factory.
            CacheUnavailable: the node is unreachable. With ``on_error="miss"`` the factory is called, and its value is
                returned but not stored.
            TypeError: ``factory`` is not callable.
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
        return load_once.get_or_set(Load(context, encoded, factory, options, lambda: encoded_tags))

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
    ) -> Memoizer:
        """Cache a function's results: ``@cache.memoize(ttl_seconds=60)``. Loads as `get_or_set` does.

        For functions, methods and ``async def`` functions; the event loop is never blocked. Put it above or below
        ``@staticmethod`` and ``@classmethod``. The decorated function has ``.invalidate(...)``, ``.refresh(...)`` and
        ``.key(...)``, each called with the function's own arguments, and ``.original``.

        The key of a result is the function's identity and its arguments, defaults included, however they are passed.
        The identity is the module, the qualified name, and a digest of the bytecode and of the variables of enclosing
        functions that the function refers to, as they are at the first call. What a global name refers to, and a
        variable that changes later, are not noticed: include them with ``key``. Arguments may be any picklable objects
        of any size; large ones are compared by a digest.

        Args:
            key: called with all arguments, by position and defaults included; its result replaces them in the key.
            ignore: names of arguments that are left out of the key, like ``("self",)``. Otherwise a method's
                ``self`` is part of the key, encoded like any key.
            cache_if: called with a result; the result is stored if this returns true. If it raises, the result is
                returned but not stored, as one that cannot be stored.
            typed: whether equal arguments of different types, like 1 and 1.0, have separate results.
            tags: the tags of the results, or a function that returns them, called like ``key``.
            name: the identity of the function, in place of the above. Functions of one name share their results.
            ttl_seconds, ttl_jitter, stale_seconds, early, wait_seconds, lease_seconds: as for `get_or_set`.

        Raises, when the decorated function is called: as `get_or_set`; `InvalidKey` if an argument does not pickle, or
        if an enclosing variable does not and there is neither ``key`` nor ``name``.
        """
        if unknown:
            raise unknown_argument(self.memoize, unknown)
        if callable(ttl_seconds):
            raise brief(TypeError("memoize is called to decorate a function: @cache.memoize()"))
        if isinstance(ignore, str):
            raise brief(TypeError("ignore is a list of names, not one name."))
        ttl = self._context.new_ttl(ttl_seconds)
        options = load_options(ttl, stale_seconds, early, wait_seconds, lease_seconds, ttl_jitter)
        with at_first_use:
            from pyrocache.client.features.memoize import (
                Memoizer,  # imported here: not every program memoizes
            )
        return Memoizer(self._context, options, key, frozenset(ignore), cache_if, typed, tags, name)

    # Locks -----------------------------------------------------------------------------------------------

    def lock(
        self,
        name: object,
        ttl_seconds: Duration = 30,
        *,
        wait_seconds: Duration | None = None,
        thread_local: bool = True,
        **unknown: Never,
    ) -> Lock:
        """Return a lock that at most one thread of all processes and hosts holds: ``with cache.lock("report"): ...``.

        It has the methods of `threading.Lock`: ``acquire(blocking, timeout)``, ``release()`` and ``locked()``.

        A held lock is renewed in the background. It is free at once when the holder releases it or its process ends. A
        holder that cannot renew the lock, because its host has failed or its process is suspended, loses the lock after
        ``ttl_seconds``.

        The promise: while the node that owns the name runs and the cluster view does not change, there is at most one
        holder whose ``ttl_seconds`` are not over. A node keeps its locks in memory, in one copy. If the node ends, or
        if nodes join or leave so that another node owns the name, the lock is free, although its holder notices this
        only after up to a third of ``ttl_seconds``. So a lock avoids duplicate work. Where duplicate work would do
        harm, pass the fencing token `Lock.token` to the protected resource, and let the resource refuse a token smaller
        than one that it has seen. Fencing tokens only grow, provided that the clocks of the nodes agree.

        Args:
            name: any key. A lock and an entry of the same name are independent.
            ttl_seconds: as above, in seconds or as a timedelta.
            wait_seconds: how long to wait for it; None for no limit, 0 for not at all.
            thread_local: whether each thread that uses the object acquires and releases for itself. If it is False, the
                object is the owner, and any thread or coroutine may release what another one has acquired.

        Raises, when it is acquired: `LockTimeout` (``acquire`` returns False instead); `NodeUnavailable`, independent
        of ``on_error``. When it is released:
        `LockLost` if it was lost before or its node does not answer, unless the body of a ``with`` has raised an
        exception.
        """
        if unknown:
            raise unknown_argument(self.lock, unknown)
        return self._lock(name, 1, ttl_seconds, wait_seconds, thread_local)

    def semaphore(
        self,
        name: object,
        n: int,
        ttl_seconds: Duration = 30,
        *,
        wait_seconds: Duration | None = None,
        thread_local: bool = True,
        **unknown: Never,
    ) -> Lock:
        """Return a semaphore with ``n`` permits, one for each holder; all callers must pass the same ``n``.

        Otherwise as `lock`. ``n`` is from 1 to 2**20; with 1, this is the lock of that name. If ``thread_local`` is
        False, an object may hold several permits: as many as were acquired with it and not released.
        """
        if unknown:
            raise unknown_argument(self.semaphore, unknown)
        return self._lock(name, n, ttl_seconds, wait_seconds, thread_local)

    def _lock(self, *arguments: Any) -> Lock:
        with at_first_use:
            from pyrocache.client.features.locks import Lock  # imported here: not every program has locks
        return Lock(self._context, *arguments)

    # Many keys -------------------------------------------------------------------------------------------

    def get_many(self, keys: Iterable[object], *, progress: bool | None = None) -> dict[Any, Any]:
        """Return the values of those ``keys`` that have an entry, by key, in the order of the keys.

        Args:
            progress: as for `set_many`.

        Raises:
            TypeError: a key is not hashable, such as a list, which `get` accepts.
            PartialFailure: a node is unreachable, or a value does not unpickle here; the error has the other values.
        """
        return bulk.get_many(self._context, keys, progress)

    def get_entries(self, keys: Iterable[object]) -> dict[Any, Entry]:
        """Return `get_entry` of those ``keys`` that have an entry, by key, in the order of the keys.

        Raises:
            TypeError, PartialFailure: as `get_many`.
        """
        return bulk.get_entries(self._context, keys)

    def set_many(
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
        """Store every entry of ``mapping``, each with these ``tags``. Return how many were stored.

        All keys and values are encoded before anything is sent.

        Args:
            ttl_seconds, tags, expires_at: as for `set`.
            ttl_jitter: a fraction from 0 to 1. The time to live of each entry is drawn at random between
                ``ttl * (1 - ttl_jitter)`` and ``ttl``, so that entries stored together do not expire together.
            progress: whether to show a progress bar; by default, in an interactive session, if it takes longer than a
                second. It begins when all entries have been encoded.

        Raises:
            ValueError, TypeError, SerializationError: as `set`.
            ImportError: ``progress`` is True, and tqdm is not installed; nothing was sent.
            PartialFailure: a node is unreachable, or a value is too large for its node; the other entries are stored.
        """
        if unknown:
            raise unknown_argument(self.set_many, unknown)
        return bulk.make(
            self._context,
            Change.set_many(self._context, mapping, ttl_seconds, tags, expires_at, ttl_jitter),
            progress,
        )

    def delete_many(self, keys: Iterable[object], *, progress: bool | None = None) -> int:
        """Remove the entries of ``keys``. Return how many existed.

        Raises:
            PartialFailure: a node is unreachable; the other entries are removed. If a key is not hashable, the first
                node's error is raised instead.
        """
        return bulk.make(self._context, Change.delete_many(self._context, keys), progress)

    def touch_many(
        self,
        keys: Iterable[object],
        ttl_seconds: NewTtl = DEFAULT_TTL,
        *,
        expires_at: When | None = None,
        **unknown: Never,
    ) -> int:
        """Set the time to live of the entries of ``keys``, counted from now (None: no expiry). Return how many exist.

        ``expires_at`` is as for `touch`.

        Raises:
            PartialFailure: a node is unreachable; the other entries are touched. If a key is not hashable, the first
                node's error is raised instead.
        """
        if unknown:
            raise unknown_argument(self.touch_many, unknown)
        return bulk.make(self._context, Change.touch_many(self._context, keys, ttl_seconds, expires_at))

    # The whole namespace ---------------------------------------------------------------------------------

    def namespace(
        self,
        name: str,
        *,
        ttl_seconds: NewTtl = DEFAULT_TTL,
        counters: bool | None = None,
        **unknown: Never,
    ) -> Self:
        """Return a client for a namespace: entries that clients of other namespaces do not see.

        `len` and `clear` of this client do not include them either. The new client shares this client's settings and
        connections. Closing it leaves this client open; closing this client closes it.
        ``PyroCacheClient(namespace="shop")`` and ``PyroCacheClient().namespace("shop")`` use the same namespace.
        Namespaces can be nested: ``namespace("shop").namespace("eu")``.

        Args:
            ttl_seconds: the time to live of entries that are stored without one; by default that of this client.
            counters: as for the client; by default as in this client.

        Raises:
            ConfigurationError: ``name`` is not a str, or takes more than 255 bytes in UTF-8, or the path more than 512.
        """
        if unknown:
            raise unknown_argument(self.namespace, unknown)
        return self._of(self._context.namespace(name, ttl_seconds, counters))

    def invalidate_tag(self, tag: str) -> int:
        """Remove every entry of this namespace that was stored with ``tag``, on every node. Return how many there were.

        No later read returns one of them. It takes the same time for one entry and for a million. The count includes
        entries that had expired or were cleared, if their memory was not reclaimed yet.
        """
        return self._total(self._context.backend.invalidate_tag, self._context.encode_tag(tag))

    def clear(self) -> int:  # type: ignore[override]  # a dict's returns nothing
        """Remove every entry of this namespace. Return how many there were, including some that had expired."""
        return self._total(self._context.backend.clear, self._context.prefix)

    def delete_prefix(self, prefix: str | tuple[Any, ...], *, progress: bool | None = None) -> int:
        """Remove every entry whose key `scan` returns for ``prefix``, on every node. Return how many there were.

        The nodes examine every key of the namespace, page by page. Each page has a timeout of its own, and is not sent
        again after a lost reply. An entry that is stored meanwhile may or may not be removed.

        Raises:
            TypeError: ``prefix`` is neither a str nor a tuple.
            NodeUnavailable: a node is unreachable; some entries may be removed. With ``on_error="miss"``, its entries
                stay.
        """
        return scan.delete_prefix(self._context, prefix, progress)

    @overload
    def scan(
        self,
        prefix: str | tuple[Any, ...] | None = None,
        batch: int = MAX_BATCH,
        *,
        tag: str | None = None,
        details: Literal[False] = False,
        progress: bool | None = None,
    ) -> Iterator[Any]: ...
    @overload
    def scan(
        self,
        prefix: str | tuple[Any, ...] | None = None,
        batch: int = MAX_BATCH,
        *,
        tag: str | None = None,
        details: Literal[True],
        progress: bool | None = None,
    ) -> Iterator[EntryInfo]: ...
    @overload
    def scan(
        self,
        prefix: str | tuple[Any, ...] | None = None,
        batch: int = MAX_BATCH,
        *,
        tag: str | None = None,
        details: bool,
        progress: bool | None = None,
    ) -> Iterator[Any]: ...
    def scan(
        self,
        prefix: str | tuple[Any, ...] | None = None,
        batch: int = MAX_BATCH,
        *,
        tag: str | None = None,
        details: bool = False,
        progress: bool | None = None,
    ) -> Iterator[Any]:
        """Return an iterator over the keys of this namespace, node by node, in no order.

        No key is returned twice. A key that exists throughout is returned once; a key that is stored or removed
        meanwhile may or may not be returned. If a node joins or leaves during the scan, the keys whose owner changes
        may not be returned, because their entries are removed.

        Args:
            prefix: a str or a tuple. Only keys that are strings with this prefix, or tuples that begin with these
                items, are returned.
            batch: how many keys to request from a node at a time, at most 1,000. Each request has a timeout of its own.
            tag: only keys of entries with this tag are returned. If few entries have it, this is fast however many
                other entries there are.
            details: return an `EntryInfo` in place of each key: its time to live, tags, age and size.

        Raises:
            TypeError: ``prefix`` is neither a str nor a tuple, or ``tag`` is not a str.
        """
        encoded = None if tag is None else self._context.encode_tag(tag)
        if details:
            return scan.details(self._context, prefix, batch, encoded, progress)
        return scan.scan(self._context, prefix, batch, encoded, progress)

    def __iter__(self) -> Iterator[Any]:
        return scan.scan(self._context)

    def items(self, *, progress: bool | None = None) -> Items:
        """Return a view of the entries, like a dict's. Values are fetched page by page during iteration."""
        return Items(self, progress)

    def values(self, *, progress: bool | None = None) -> Values:
        """Return a view of the values, like a dict's. They are fetched page by page during iteration."""
        return Values(self, progress)

    def popitem(self) -> tuple[Any, Any]:
        """Remove some entry and return its key and value. No two callers get the same entry.

        Raises:
            KeyError: there is no entry.
            SerializationError: the value does not unpickle here, and ``on_undecodable`` is ``"raise"``. With
                ``"miss"``, another entry is returned. In both cases the entry stays.
        """
        return scan.pop_any(self._context)

    def __len__(self) -> int:
        """Return the number of entries in this namespace, over all nodes."""
        return self._total(self._context.backend.count, self._context.prefix, None)

    def __bool__(self) -> bool:
        """Return whether there is any entry in this namespace."""
        return bool(self._total(self._context.backend.count, self._context.prefix, 1))

    def __eq__(self, other: object) -> bool:
        """Return whether another mapping has the same entries. Fetches all of them."""
        if self is other or not isinstance(other, Mapping):
            return self is other or NotImplemented
        try:
            return dict(self.items(progress=False)) == dict(other.items())
        except TypeError:  # a key that is not hashable, which no other mapping has
            return False

    __hash__: ClassVar[None]  # type: ignore[assignment]  # set to None by Python, because there is an __eq__

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

    def _ipython_key_completions_(self) -> list[Any]:
        """Return some keys, for the completion of ``cache[`` in IPython. Raises nothing if the cluster is away."""
        return scan.some_keys(self._context)

    # The cluster -----------------------------------------------------------------------------------------

    def nodes(self) -> Nodes:
        """Return the nodes that share the keys, as the name server lists them now: a list, shown as a table."""
        return Nodes(self._context.backend.nodes(self._context.deadline()))

    def node_for(self, key: object) -> Member:
        """Return the node that owns ``key``."""
        context = self._context
        return context.backend.owner(context.encode_key(key), context.deadline())

    def ping(self) -> int:
        """Return the number of nodes, once each of them has answered that it serves; whatever ``on_error`` says.

        Raises:
            NodeUnavailable: a node does not answer, or does not serve.
            NameServerUnavailable, NoNodes: no node is known.
        """
        return number_serving(self._context.backend.ping(self._context.deadline()))

    def stats(self) -> Stats:
        """Return the statistics of every node, their sums, and those of this client.

        An unreachable node is not an error: its name is in `Stats.away`.
        """
        context = self._context
        return stats_of(context, context.backend.stats(context.deadline()))

    def watch(self, interval: float = 0.5) -> LiveView:
        """Show operations per second, hit ratio and memory in a notebook, updated until `LiveView.stop` is called.

        Returns at once; a thread updates the view. The next call of this method stops it too, and so does `close`. In a
        terminal, use ``pyrocache top``.

        Args:
            interval: seconds between two updates, at least 0.5.

        Raises:
            ConfigurationError: this process is not the kernel of a notebook, or ``interval`` is not valid.
        """
        with at_first_use:
            from pyrocache.client.features.watch import watch  # imported here: only notebooks need it
        return watch(self, interval)

    def hot_keys(self, count: int = 10, *, seconds: float = 1.0) -> list[HotKey]:
        """Return the keys of this namespace that all clients together use most often now, the most used first.

        The nodes count uses only while somebody asks, and for 10 seconds after that: so the first call waits, and calls
        that follow do not. Every read, write and removal of a key is a use, also a read of a key without an entry. The
        rates are lower bounds: a key that is used rarely among very many others may be missing. Namespaces within this
        one are not included.

        Args:
            count: how many keys to return at most, from 1 to 1,000.
            seconds: how long the nodes must have counted; a call waits until they have. 0 for a call that does not
                wait: the first one returns nothing then.

        Nodes that do not answer, or are of an older version, are left out.

        Raises:
            CacheUnavailable: no node answers.
            RemoteError: all nodes are of an older version.
            SerializationError: a key does not unpickle here, and ``on_undecodable`` is ``"raise"``.
        """
        with at_first_use:
            from pyrocache.client.features.hot_keys import hot_keys  # imported here: it makes a dataclass
        return hot_keys(self._context, count, seconds)

    def reset_stats(self) -> None:
        """Set the counters of every node and of this client to 0, except ``loads``. Gauges do not change."""
        self._total(self._context.backend.reset_stats)
        self._context.reset_figures()

    def _total(self, method: Callable[..., Answers], *arguments: Any) -> int:
        """Return the sum of the nodes' answers. ``on_error`` decides whether a `CacheUnavailable` is raised."""
        total = 0
        try:
            answers = method(*arguments, self._context.deadline())
        except CacheUnavailable as error:
            return self._context.missed(error, 0)
        for _, answer in answers:
            if isinstance(answer, NodeUnavailable):
                self._context.missed(answer, None)
            else:
                total += answer
        return total

    # Life ------------------------------------------------------------------------------------------------

    def disconnect(self) -> None:
        """Close the connections; the next call connects again. Does nothing once the client is closed.

        Calls of other threads are not disturbed: the connection of a call is closed when the call ends. Held locks stay
        held, and loads go on: their connections are closed when they are released. A client and its namespaces share
        their connections, so this disconnects all of them.
        """
        self._context.disconnect()

    def close(self) -> None:
        """Close the connections. Every later call raises `ClientClosed`; closing again does nothing."""
        self._context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        config = self._context.config
        path = f" namespace={path_text(config.namespace)}" if config.namespace else ""
        return f"<PyroCacheClient {config.nameserver!r}{path}{' closed' if self._context.closed else ''}>"

    def _card(self) -> Card:
        """Return what notebooks show. It asks the nodes, for less than a second, and never raises."""
        with at_first_use:
            from pyrocache.client.features import overview
        return overview.card(type(self).__name__, self._context)

    def __getstate__(self) -> ClientConfig:
        return self._context.config  # connections and locks do not pickle; a copy connects on its first use

    def __setstate__(self, config: ClientConfig) -> None:
        self._context = ClientContext(config, Backend.of(config))


hide_unknown(PyroCacheClient)
