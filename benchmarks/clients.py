"""One client for each contender, with the same few verbs.

Ours needs no adapter. Those of the others pickle by protocol 5, as ours does, and otherwise add nothing; each
library is set up as it comes. Libraries are
imported when a client is made, so that a missing one only costs its own contender.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.managers import DictProxy
from typing import Any, Literal, Protocol

Transport = Literal["TCP", "Unix"]


class Client(Protocol):
    """What a case may call."""

    def get(self, key: str) -> Any:
        """The value, or None."""

    def set(self, key: str, value: Any) -> Any:
        """Store a value."""

    def delete(self, key: str) -> Any:
        """Remove an entry; falsy when there was none."""


class BatchClient(Client, Protocol):
    """What the cases with batches may call, too; a `Manager` has no such thing."""

    def get_many(self, keys: Sequence[str]) -> dict[str, Any]:
        """The values that there are."""

    def set_many(self, mapping: Mapping[str, Any]) -> Any:
        """Store all."""


def pyrocache_client(nameserver: str, transport: Transport, *, threads: int, **options: Any) -> BatchClient:
    """Ours; one client serves all threads. ``options`` are further ones of `PyroCacheClient`."""
    from pyrocache import PyroCacheClient

    return PyroCacheClient(nameserver, transport="auto" if transport == "Unix" else "tcp", **options)


class NewConnections:
    """``client``, with a new connection for each `get`, which ends with it."""

    def __init__(self, client: Client, disconnect: Callable[[], object]) -> None:
        self._disconnect = disconnect
        self.set, self.delete, self._get = client.set, client.delete, client.get

    def get(self, key: str) -> Any:
        found = self._get(key)
        self._disconnect()
        return found


def new_pyrocache_connections(nameserver: str, transport: Transport, **options: Any) -> Client:
    """Ours; ``options`` as for `pyrocache_client`."""
    logging.getLogger("pyrocache.client").setLevel(logging.ERROR)  # it warns of authenticate=False
    client: Any = pyrocache_client(nameserver, transport, **options)
    return NewConnections(client, client.disconnect)


class RedisClient:
    """redis-py; its pool serves all threads."""

    def __init__(self, *, threads: int, **address: Any) -> None:
        import redis

        self._redis = redis.Redis(**address)

    def get(self, key: str) -> Any:
        data = self._redis.get(key)
        return None if data is None else pickle.loads(data)

    def set(self, key: str, value: Any) -> Any:
        return self._redis.set(key, pickle.dumps(value, 5))

    def delete(self, key: str) -> Any:
        return self._redis.delete(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, Any]:
        found = zip(keys, self._redis.mget(keys), strict=True)
        return {key: pickle.loads(data) for key, data in found if data is not None}

    def set_many(self, mapping: Mapping[str, Any]) -> Any:
        return self._redis.mset({key: pickle.dumps(value, 5) for key, value in mapping.items()})

    def disconnect(self) -> None:
        self._redis.connection_pool.disconnect()


def new_redis_connections(**options: Any) -> Client:
    """redis-py; ``options`` as for `RedisClient`."""
    client = RedisClient(**options)
    return NewConnections(client, client.disconnect)


class MemcachedClient:
    """pymemcache's ``Client``, or its ``PooledClient`` for several threads; waits for every reply."""

    def __init__(self, server: str | tuple[str, int], *, threads: int) -> None:
        from pymemcache.client.base import Client, PooledClient

        settings: dict[str, Any] = {"no_delay": True, "default_noreply": False}
        self._client = Client(server, **settings) if threads == 1 else PooledClient(server, **settings)

    def get(self, key: str) -> Any:
        data = self._client.get(key)
        return None if data is None else pickle.loads(data)

    def set(self, key: str, value: Any) -> Any:
        return self._client.set(key, pickle.dumps(value, 5))

    def delete(self, key: str) -> Any:
        return self._client.delete(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, Any]:
        return {key: pickle.loads(data) for key, data in self._client.get_many(keys).items()}

    def set_many(self, mapping: Mapping[str, Any]) -> Any:
        failed = self._client.set_many({key: pickle.dumps(value, 5) for key, value in mapping.items()})
        if failed:
            raise RuntimeError(f"memcached did not store {len(failed)} of {len(mapping)} entries")


class StockPyroClient:
    """Pyro5's own ``Proxy``, one a thread as it demands, with its msgpack serializer."""

    def __init__(self, uri: str, *, threads: int) -> None:
        import Pyro5

        Pyro5.config.SOCK_NODELAY = True
        self._uri = uri
        self._of_thread = threading.local()

    @property
    def _proxy(self) -> Any:
        try:
            return self._of_thread.proxy
        except AttributeError:
            from Pyro5.api import Proxy

            proxy = self._of_thread.proxy = Proxy(self._uri)
            proxy._pyroSerializer = "msgpack"
            return proxy

    def get(self, key: str) -> Any:
        data = self._proxy.get(key)
        return None if data is None else pickle.loads(data)

    def set(self, key: str, value: Any) -> Any:
        return self._proxy.set(key, pickle.dumps(value, 5))

    def delete(self, key: str) -> Any:
        return self._proxy.delete(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, Any]:
        return {key: pickle.loads(data) for key, data in self._proxy.get_many(keys).items()}

    def set_many(self, mapping: Mapping[str, Any]) -> Any:
        return self._proxy.set_many({key: pickle.dumps(value, 5) for key, value in mapping.items()})


class ManagerClient:
    """The proxy of a ``multiprocessing.Manager().dict()``, which connects once a thread."""

    def __init__(self, proxy: DictProxy[str, bytes], *, threads: int) -> None:
        self._proxy = proxy

    def get(self, key: str) -> Any:
        data = self._proxy.get(key)
        return None if data is None else pickle.loads(data)

    def set(self, key: str, value: Any) -> Any:
        self._proxy[key] = pickle.dumps(value, 5)

    def delete(self, key: str) -> Any:
        return self._proxy.pop(key, None)
