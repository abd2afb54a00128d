"""What all verbs of one client share: settings, a router, the prefix of its keys, deadlines, ``on_error``, figures.

`PyroCacheClient` is a facade over one `Core`, and so is each namespace made from it: a core of its own over the same
router, hence the same connections. Closing a core closes those made from it; only the first one closes the connections.

Thread-safe, and good for a child after a fork.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from enum import Enum
from types import EllipsisType
from typing import Any, Final, TypeAlias, TypeVar

from pyrocache.client.codec import decode_value, encode_value
from pyrocache.client.keys.encoding import encode_key, namespace_prefix
from pyrocache.client.keys.format import utf8
from pyrocache.client.routing.router import Router
from pyrocache.client.stats import ClientStats
from pyrocache.config import ClientConfig, ttl_to_seconds
from pyrocache.errors import ClientClosed, CorruptValue, NodeUnavailable
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NameServerDirectory
from pyrocache.net.failures import Unavailable
from pyrocache.protocol.limits import KEEP_TTL, MAX_TAG_BYTES, MAX_TAGS

log = logging.getLogger("pyrocache.client")

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
