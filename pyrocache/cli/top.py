"""The command ``pyrocache top``: what the cluster does at the moment, again and again.

On a terminal, it fills the screen and takes keys, see `live`. Otherwise, or with ``--once`` or ``--json``, it prints
each reading. `top_view` makes the text.

Thread safety: runs in the main thread; on a terminal, the statistics are read in another one (`live`).
"""

from __future__ import annotations

import json
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
from pyrocache.errors import AuthenticationError, CacheUnavailable, PyroCacheError

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
    once: Annotated[bool, typer.Option("--once", help="The same as --count 1.", show_default=False)] = False,
    count: Annotated[
        int | None, typer.Option(help="End after N intervals.", min=1, metavar="N", show_default=False)
    ] = None,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    secret_file: SecretFileOption = None,
    timeout: TimeoutOption = PROBE_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Show operations per second, hit ratio and memory of each node, live. Press q to quit, ? for the other shortcuts.

    Without a terminal, prints a table for each interval; with --json, a line of JSON for each. Rates are averaged over
    the last 5 seconds. Exit status 1 when a node does not answer at the end.
    """
    from pyrocache.cli.screen import is_possible
    from pyrocache.cli.top_view import Order

    seconds = check_seconds("--interval", interval)
    order = Order(sort=sort)
    # A key of a class that is not here is left out.
    with client_of(nameserver, namespace, timeout, secret_file, None, tls, on_undecodable="miss") as cache:
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
            if last or isinstance(error, AuthenticationError):
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
    from pyrocache.cli.live import live
    from pyrocache.cli.top_view import screen

    latest = sampler.read()  # before the screen is cleared: an error is printed as by every command

    def read() -> Reading:
        nonlocal latest
        try:
            latest = sampler.read()
        except AuthenticationError:  # a wrong secret does not become right
            raise
        except CacheUnavailable as error:  # the cluster may come back
            latest = replace(latest, remark=str(error))
        return latest

    last = live(
        latest,
        read,
        lambda reading, columns, lines: screen(reading, order, columns, lines),
        order.press,
        interval=interval,
        count=count,
    )
    return last is not None and bool(last.stats.away or last.remark)
