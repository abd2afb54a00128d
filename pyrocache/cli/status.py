"""The command ``pyrocache status``: the nodes and what they hold, once or again and again.

With ``--watch``, it goes on while nodes or the name server do not answer, and says so.

Thread safety: runs in the main thread; on a terminal, ``--watch`` asks in another one (`live`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrocache.cli.options import PROBE_SECONDS, JsonOption, NameServerOption, SecretFileOption, TimeoutOption
from pyrocache.cli.output import write
from pyrocache.cli.tls_options import with_tls
from pyrocache.client.client import PyroCacheClient
from pyrocache.config import DEFAULT_NAMESERVER, Encryption, check_seconds
from pyrocache.errors import AuthenticationError, CacheUnavailable
from pyrocache.runtime.secret import find_secret

if TYPE_CHECKING:
    from rich.text import Text

    from pyrocache.client.stats import Stats
    from pyrocache.cluster.routing import Member
    from pyrocache.net.directory import NameServerDirectory


@with_tls()
def status_command(
    tls: Encryption,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            "-w",
            help="Refresh it until you press q; without a terminal, print it again and again.",
        ),
    ] = False,
    interval: Annotated[
        float,
        typer.Option(
            "--interval",
            "-i",
            help="Seconds between two refreshes, with --watch.",
            min=0.1,
            metavar="SECONDS",
        ),
    ] = 2.0,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    secret_file: SecretFileOption = None,
    timeout: TimeoutOption = PROBE_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Show the nodes and what they hold. Exit status 1 when a node does not answer or may not serve (no lease).

    With --watch and --json, prints a line of JSON each time.
    """
    from pyrocache.net.call_protocol import knowing
    from pyrocache.net.directory import NameServerDirectory

    with PyroCacheClient(nameserver, timeout=timeout, secret_file=secret_file, tls=tls) as cache:
        caller = knowing(find_secret(secret_file), trusting=True, tls=tls)
        source = _Source(cache, NameServerDirectory(nameserver, caller=caller), nameserver, timeout)
        if watch:
            _watch(source, check_seconds("--interval", interval), as_json=as_json)
            return
        status = source.read()
    if as_json:
        write(json.dumps(status.as_json(), indent=2))
    else:
        write("\n".join(status.lines()))
    raise typer.Exit(0 if status.serves else 1)


@dataclass(frozen=True)
class _Status:
    """What is known of the cluster at one moment.

    Attributes:
        nameserver: its address.
        members: the nodes that the name server lists.
        stats: their statistics; None if they are not known.
        obstacle: as in `Listing`.
        problem: why something could not be asked; empty if all went well.
    """

    nameserver: str
    members: list[Member] = field(default_factory=list)
    stats: Stats | None = None
    obstacle: int = 0
    problem: str = ""

    @property
    def serves(self) -> bool:
        """Whether every node serves."""
        if self.stats is None or self.problem:
            return False
        nodes = self.stats.nodes
        return all(one.name in nodes and nodes[one.name].serving for one in self.members)

    def lines(self, width: int | None = None) -> list[str]:
        """Return the lines that are printed; ``width``: of the terminal, None to find it."""
        from pyrocache.cli.tables import status_lines

        problem = [f"Warning: {self.problem}"] if self.problem else []
        if self.stats is None:
            return [f"Name server {self.nameserver}", *problem]
        return [
            *status_lines(self.nameserver, self.members, self.stats, self.obstacle, width=width),
            *problem,
        ]

    def as_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        from pyrocache.cli.tables import nodes_as_json

        nodes = [] if self.stats is None else nodes_as_json(self.members, self.stats)
        shown: dict[str, Any] = {"nameserver": self.nameserver, "nodes": nodes}
        return {**shown, "error": self.problem} if self.problem else shown


class _Source:
    """Asks the name server and the nodes."""

    def __init__(
        self, cache: PyroCacheClient, directory: NameServerDirectory, nameserver: str, timeout: float
    ) -> None:
        self._cache = cache
        self._directory = directory
        self._timeout = timeout
        self._last = _Status(nameserver)

    def read(self) -> _Status:
        """Return the status. Raises `CacheUnavailable` if the name server does not answer."""
        members = self._cache.nodes()
        stats = self._cache.stats()
        obstacle = self._directory.listing(self._timeout).obstacle
        self._last = _Status(self._last.nameserver, members, stats, obstacle)
        return self._last

    def read_anyway(self) -> _Status:
        """Return the status; what is still known of it if the name server does not answer.

        Raises:
            AuthenticationError: the secret is another one.
        """
        try:
            return self.read()
        except AuthenticationError:  # a wrong secret does not become right
            raise
        except CacheUnavailable as error:
            problem = str(error)
        stats = None
        if self._last.members:
            try:  # the nodes serve without a name server for some time
                stats = self._cache.stats()
            except CacheUnavailable:
                pass
        return replace(self._last, stats=stats, problem=problem)


def _watch(
    source: _Source, interval: float, *, as_json: bool, sleep: Callable[[float], object] = time.sleep
) -> None:
    """Show the status until a key or a signal ends it."""
    from pyrocache.cli.screen import is_possible

    if not as_json and is_possible():
        from pyrocache.cli.live import live

        live(
            source.read_anyway(),
            source.read_anyway,
            _screen,
            lambda key: key not in ("q", "Q"),
            interval=interval,
        )
        return
    while True:
        status = source.read_anyway()
        write(json.dumps(status.as_json()) if as_json else "\n".join([*status.lines(), "", ""]))
        sleep(interval)


def _screen(status: _Status, columns: int, lines: int) -> list[Text]:
    """Return the lines of a screen. What is wrong comes first, so that it is not cut off."""
    from rich.text import Text

    problem = [Text(line, style="red") for line in wrap(status.problem, columns)]
    table = [Text.from_ansi(line) for line in replace(status, problem="").lines(columns)]
    return [*problem, *table][:lines]
