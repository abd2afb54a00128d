"""Calls of many kinds while the secret is replaced: ``python -m tests.support.secret_load NAMESERVER FILE``.

The program prints what it has counted, as JSON, once its standard input has ended.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable

from pyrocache import PyroCacheClient
from pyrocache.net.call_protocol import knowing
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NameServerDirectory
from pyrocache.runtime.secret import Secret, read_secret

_PAUSE_SECONDS = 0.01
_PATIENCE_SECONDS = 10.0


class Load:
    """Threads that call a cluster until `end`: over old and new connections, of old and new clients.

    Args:
        nameserver: its address.
        file: the secret file.
    """

    def __init__(self, nameserver: str, file: str) -> None:
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self._nameserver = nameserver
        self._file = file
        self._secret = read_secret(file)  # one, as a client that lives long has it
        self._ending = threading.Event()
        self._kept = PyroCacheClient(nameserver, secret_file=file, timeout=_PATIENCE_SECONDS)
        kinds = (self._new_client, self._kept_client, self._new_connections)
        self._threads = [threading.Thread(target=self._repeat, args=(kind,)) for kind in kinds]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop calling."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._kept.close()

    def _repeat(self, kind: Callable[[int], None]) -> None:
        number = 0
        while not self._ending.wait(_PAUSE_SECONDS):
            number += 1
            try:
                kind(number)
                self.done[kind.__name__] += 1
            except Exception as error:
                self.failures.append(f"{kind.__name__} {number}: {type(error).__name__}: {error}")

    def _new_client(self, number: int) -> None:
        transport = "tcp" if number % 2 else "auto"
        with PyroCacheClient(
            self._nameserver, secret_file=self._file, transport=transport, timeout=_PATIENCE_SECONDS
        ) as cache:
            _use(cache, number)
            cache.ping()

    def _kept_client(self, number: int) -> None:
        _use(self._kept, number)

    def _new_connections(self, number: int) -> None:
        refused = refusing(self._nameserver, self._secret)
        if refused:
            raise ConnectionError(", ".join(refused))


def _use(cache: PyroCacheClient, number: int) -> None:
    key = f"{threading.get_ident()} {number % 100}"
    cache.set(key, number)
    assert cache.get(key) == number


def refusing(nameserver: str, secret: Secret) -> list[str]:
    """Return which of the nodes and the name server do not serve a caller with this secret."""
    caller = knowing(secret)
    directory = NameServerDirectory(nameserver)  # without a secret, which reading does not need
    refused = []
    for member in directory.members(_PATIENCE_SECONDS):
        try:
            connection = Connection(member, "auto", caller)
            try:
                connection.finish_opening(Deadline(_PATIENCE_SECONDS))
                connection.call("ping", (), Deadline(_PATIENCE_SECONDS))
            finally:
                connection.close()
        except Exception as error:
            refused.append(f"{member.name} ({error})")
    try:
        NameServerDirectory(nameserver, caller=caller).ping(_PATIENCE_SECONDS)
    except Exception as error:
        refused.append(f"the name server ({error})")
    return refused


def main(arguments: Iterable[str]) -> None:
    """Run the program."""
    load = Load(*arguments)
    print("ready", flush=True)
    sys.stdin.read()
    load.end()
    print(json.dumps({"done": load.done, "failures": load.failures[:5]}))


if __name__ == "__main__":
    main(sys.argv[1:])
