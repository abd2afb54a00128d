"""`PyroCacheClient`: the verbs of the cache.

Encodes keys and values before anything is sent, has the router find the owner, decodes what comes back, and
applies ``on_error``. Thread-safe, fork-safe and picklable; it starts no thread and connects on first use.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from pyrocache.client.codec import decode_value, decode_values, encode_value, encode_values
from pyrocache.client.connection import Deadline
from pyrocache.client.keys import decode_key, encode_key, encode_keys, namespace_prefix
from pyrocache.client.router import Batch, Router
from pyrocache.cluster.directory import NameServerDirectory
from pyrocache.cluster.routing import Member
from pyrocache.config import (
    DEFAULT_NAMESERVER,
    DEFAULT_TIMEOUT_SECONDS,
    ClientConfig,
    OnError,
    TransportChoice,
    ttl_to_seconds,
)
from pyrocache.errors import ClientClosed, CorruptValue, NodeUnavailable

log = logging.getLogger("pyrocache.client")

_T = TypeVar("_T")

NAMESERVER_VARIABLE = "PYROCACHE_NAMESERVER"


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of the cluster, from `PyroCacheClient.stats`.

    Attributes:
        nodes: each answering node's figures, by its name.
        total: their sums, counters and sizes.
        client: this client object's own figures.
        away: names of the nodes that did not answer.
    """

    nodes: dict[str, dict[str, Any]]
    total: dict[str, int]
    client: dict[str, int]
    away: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dicts."""
        return {"nodes": self.nodes, "total": self.total, "client": self.client, "away": self.away}


class PyroCacheClient:
    """A cache of Python objects that lives in the memory of several node processes.

    Args:
        nameserver: ``host:port`` of the name server; by default what ``$PYROCACHE_NAMESERVER`` says, else
            ``127.0.0.1:9090``.
        namespace: the slice of the keys that this client sees; ``""`` is one too.
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
        namespace: str = "",
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        on_error: OnError = "raise",
        transport: TransportChoice = "auto",
    ) -> None:
        if nameserver is None:
            nameserver = os.environ.get(NAMESERVER_VARIABLE) or DEFAULT_NAMESERVER
        self._open(
            ClientConfig(
                nameserver=nameserver,
                namespace=namespace,
                timeout=timeout,
                on_error=on_error,
                transport=transport,
            )
        )

    def _open(self, config: ClientConfig) -> None:
        self._config = config
        self._timeout = config.timeout
        self._prefix = namespace_prefix(config.namespace)
        self._router = Router(
            NameServerDirectory(config.nameserver),
            max_connections=config.max_connections,
            transport=config.transport,
        )
        self._closed = False
        self._lock = threading.Lock()  # guards: _figures
        self._figures = {"misses_on_error": 0, "corrupt_values": 0}
        _clients.add(self)

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
        encoded = encode_key(key, self._prefix)
        seconds = ttl_to_seconds(ttl_seconds)
        frame = encode_value(value)
        try:
            self._router.call(
                "set", encoded, frame, seconds, deadline=Deadline(self._timeout), largest_value=len(frame)
            )
        except NodeUnavailable as error:
            return self._missed(error, False)
        return True

    def get(self, key: object, default: Any = None) -> Any:
        """The value stored under ``key``; ``default`` when there is none, or it has expired.

        Raises:
            SerializationError: the value does not unpickle here; `CorruptValue`: it is none of ours.
        """
        try:
            frame = self._router.call("get", encode_key(key, self._prefix), deadline=Deadline(self._timeout))
        except NodeUnavailable as error:
            return self._missed(error, default)
        if frame is None:
            return default
        try:
            return decode_value(frame)
        except CorruptValue:
            self._count("corrupt_values")
            raise

    def delete(self, key: object) -> bool:
        """Remove the entry; whether there was one.

        Not retried once the request was sent: a `NodeUnavailable` then means that it may or may not be removed.
        """
        try:
            return bool(
                self._router.call(
                    "delete", self._encode_key(key), deadline=self._deadline(), idempotent=False
                )
            )
        except NodeUnavailable as error:
            return self._missed(error, False)

    def contains(self, key: object) -> bool:
        """Whether there is an entry; it does not become more recent by that."""
        try:
            return bool(self._router.call("contains", self._encode_key(key), deadline=self._deadline()))
        except NodeUnavailable as error:
            return self._missed(error, False)

    def ttl(self, key: object) -> float | None:
        """Seconds until the entry expires: ``math.inf`` when it never does, None when there is none."""
        try:
            seconds = self._router.call("ttl", self._encode_key(key), deadline=self._deadline())
        except NodeUnavailable as error:
            return self._missed(error, None)
        return None if seconds is None else float(seconds)

    # Many keys -------------------------------------------------------------------------------------------

    def get_many(self, keys: Iterable[object]) -> dict[Any, Any]:
        """The values of those ``keys`` that have one, by key, in the keys' order.

        Raises:
            TypeError: a key is not hashable, like a list; `get` takes those.
        """
        asked = list(keys)
        hash(tuple(asked))  # TypeError now: the result is a dict by key
        values = [_MISS] * len(asked)
        problems: list[Exception] = []
        missing = False

        def take(indices: Sequence[int], frames: Any) -> int:
            nonlocal missing
            if type(frames) is not list:
                return 0
            missing = missing or None in frames
            try:
                decoded = decode_values(frames, _MISS)
                if len(decoded) == len(values):
                    values[:] = decoded
                else:
                    for index, value in zip(indices, decoded, strict=False):
                        values[index] = value
            except Exception as error:  # for later: replies of other nodes are still under way
                problems.append(error)
            return len(frames)

        batch = Batch(encode_keys(asked, self._prefix))
        errors = self._router.batch("get_many", batch, deadline=self._deadline(), on_reply=take)
        self._check(errors)
        if problems:
            self._count("corrupt_values", sum(isinstance(problem, CorruptValue) for problem in problems))
            raise problems[0]
        found = zip(asked, values, strict=True)
        if missing or errors:
            return {key: value for key, value in found if value is not _MISS}
        return dict(found)

    def set_many(self, mapping: Mapping[Any, Any], ttl_seconds: float | timedelta | None = None) -> int:
        """Store every entry of ``mapping``; how many were stored.

        All keys and values are encoded before anything is sent. When a node is away, or refuses a value that is too
        large for it, the entries of the others may be stored all the same.

        Raises:
            ValueError, TypeError, SerializationError, ValueTooLarge: as `set`.
        """
        seconds = ttl_to_seconds(ttl_seconds)
        if not isinstance(mapping, Mapping):
            raise TypeError(f"set_many takes a mapping of keys to values, not {type(mapping).__name__}.")
        batch = Batch(encode_keys(list(mapping), self._prefix), encode_values(mapping.values()))
        return self._count_over("set_many", batch, seconds)

    def delete_many(self, keys: Iterable[object]) -> int:
        """Remove the entries of ``keys``; how many there were."""
        encoded = encode_keys(list(keys), self._prefix)
        return self._count_over("delete_many", Batch(encoded), idempotent=False)

    # The whole namespace ---------------------------------------------------------------------------------

    def clear(self) -> int:
        """Remove every entry of this client's namespace; how many there were."""
        return self._sum_of("clear")

    def keys(self) -> Iterator[Any]:
        """The keys of this client's namespace, node by node, in no order.

        A key that is there throughout comes exactly once. Each page is a call of its own, with its own deadline.
        """
        for member in self._router.fresh_view(self._deadline()).members:
            cursor = 0
            while True:
                try:
                    cursor, page = self._router.ask(
                        member, "keys", self._prefix, cursor, deadline=self._deadline()
                    )
                except NodeUnavailable as error:
                    self._missed(error, None)
                    break
                for encoded in page:
                    yield decode_key(encoded)
                if cursor == 0:
                    break

    def __len__(self) -> int:
        """Entries in this client's namespace, over all nodes."""
        return self._sum_of("count")

    def __bool__(self) -> bool:
        """Always True: a client is no container that one tests for being empty without meaning to."""
        return True

    def __iter__(self) -> Iterator[Any]:
        return self.keys()

    def __contains__(self, key: object) -> bool:
        return self.contains(key)

    def __getitem__(self, key: object) -> Any:
        value = self.get(key, _MISS)
        if value is _MISS:
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
        return list(self._router.fresh_view(self._deadline()).members)

    def node_for(self, key: object) -> Member:
        """The node that owns ``key``."""
        encoded = self._encode_key(key)
        return self._router.view(self._deadline()).owner(encoded)

    def stats(self) -> Stats:
        """Figures of every node, their sums, and this client's own. A node that is away is named, not an error."""
        nodes: dict[str, dict[str, Any]] = {}
        away: list[str] = []
        for member, answer in self._router.everywhere("stats", deadline=self._deadline()):
            if isinstance(answer, NodeUnavailable):
                away.append(member.name)
            else:
                nodes[member.name] = answer
        summed = {name for figures in nodes.values() for name in figures} - {"uptime_seconds", "pid"}
        total = {name: sum(figures.get(name, 0) for figures in nodes.values()) for name in sorted(summed)}
        with self._lock:
            return Stats(nodes, total, dict(self._figures), away)

    # Life ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections. Every later call raises `ClientClosed`; closing again does nothing."""
        self._closed = True
        self._router.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        config = self._config
        parts = [repr(config.nameserver)]
        if config.namespace:
            parts.append(f"namespace={config.namespace!r}")
        return f"<PyroCacheClient {' '.join(parts)}{' closed' if self._closed else ''}>"

    def __getstate__(self) -> ClientConfig:
        return self._config

    def __setstate__(self, config: ClientConfig) -> None:
        self._open(replace(config))

    # Inside ----------------------------------------------------------------------------------------------

    def _deadline(self) -> Deadline:
        if self._closed:
            raise ClientClosed("This client was closed; make a new PyroCacheClient.")
        return Deadline(self._config.timeout)

    def _encode_key(self, key: object) -> bytes:
        return encode_key(key, self._prefix)

    def _count_over(self, method: str, batch: Batch, *arguments: Any, idempotent: bool = True) -> int:
        """The sum of the nodes' answers to a batch."""
        total = 0

        def take(indices: Sequence[int], count: Any) -> int:
            nonlocal total
            if type(count) is not int:
                return 0
            total += count
            return len(indices)

        self._check(
            self._router.batch(
                method, batch, *arguments, deadline=self._deadline(), on_reply=take, idempotent=idempotent
            )
        )
        return total

    def _sum_of(self, method: str) -> int:
        total = 0
        for _, answer in self._router.everywhere(method, self._prefix, deadline=self._deadline()):
            if isinstance(answer, NodeUnavailable):
                self._missed(answer, None)
            else:
                total += answer
        return total

    def _check(self, errors: Iterable[tuple[Sequence[int], NodeUnavailable]]) -> None:
        for error in dict.fromkeys(error for _, error in errors):  # once for each node
            self._missed(error, None)

    def _missed(self, error: NodeUnavailable, value: _T) -> _T:
        """What ``on_error`` says: raise, or count, log and go on with ``value``."""
        if self._config.on_error == "raise":
            raise error
        self._count("misses_on_error")
        log.warning("Counted as a miss: %s", error)
        return value

    def _count(self, figure: str, by: int = 1) -> None:
        with self._lock:
            self._figures[figure] += by


_MISS: Any = object()

_clients: weakref.WeakSet[PyroCacheClient] = weakref.WeakSet()


def _reset_clients_after_fork() -> None:
    for client in list(_clients):
        client._lock = threading.Lock()
        client._router.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_clients_after_fork)
