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
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Final, TypeVar

from pyrocache.client.codec import decode_value
from pyrocache.client.connection import Deadline
from pyrocache.client.keys import encode_key, namespace_prefix
from pyrocache.client.router import Router
from pyrocache.cluster.directory import NameServerDirectory
from pyrocache.config import ClientConfig
from pyrocache.errors import ClientClosed, CorruptValue, NodeUnavailable

log = logging.getLogger("pyrocache.client")

_T = TypeVar("_T")


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return self.name


MISSING: Final = Missing.MISSING
"""No default was given, or there is no value: None is a value like any other."""


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
        self._figures = {"misses_on_error": 0, "corrupt_values": 0}
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
        try:
            return self.router.call(
                method,
                self.encode_key(key),
                *arguments,
                deadline=self.deadline(),
                idempotent=idempotent,
                largest_value=largest_value,
            )
        except NodeUnavailable as error:
            return self.missed(error, away)

    def missed(self, error: NodeUnavailable, value: _T) -> _T:
        """What ``on_error`` says: raise, or count, log and go on with ``value``."""
        if self.config.on_error == "raise":
            raise error
        self.count("misses_on_error")
        log.warning("Counted as a miss: %s", error)
        return value

    def check(self, errors: Iterable[tuple[Sequence[int], NodeUnavailable]]) -> None:
        """`missed` for the errors of a batch, once for each node."""
        for error in dict.fromkeys(error for _, error in errors):
            self.missed(error, None)

    def sum_of(self, method: str, *arguments: Any) -> int:
        """The sum of what the nodes answer."""
        total = 0
        for _, answer in self.router.everywhere(method, *arguments, deadline=self.deadline()):
            if isinstance(answer, NodeUnavailable):
                self.missed(answer, None)
            else:
                total += answer
        return total

    def count(self, figure: str, by: int = 1) -> None:
        """Add to one of this client's own figures."""
        with self._lock:
            self._figures[figure] += by

    def figures(self) -> dict[str, int]:
        """This client's own figures."""
        with self._lock:
            return dict(self._figures)

    def reset_after_fork(self) -> None:
        """Make this good for a child process; the router apart."""
        self._lock = threading.Lock()


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
