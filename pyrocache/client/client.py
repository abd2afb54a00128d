"""`PyroCacheClient`: the verbs of the cache.

Encodes keys and values before anything is sent, has the router find the owner, decodes what comes back, and
applies ``on_error``. Thread-safe, fork-safe and picklable; it starts no thread and connects on first use.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from pyrocache.client import batches
from pyrocache.client.codec import encode_value
from pyrocache.client.connection import Deadline
from pyrocache.client.core import MISSING, Core
from pyrocache.client.keys import decode_key, encode_key
from pyrocache.client.stats import Stats
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

NAMESERVER_VARIABLE = "PYROCACHE_NAMESERVER"


class PyroCacheClient:
    """A cache of Python objects that lives in the memory of several node processes.

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

    def set(self, key: object, value: object, ttl_seconds: float | timedelta | None = None) -> bool:
        """Store ``value`` under ``key``, for ``ttl_seconds`` or, with None, for good.

        Returns:
            True; False when the node is away and ``on_error`` is ``"miss"``.

        Raises:
            ValueError, TypeError: ``ttl_seconds`` is not above 0, or no duration.
            SerializationError: the value does not pickle; nothing was sent.
            ValueTooLarge: the node takes no value of that size; the old value stays.
        """
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

    def get(self, key: object, default: Any = None) -> Any:
        """The value stored under ``key``; ``default`` when there is none, or it has expired.

        Raises:
            SerializationError: the value does not unpickle here; `CorruptValue`: it is none of ours.
        """
        core = self._core
        try:
            frame = core.router.call("get", encode_key(key, core.prefix), deadline=Deadline(core.timeout))
        except NodeUnavailable as error:
            return core.missed(error, default)
        return default if frame is None else core.decode(frame)

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

    # Many keys -------------------------------------------------------------------------------------------

    def get_many(self, keys: Iterable[object]) -> dict[Any, Any]:
        """The values of those ``keys`` that have one, by key, in the keys' order.

        Raises:
            TypeError: a key is not hashable, like a list; `get` takes those.
        """
        return batches.get_many(self._core, keys)

    def set_many(self, mapping: Mapping[Any, Any], ttl_seconds: float | timedelta | None = None) -> int:
        """Store every entry of ``mapping``; how many were stored.

        All keys and values are encoded before anything is sent. When a node is away, or refuses a value that is too
        large for it, the entries of the others may be stored all the same.

        Raises:
            ValueError, TypeError, SerializationError, ValueTooLarge: as `set`.
        """
        return batches.set_many(self._core, mapping, ttl_seconds)

    def delete_many(self, keys: Iterable[object]) -> int:
        """Remove the entries of ``keys``; how many there were."""
        return batches.delete_many(self._core, keys)

    # The whole namespace ---------------------------------------------------------------------------------

    def namespace(self, name: str) -> Self:
        """A client of its own over a slice of the keys, which nobody else sees; it shares this one's connections.

        Closing it leaves this one open, and closing this one closes it.
        """
        inner = object.__new__(type(self))
        inner._core = self._core.namespace(name)
        return inner

    def clear(self) -> int:
        """Remove every entry of this client's namespace; how many there were."""
        return self._core.sum_of("clear", self._core.prefix)

    def keys(self) -> Iterator[Any]:
        """The keys of this client's namespace, node by node, in no order.

        A key that is there throughout comes exactly once. Each page is a call of its own, with its own deadline.
        """
        core = self._core
        for member in core.router.fresh_view(core.deadline()).members:
            cursor = 0
            while True:
                try:
                    cursor, page = core.router.ask(
                        member, "keys", core.prefix, cursor, deadline=core.deadline()
                    )
                except NodeUnavailable as error:
                    core.missed(error, None)
                    break
                for encoded in page:
                    yield decode_key(encoded)
                if cursor == 0:
                    break

    def __len__(self) -> int:
        """Entries in this client's namespace, over all nodes."""
        return self._core.sum_of("count", self._core.prefix)

    def __bool__(self) -> bool:
        """Always True: a client is no container that one tests for being empty without meaning to."""
        return True

    def __iter__(self) -> Iterator[Any]:
        return self.keys()

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
        return core.router.view(core.deadline()).owner(core.encode_key(key))

    def stats(self) -> Stats:
        """Figures of every node, their sums, and this client's own. A node that is away is named, not an error."""
        core = self._core
        nodes: dict[str, dict[str, Any]] = {}
        away: list[str] = []
        for member, answer in core.router.everywhere("stats", deadline=core.deadline()):
            if isinstance(answer, NodeUnavailable):
                away.append(member.name)
            else:
                nodes[member.name] = answer
        summed = {name for figures in nodes.values() for name in figures} - {"uptime_seconds", "pid"}
        total = {name: sum(figures.get(name, 0) for figures in nodes.values()) for name in sorted(summed)}
        return Stats(nodes, total, core.figures(), away)

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
