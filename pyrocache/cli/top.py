"""The command ``pyrocache top``: what the cluster does at the moment, again and again.

On a terminal, it fills the screen (`Screen`) and takes keys; a thread reads the statistics, so that keys work while a
node does not answer. Otherwise, or with ``--once`` or ``--json``, it prints each reading. `top_view` makes the text.

Thread safety: runs in the main thread; `_Reader` reads in a thread of its own.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from pyrocache.cli.options import (
    PROBE_SECONDS,
    JsonOption,
    NameServerOption,
    NamespaceOption,
    SecretFileOption,
    TimeoutOption,
    client_of,
)
from pyrocache.cli.output import report, write
from pyrocache.cli.tls_options import with_tls
from pyrocache.client.client import PyroCacheClient
from pyrocache.config import DEFAULT_NAMESERVER, Encryption, check_seconds
from pyrocache.errors import CacheUnavailable, PyroCacheError

if TYPE_CHECKING:
    from pyrocache.cli.top_view import Order, Reading

SORTS = (
    *("name", "state", "ops", "gets", "sets", "hits", "entries", "memory", "used"),
    *("evictions", "connections", "p99"),
)
"""The columns that ``--sort`` takes; `top_view.COLUMNS` has them. Here, because to import that takes long."""

_MOST_KEYS = 50


def _sort(name: str) -> str:
    if name not in SORTS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(SORTS)}")
    return name


@with_tls()
def top_command(
    tls: Encryption,
    sort: Annotated[
        str,
        typer.Option(
            help=f"Sort the nodes by this column: {', '.join(SORTS)}.",
            metavar="COLUMN",
            callback=_sort,
            autocompletion=lambda: list(SORTS),
        ),
    ] = "name",
    keys: Annotated[
        bool, typer.Option("--keys", "-k", help="Also show the keys of the namespace that are used most.")
    ] = False,
    namespace: NamespaceOption = None,
    interval: Annotated[
        float,
        typer.Option("--interval", "-i", help="Seconds between two readings.", min=0.1, metavar="SECONDS"),
    ] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Measure one interval, print it, and end.", show_default=False)
    ] = False,
    count: Annotated[
        int | None, typer.Option(help="End after so many intervals.", min=1, metavar="N", show_default=False)
    ] = None,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    secret_file: SecretFileOption = None,
    timeout: TimeoutOption = PROBE_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Show what each node does now: operations per second, hits, memory. On a terminal, ? shows the keys; q quits.

    Without a terminal, prints a table for each interval; with --json, a line of JSON for each. Rates are averaged over
    the last 5 seconds. Exit status 1 when a node does not answer at the end.
    """
    from pyrocache.cli.screen import is_possible
    from pyrocache.cli.top_view import Order

    seconds = check_seconds("--interval", interval)
    order = Order(sort=sort)
    with client_of(nameserver, namespace, timeout, secret_file, None, tls) as cache:
        sampler = Sampler(cache, nameserver, keys=keys)
        if not (once or as_json) and is_possible():
            away = _live(sampler, order, seconds, count)
        else:
            away = _printed(sampler, order, seconds, 1 if once else count, as_json=as_json)
    raise typer.Exit(1 if away else 0)


class Sampler:
    """Reads the statistics of a cluster, and keeps what their rates are made of.

    Args:
        cache: the client.
        nameserver: its address, to be shown.
        keys: whether to ask for the keys that are called most.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        cache: PyroCacheClient,
        nameserver: str,
        *,
        keys: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from pyrocache.client.rates import Rates

        self._cache = cache
        self._nameserver = nameserver
        self._keys = keys
        self._clock = clock
        self._rates = Rates()

    def read(self) -> Reading:
        """Return a reading. Raises as `PyroCacheClient.stats`."""
        from pyrocache.cli.top_view import Reading

        stats = self._cache.stats()
        reading = Reading(self._nameserver, stats, self._rates.take(stats, self._clock()))
        if not self._keys:
            return reading
        try:
            return replace(reading, keys=self._cache.hot_keys(_MOST_KEYS, seconds=0))
        except PyroCacheError as error:  # nodes of an older version
            return replace(reading, keys=(), remark=f"The hottest keys cannot be read: {error}")


def _printed(sampler: Sampler, order: Order, interval: float, count: int | None, *, as_json: bool) -> bool:
    """Print a reading after each interval. Return whether a node did not answer at the end.

    A cluster that does not answer is an error at first, and at the end; in between, it may come back.
    """
    from pyrocache.cli.top_view import as_json as json_of
    from pyrocache.cli.top_view import plain

    reading = sampler.read()
    beginning, printed = time.monotonic(), 0
    while True:
        time.sleep(max(0.0, beginning + (printed + 1) * interval - time.monotonic()))
        printed += 1
        last = printed == count
        try:
            reading = sampler.read()
        except CacheUnavailable as error:
            if last:
                raise
            report(str(error))
            continue
        if as_json:
            write(json.dumps(json_of(reading, order)))
        else:
            write(plain(reading, order) + ("\n" if last else "\n\n"))
        if last:
            return bool(reading.stats.away)


def _live(sampler: Sampler, order: Order, interval: float, count: int | None) -> bool:
    """Show readings on the screen until a key quits. Return whether a node did not answer at the end of ``count``."""
    from pyrocache.cli.screen import Screen
    from pyrocache.cli.top_view import screen as lines_of

    first = sampler.read()  # before the screen is cleared: an error is printed as by every command
    with Screen() as screen:
        reader = _Reader(sampler.read, first, interval, screen.wake)
        try:
            while True:
                screen.draw(lines_of(reader.latest(), order, *screen.size))
                if not all(map(order.press, screen.wait(None))):
                    return False
                if count is not None and reader.taken >= count:
                    return bool(reader.latest().stats.away)
        finally:
            reader.stop()


class _Reader:
    """A thread that makes readings.

    Args:
        read: makes one.
        first: the one that there is.
        interval: seconds between two.
        changed: called when there is something new, in the thread.

    Attributes:
        taken: how many were made.
    """

    def __init__(
        self, read: Callable[[], Reading], first: Reading, interval: float, changed: Callable[[], None]
    ) -> None:
        self.taken = 0
        self._read = read
        self._latest = first
        self._interval = interval
        self._changed = changed
        self._failure: BaseException | None = None
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="pyrocache-top", daemon=True).start()

    def latest(self) -> Reading:
        """Return the last reading; if the cluster does not answer, with a remark. Raises any other error."""
        if self._failure is not None:
            raise self._failure
        return self._latest

    def stop(self) -> None:
        """Let the thread end, without waiting for it: a node may not answer."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self._latest = self._read()
                self.taken += 1
            except CacheUnavailable as error:
                self._latest = replace(self._latest, remark=str(error))
                self.taken += 1
            except BaseException as error:
                self._failure = error
                self._stopped.set()
            self._changed()
