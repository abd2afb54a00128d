"""A program that is interrupted at random moments of every method of a client: ``interrupted.py NAMESERVER TIMES``.

A signal handler raises exceptions of several classes. Each must reach the caller as it is; no later call may get the
reply to an earlier one; nothing may stay open, taken, leased or locked, although the program keeps all exceptions. A
client with ``on_error="miss"`` must not count one as a miss.
"""

from __future__ import annotations

import collections
import gc
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from pyrocache import LockTimeout, PyroCacheClient, WaitTimeout
from pyrocache.net.pool import Pool


class Limit(Exception):
    pass


class Late(TimeoutError):
    pass


class Broken(ConnectionError):
    pass


class Odd(RuntimeError):
    pass


class Stop(BaseException):
    pass


KINDS: list[type[BaseException]] = [Limit, Late, Broken, Odd, OSError, TimeoutError, KeyboardInterrupt, Stop]


class Slow:
    """A value, or a key, whose pickling and unpickling runs code in Python."""

    def __init__(self, key: object) -> None:
        self.key = key

    def __getstate__(self) -> object:
        return {"key": max(self.key for _ in range(20))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.key = max(state["key"] for _ in range(20))

    def __getitem__(self, index: int) -> object:
        return self.key


class Program:
    def __init__(self, nameserver: str) -> None:
        self.dice = random.Random(1)
        self.observer = PyroCacheClient(nameserver)
        self.observer.clear()
        self.clients = [
            PyroCacheClient(nameserver, timeout=20.0, on_error=on_error, transport=transport)
            for on_error in ("raise", "miss")
            for transport in ("auto", "tcp")
        ]
        self.nameserver = nameserver
        self.number = 0
        self.large = {key: (key, os.urandom(200_000)) for key in ("large1", "large2")}
        for client in self.clients:
            client.set_many(self.large)

    def key(self) -> Any:
        self.number += 1
        number = self.number % 50
        return number if number % 3 else ("tuple", number) if number % 2 else Slow(number)

    def value(self, key: Any) -> Any:
        key = key.key if isinstance(key, Slow) else key
        return Slow(key) if self.number % 4 == 0 else (key, self.number)

    def check(self, key: Any, value: Any) -> None:
        expected = key.key if isinstance(key, Slow) else key
        assert value is None or value[0] == expected, (expected, value)

    def verbs(self) -> list[Callable[[PyroCacheClient], object]]:
        key, value, check = self.key, self.value, self.check

        def reads(c: PyroCacheClient) -> None:
            k = key()
            check(k, c.get(k))

        def large(c: PyroCacheClient) -> None:
            for k, v in self.large.items():
                assert c.get(k, v) == v
                c.set(k, v)

        def versions(c: PyroCacheClient) -> None:
            k = key()
            found = c.get_with_version(k)
            if found is not None:
                check(k, found[0])
                c.compare_and_set(k, value(k), found[1])

        def changes(c: PyroCacheClient) -> None:
            k = key()
            check(k, c.compute(k, lambda old: (check(k, old), value(k))[1], None))

        def counts(c: PyroCacheClient) -> None:
            assert type(c.incr("counter")) is int
            assert type(c.decr("counter")) is int

        def removes(c: PyroCacheClient) -> None:
            k = key()
            check(k, c.pop(k, None))
            c.delete(k)

        def defaults(c: PyroCacheClient) -> None:
            k = key()
            check(k, c.setdefault(k, value(k), 60))
            c.add(k, value(k), 60, tags=["tag"])
            c.replace(k, value(k), ...)

        def asks(c: PyroCacheClient) -> None:
            k = key()
            assert c.contains(k) in (True, False)
            c.touch(k, 60)
            assert c.ttl(k) is None or c.ttl(k) is None or c.ttl(k) != 0
            check(k, c.get(k, touch_seconds=60))

        def loads(c: PyroCacheClient) -> None:
            k = key()
            check(k, c.get_or_set(k, lambda: value(k), 60, wait_seconds=5))
            check(k, c.get_or_set(k, lambda: value(k), 60, early=1e9, wait_seconds=5))

        def loads_anew(c: PyroCacheClient) -> None:
            self.number += 1
            k = ("anew", self.number)
            check(k, c.get_or_set(k, lambda: (k, 1), 60, wait_seconds=5))

        def square_of(number: int) -> tuple[int, int]:
            return number, sum(number for _ in range(number))

        squares = {id(c): c.memoize(60, wait_seconds=5)(square_of) for c in self.clients}

        def memoizes(c: PyroCacheClient) -> None:
            square = squares[id(c)]
            number = self.number = self.number + 1
            assert square(number % 40) == (number % 40, (number % 40) ** 2)
            assert square.refresh(number % 40)[0] == number % 40
            square.invalidate(number % 7)

        def locks(c: PyroCacheClient) -> None:
            self.number += 1
            lock = c.lock(("lock", self.number % 5), wait_seconds=5)
            with lock:
                assert lock.held
            lock.acquire()
            lock.release()
            with c.semaphore(("semaphore", self.number % 5), 2, wait_seconds=5):
                pass

        def many(c: PyroCacheClient) -> None:
            keys = [number for number in range(50) if number % 3]
            for k, v in c.get_many(keys).items():
                check(k, v)
            c.set_many({k: value(k) for k in keys[:20]}, 60, tags=["tag"])
            c.touch_many(keys[:5], 60)
            c.delete_many(keys[:3])

        def walks(c: PyroCacheClient) -> None:
            inner = c.namespace("walked")
            inner.set_many({k: (k, 0) for k in range(30)})
            for k in inner.scan(batch=10):
                assert type(k) is int
            for k, v in inner.items():
                check(k, v)
            k, v = inner.popitem()
            check(k, v)
            assert len(inner) >= 0
            assert bool(inner) in (True, False)
            inner.clear()

        def looks(c: PyroCacheClient) -> None:
            assert len(c.nodes()) == 3
            assert c.node_for(key()) in c.nodes()
            c.invalidate_tag("tag")
            assert not c.stats().away

        def connects(c: PyroCacheClient) -> None:
            k = key()
            with PyroCacheClient(self.nameserver, timeout=20.0) as other:
                check(k, other.get(k))

        def entries(c: PyroCacheClient) -> None:
            k = key()
            if (found := c.get_entry(k)) is not None:
                check(k, found.value)
                c.delete(k, if_version=found.version)
            for k, entry in c.get_entries(range(20)).items():
                check(k, entry.value)
            inner = c.namespace("prefixes", ttl_seconds=60)
            inner.set_many({f"a{n}": (f"a{n}", n) for n in range(20)}, tags=["tag"])
            for info in inner.scan("a", details=True):
                assert info.key.startswith("a")
            list(inner.scan(tag="tag"))
            inner.delete_prefix("a")

        def other_locks(c: PyroCacheClient) -> None:
            self.number += 1
            lock = c.lock(("other", self.number % 3), thread_local=False, wait_seconds=5)
            if lock.acquire(timeout=5):
                lock.release()

        def disconnects(c: PyroCacheClient) -> None:
            k = key()
            c.set(k, value(k), expires_at=time.time() + 60)
            c.disconnect()

        def writes(c: PyroCacheClient) -> None:
            k = key()
            c.set(k, value(k))

        single = [reads, writes, large, versions, changes, counts, removes, defaults, asks]
        single += [entries, other_locks, disconnects]
        return [*single, loads, loads_anew, memoizes, locks, many, walks, looks, connects]

    def run(self, times: int) -> None:
        armed: list[type[BaseException]] = []
        kept: list[BaseException] = []
        printed: list[object] = []
        sys.unraisablehook = lambda shown: printed.append((shown.exc_type, shown.object))

        def interrupt(signum: int, frame: object) -> None:
            if armed:
                raise armed.pop()()

        before = signal.signal(signal.SIGALRM, interrupt)
        wrong: collections.Counter[str] = collections.Counter()
        struck = 0
        verbs = self.verbs()
        for verb in verbs:  # once in peace: Python's imports swallow an OSError
            verb(self.clients[0])
        signal.setitimer(signal.ITIMER_REAL, 0)
        while struck < times:
            kind = KINDS[struck % len(KINDS)]
            verb, client = verbs[struck % len(verbs)], self.dice.choice(self.clients)
            delay = self.dice.uniform(1e-6, 3e-4 if struck % 2 else 3e-3)
            seen = len(printed)
            try:
                armed.append(kind)
                # Again if the interpreter only printed the exception.
                signal.setitimer(signal.ITIMER_REAL, delay)
                while armed:
                    verb(client)
            except (LockTimeout, WaitTimeout):
                wrong[f"{verb.__name__}: something stayed locked"] += 1
            except BaseException as error:
                if type(error) is kind and not armed:
                    kept.append(error)
                else:
                    wrong[f"{verb.__name__}, {kind.__name__}: {type(error).__name__}: {error}"] += 1
                    if len(wrong) < 4:
                        traceback.print_exc()
            else:
                if len(printed) == seen:
                    wrong[f"{verb.__name__}, {kind.__name__}: swallowed"] += 1
            finally:
                armed.clear()
                signal.setitimer(signal.ITIMER_REAL, 0)
            struck += 1
        signal.signal(signal.SIGALRM, before)
        self.check_pools(wrong)
        kept.clear()
        gc.collect()
        self.look_for_leaks(wrong)
        for text, count in wrong.most_common(20):
            print(count, text)
        print(f"interrupted {struck} times; {len(printed)} only printed")
        for what, count in collections.Counter(map(str, printed)).most_common(10):
            print(count, what)
        sys.exit(bool(wrong))

    def pools(self, name: str) -> list[Pool]:
        routers = [client._context.backend._router for client in [*self.clients, self.observer]]
        return [pool for router in routers for pool in getattr(router, name)._pools.values()]

    def check_pools(
        self, wrong: collections.Counter[str], name: str = "_connections", limit: int = 64
    ) -> None:
        for pool in self.pools(name):
            if pool.permits.qsize() != limit:
                wrong[f"{limit - pool.permits.qsize()} of {limit} permits are lost"] += 1

    def look_for_leaks(self, wrong: collections.Counter[str]) -> None:
        self.check_pools(wrong, "_pinning", 256)
        for client in [*self.clients, self.observer]:
            assert client.get("large1")[0] == "large1"
            if client.stats().client.misses_on_error:
                wrong["an interruption counted as a miss"] += 1
        total = self.observer.stats().total
        give_up_at = time.monotonic() + 10
        while (total.leases or total.locks or total.waiting) and time.monotonic() < give_up_at:
            time.sleep(0.05)
            total = self.observer.stats().total
        for name in ("leases", "locks", "waiting"):
            if getattr(total, name):
                wrong[f"{getattr(total, name)} {name} are left"] += 1
        idle = sum(len(pool.idle) for name in ("_connections", "_pinning") for pool in self.pools(name))
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        sockets = [link for link in links if os.path.exists(link) and os.readlink(link).startswith("socket:")]
        if len(sockets) > idle:
            wrong[f"{len(sockets)} sockets are open, of which {idle} are idle connections"] += 1
        while threading.active_count() > 1 and time.monotonic() < give_up_at:
            time.sleep(0.05)
        if threading.active_count() > 1:
            wrong[f"{threading.enumerate()} are running"] += 1


if __name__ == "__main__":
    Program(sys.argv[1]).run(int(sys.argv[2]))
