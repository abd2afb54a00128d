"""A cluster on the hosts of a `Network`, started by the commands that a user types.

The options that hosts need beyond those of one host are here and nowhere else in the tests of the network.

Thread safety: used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyrocache import PyroCacheClient
from tests.support.network import Host, Network
from tests.support.waiting import PATIENCE_SECONDS, eventually

PORT = 9090
_COPIED = re.compile(r"^.*?: (pyrocache .*)$")


@dataclass(frozen=True)
class Protection:
    """What hosts are told about TLS.

    Attributes:
        tls: whether they use it.
    """

    tls: bool

    def prepare(self, network: Network) -> None:
        """Give each host what it needs."""
        for host in network:
            host.give_secret()
            host.variables["PYROCACHE_NO_TLS"] = "1"

    def of_server(self, host: Host, address: str) -> list[str]:
        """Return the options of a name server or of nodes that listen at an address of this host."""
        return ["--host", address, "--no-tls"]

    def of_client(self, host: Host) -> dict[str, Any]:
        """Return the arguments of a client in this process that acts on this host."""
        return {"secret_file": str(host.secret_file), "transport": "tcp"}


class Command:
    """A command that runs on, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, text: str) -> str:
        """Return the first line with that text, once it is printed."""

        def find() -> str:
            found = next((line for line in self.lines if text in line), "")
            assert found or self.process.poll() is None, f"it has ended, and said: {self.lines}"
            return found

        return eventually(find, PATIENCE_SECONDS)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):  # it is closed
            for line in self.process.stdout:
                self.lines.append(line.rstrip("\n"))


@dataclass
class Deployment:
    """A cluster on several hosts.

    Attributes:
        network: the hosts.
        protection: what they are told about TLS.
        address_of: which of its addresses a host uses.
        nameserver: the address of the name server, once it runs.
        commands: what runs, by the names of the hosts.
    """

    network: Network
    protection: Protection
    address_of: Callable[[Host], str]
    nameserver: str = ""
    commands: dict[str, Command] = field(default_factory=dict)

    def start_nameserver(self, name: str, *options: str) -> str:
        """Start it on a host. Return the command that it prints for the start of nodes."""
        host = self.network[name]
        listening = self.protection.of_server(host, self.address_of(host))
        command = self._start(name, ["nameserver", *listening, "--port", str(PORT), *options])
        line = command.wait_for("ready at")
        found = re.search(r"ready at (\S+)\. ", line)
        assert found is not None, line
        self.nameserver = found[1]
        return copied(line)

    def start_nodes(self, names: Sequence[str], *options: str, copy: str = "") -> None:
        """Start nodes on hosts, one on each unless ``options`` say more, and wait for them.

        Args:
            copy: the command to start them with; by default that of a user who knows the name server's address.
        """
        command = shlex.split(copy or f"pyrocache nodes --nameserver {self.nameserver}")
        for name in names:
            host = self.network[name]
            listening = self.protection.of_server(host, self.address_of(host))
            self._start(name, [*command[1:], *listening, *(options or ("--nodes", "1"))])
        for name in names:
            self.commands[name].wait_for("ready")

    def client(self, name: str, **options: Any) -> PyroCacheClient:
        """Return a client on that host, whose calls are to be made there (`Host.call`)."""
        host = self.network[name]
        return host.call(PyroCacheClient, self.nameserver, **self.protection.of_client(host), **options)

    def _start(self, name: str, arguments: Sequence[str]) -> Command:
        self.commands[name] = command = Command(self.network[name].start("-m", "pyrocache", *arguments))
        return command


def copied(line: str) -> str:
    """Return the command that a printed line ends with."""
    found = _COPIED.match(line)
    assert found is not None, line
    return found[1]


@contextlib.contextmanager
def calling(host: Host, cache: PyroCacheClient) -> Iterator[Callable[..., Any]]:
    """Give a function that makes a call of a client on its host: ``call("get", key)``. Close the client at the end."""
    try:
        yield lambda method, *arguments, **options: host.call(getattr(cache, method), *arguments, **options)
    finally:
        host.call(cache.close)
