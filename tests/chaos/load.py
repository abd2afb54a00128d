"""The load: a process with several users of one cache, each of which records its calls.

Run as ``python -m tests.chaos.load JSON`` (`Settings`). It ends when its standard input does, so never outlives the
run. Rates are bounded. With the asyncio client, the calls of all users are tasks of one event loop. Two users share a
client; one begins a new client every few seconds, and so knows of changes; one uses the keys of a single node only, and
so hears of changes from that node alone. In addition, one only removes many keys at once, seldom, and so does
not hear of changes in between.

Thread safety: each `User` belongs to one thread.
"""

from __future__ import annotations

import json
import math
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from pyrocache import TLS, PyroCacheClient
from pyrocache.net import connection
from pyrocache.protocol.handshake import format_peer
from tests.chaos.history import ACQUIRE, CAS, CLEAR, COUNT, DELETE, GET, INCR, OK, REFUSED, SET, Recorder
from tests.support.async_client import BlockingClient, take_problems

REGISTERS = [f"key {number}" for number in range(240)]
COUNTERS = [f"counter {number}" for number in range(20)]
LOCKS = [f"lock {number}" for number in range(6)]
SWEPT = [f"swept {number}" for number in range(24)]
"""Registers in the namespace and with the tag of `SWEPT_NAME`, which are removed all at once now and then."""
SWEPT_NAME = "swept"
CHILDREN_COUNTERS = [f"counter of child {number}" for number in range(1000)]
"""One for each forked child."""
PROXY_HOST = "127.0.0.2"
"""Where the proxy listens, on the ports of the nodes."""

USERS = 4  # in each process
_PAUSE_SECONDS = 0.004
_PAUSE_AFTER_ERROR_SECONDS = 0.02
_SWEEP_SECONDS = 0.3
_FORK_SECONDS = 0.5
_CHILD_SECONDS = 0.5
_LARGE = "." * 100_000


@dataclass(frozen=True)
class Settings:
    """What one process does.

    Attributes:
        nameserver: its address.
        directory: where the histories go.
        number: of this process; processes: how many there are.
        seed: of its choices.
        timeout: the clients' deadline.
        proxied: connect to nodes through the proxy, over TCP.
        forks: fork in the middle of calls, again and again.
        renew_seconds: time between two new clients of the last user.
        tls: the argument of the clients, a `TLS` as a dict.
        asyncio: use the asyncio client, in one event loop for all users of the process.
    """

    nameserver: str
    directory: str
    number: int
    processes: int
    seed: int
    timeout: float = 1.0
    proxied: bool = False
    forks: bool = False
    renew_seconds: float = 1.0
    tls: Any = None
    asyncio: bool = False

    def client(self) -> Any:
        """Return a new client, which blocks, or waits for an event loop."""
        transport: Any = "tcp" if self.proxied else "auto"
        tls = TLS(**self.tls) if isinstance(self.tls, dict) else self.tls
        kind: Any = BlockingClient if self.asyncio else PyroCacheClient
        return kind(self.nameserver, timeout=self.timeout, transport=transport, tls=tls)

    def to_json(self) -> str:
        """Return the argument of this module."""
        return json.dumps(asdict(self))


def label(value: Any) -> Any:
    """Return the part of a stored value that identifies it, whatever was stored."""
    return value if value is None else str(value).partition("|")[0]


class User:
    """One client of the cache, as the checker sees it.

    Args:
        settings: of the process.
        name: unique.
        place, places: each `incr` has a slot of its own: every ``places``-th one belongs to this user.
        registers, counters: the keys that it uses; those in the first tenth of the registers get half of the calls.
        locks, swept: likewise. What removes the swept ones removes those of all users.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        cache: Any,
        place: int,
        places: int,
        registers: Sequence[str] = REGISTERS,
        counters: Sequence[str] = COUNTERS,
        locks: Sequence[str] = LOCKS,
        swept: Sequence[str] = SWEPT,
    ) -> None:
        self.cache = cache
        self._random = random.Random(f"{settings.seed} {name}")
        self._record = Recorder(Path(settings.directory, f"{name}.jsonl"), name, settings.timeout)
        self._name = name
        self._place, self._places = place, places
        self._registers, self._locks, self._swept = registers, locks, swept
        self._counters = dict.fromkeys(counters, 0)
        self._written = 0
        steps: list[tuple[Callable[[], None], int]] = [
            *((self._get, 45), (self._set, 20), (self._delete, 5), (self._replace, 8), (self._incr, 8)),
            *((self._count, 6), (self._get_many, 3), (self._set_many, 2), (self._acquire, 3 if locks else 0)),
            *((self._get_swept, 8), (self._set_swept, 5), (self._sweep, 1)),
        ]
        self._steps, self._weights = zip(*steps, strict=True)

    def run(self, going_on: Callable[[], bool]) -> None:
        """Make calls while ``going_on``."""
        while going_on():
            self._random.choices(self._steps, self._weights)[0]()
            time.sleep(
                _PAUSE_AFTER_ERROR_SECONDS
                if self._record.failed
                else self._random.uniform(0, 2 * _PAUSE_SECONDS)
            )
        self._record.close()

    def _key(self) -> str:
        hot = self._registers[: math.ceil(len(self._registers) / 10)]
        return self._random.choice(hot if self._random.random() < 0.5 else self._registers)

    def _value(self) -> str:
        self._written += 1
        return f"{self._name}:{self._written}"

    def _stored(self, value: str) -> str:
        return f"{value}|{_LARGE}" if self._random.random() < 0.03 else value

    def _get(self) -> None:
        key = self._key()
        self._record.call(GET, [key], lambda: self.cache.get(key), lambda found, _: (OK, label(found)))

    def _get_many(self) -> None:
        keys = sorted({self._key() for _ in range(5)})
        self._record.call(
            GET, keys, lambda: self.cache.get_many(keys), lambda found, key: (OK, label(found.get(key)))
        )

    def _set(self) -> None:
        key, value = self._key(), self._value()
        stored = self._stored(value)
        self._record.call(
            SET, [key], lambda: self.cache.set(key, stored), lambda _, __: (OK, value), value=value
        )

    def _set_many(self) -> None:
        values = {self._key(): self._value() for _ in range(3)}
        self._record.call(
            SET, values, lambda: self.cache.set_many(values), lambda _, key: (OK, values[key]), value=values
        )

    def _delete(self) -> None:
        key = self._key()
        self._record.call(
            DELETE, [key], lambda: self.cache.delete(key), lambda done, _: (OK if done else REFUSED, None)
        )

    def _replace(self) -> None:
        key, value = self._key(), self._value()
        found = self._record.call(
            GET,
            [key],
            lambda: self.cache.get_with_version(key),
            lambda found, _: (OK, label(found and found[0])),
        )
        if found:
            self._record.call(
                CAS,
                [key],
                lambda: self.cache.compare_and_set(key, value, found[1]),
                lambda done, _: (OK if done else REFUSED, value),
                value=value,
                replaced=label(found[0]),
            )

    def _incr(self) -> None:
        key = self._random.choice(list(self._counters))
        slot = self._counters[key] * self._places + self._place
        self._counters[key] += 1
        self._record.call(
            INCR,
            [key],
            lambda: self.cache.incr(key, 16**slot),
            lambda found, _: (OK, f"{found:x}"),
            slot=slot,
        )

    def _count(self) -> None:
        key = self._random.choice(list(self._counters))
        self._record.call(COUNT, [key], lambda: self.cache.get(key), lambda found, _: (OK, f"{found or 0:x}"))

    def _get_swept(self) -> None:
        key, cache = self._random.choice(self._swept), self.cache.namespace(SWEPT_NAME)
        self._record.call(GET, [key], lambda: cache.get(key), lambda found, _: (OK, label(found)))

    def _set_swept(self) -> None:
        key, value, cache = (
            self._random.choice(self._swept),
            self._value(),
            self.cache.namespace(SWEPT_NAME),
        )
        self._record.call(
            SET,
            [key],
            lambda: cache.set(key, value, tags=[SWEPT_NAME]),
            lambda _, __: (OK, value),
            value=value,
        )

    def _sweep(self) -> None:
        cache = self.cache.namespace(SWEPT_NAME)
        ways = [
            cache.clear,
            lambda: cache.invalidate_tag(SWEPT_NAME),
            lambda: cache.delete_prefix(SWEPT_NAME),
        ]
        self._record.call(CLEAR, SWEPT, self._random.choice(ways), lambda _, __: (OK, None))

    def run_sweeps(self, going_on: Callable[[], bool]) -> None:
        """Remove the swept keys every now and then while ``going_on``."""
        while going_on():
            self._sweep()
            time.sleep(self._random.uniform(0, 2 * _SWEEP_SECONDS))
        self._record.close()

    def _acquire(self) -> None:
        name = self._random.choice(self._locks)
        lock = self.cache.lock(name, ttl_seconds=5)
        self._record.call(
            ACQUIRE,
            [name],
            lambda: lock.token if lock.acquire(blocking=False) else None,
            lambda token, _: (OK, token),
        )
        if lock.held:
            time.sleep(self._random.uniform(0, 0.005))
            try:
                lock.release()
            except Exception:  # it was lost; that is no call about its token
                pass


class Process:
    """The users of one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopped = threading.Event()
        self._caches = [settings.client() for _ in range(USERS - 1)]
        self._sweeper = User(settings, f"{settings.number}.sweeper", settings.client(), 0, 1)
        names = [f"{settings.number}.{number}" for number in range(USERS)]
        place, places = settings.number * USERS, settings.processes * USERS
        self._users = [
            User(settings, names[0], self._caches[0], place, places),
            User(settings, names[1], self._caches[0], place + 1, places),
            User(settings, names[2], self._caches[1], place + 2, places, *self._keys_of_one_node()),
            User(settings, names[3], self._caches[2], place + 3, places),
        ]

    def _keys_of_one_node(self) -> list[list[str]]:
        number, cache = self._settings.number % len(self._caches[1].nodes()), self._caches[1]
        name = cache.nodes()[number].name
        swept = cache.namespace(SWEPT_NAME)
        return [
            *(
                [key for key in keys if cache.node_for(key).name == name]
                for keys in (REGISTERS, COUNTERS, [])
            ),
            [key for key in SWEPT if swept.node_for(key).name == name],
        ]

    def run(self) -> None:
        """Make calls until standard input ends."""
        threads = [threading.Thread(target=user.run, args=(self._going_on,)) for user in self._users]
        threads.append(threading.Thread(target=self._sweeper.run_sweeps, args=(self._going_on,)))
        for thread in threads:
            thread.start()
        helpers = [threading.Thread(target=self._renew, daemon=True)]
        if self._settings.forks:
            helpers.append(threading.Thread(target=self._fork, daemon=True))
        for helper in helpers:
            helper.start()
        sys.stdin.buffer.read()
        self._stopped.set()
        for thread in (*threads, *helpers):
            thread.join()
        if self._settings.asyncio and (problems := take_problems()):
            raise RuntimeError(f"The event loop reports {problems}")

    def _going_on(self) -> bool:
        return not self._stopped.is_set()

    def _renew(self) -> None:
        """Give the last user a new client from time to time."""
        while not self._stopped.wait(self._settings.renew_seconds):
            self._users[-1].cache = self._settings.client()

    def _fork(self) -> None:
        for counter in CHILDREN_COUNTERS[self._settings.number :: self._settings.processes]:
            if self._stopped.wait(_FORK_SECONDS):
                return
            pid = os.fork()
            if not pid:
                self._be_child(counter)
            os.waitpid(pid, 0)

    def _be_child(self, counter: str) -> NoReturn:
        """Use the parent's client for a moment, in the copy of a process whose other threads are in mid-call."""
        status = 1
        try:
            end_at = time.monotonic() + _CHILD_SECONDS
            name = counter.removeprefix("counter of ")
            user = User(self._settings, name, random.choice(self._caches), 0, 1, counters=[counter])
            user.run(lambda: time.monotonic() < end_at)
            status = 0
        finally:
            os._exit(status)


def divert(nameserver: str) -> None:
    """Have every later connection of this process to a node go to the proxy."""
    direct = socket.socket.connect_ex
    port = int(nameserver.rpartition(":")[2])

    def connect_ex(sock: socket.socket, address: Any) -> int:
        if sock.family == socket.AF_INET and address[1] != port:
            address = PROXY_HOST, address[1]
        return direct(sock, address)

    setattr(socket.socket, "connect_ex", connect_ex)  # noqa: B010
    # The proof is for the address that was dialled: a node does not serve whoever comes by way of another one.
    setattr(connection, "format_peer", lambda peer: format_peer(peer).replace(PROXY_HOST, "127.0.0.1"))  # noqa: B010


def main() -> None:
    """Run the process that ``sys.argv`` describes."""
    settings = Settings(**json.loads(sys.argv[1]))
    if settings.proxied:
        divert(settings.nameserver)
    Process(settings).run()


if __name__ == "__main__":
    main()
