"""A cluster on the hosts of a `Network`, started by the commands that a user types.

The options that hosts need beyond those of one host are here and nowhere else in the tests of the network.

Thread safety: used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from pyrocache import PyroCacheClient
from pyrocache.config import TLS, format_address
from tests.support.certificates import Certificates, new_certificates
from tests.support.network import Host, Network
from tests.support.waiting import PATIENCE_SECONDS, eventually

PORT = 9090
READY = "^ready$"
"""What `pyrocache nodes` prints when all nodes serve."""
_COPIED = re.compile(r"^.*?: (pyrocache .*)$")


PLAIN = pytest.param(False, id="plain")
TLS_TOO = [PLAIN, pytest.param(True, id="tls")]
"""What a test of both is parametrized with."""


@dataclass(frozen=True)
class Protection:
    """How the connections between hosts are protected.

    Attributes:
        tls: whether by TLS.
    """

    tls: bool

    def prepare(self, network: Network) -> None:
        """Give each host the secret and, for TLS, its certificate, at the same paths everywhere."""
        authority = self.authority(network)
        for host in network:
            host.give_secret()
            if self.tls:
                made = authority.server(f"{host.name},{host.ipv4},{host.ipv6}")
                assert made.ca is not None
                host.call(shutil.copytree, Path(made.ca).parent, host.directory / "tls")

    def authority(self, network: Network) -> Certificates:
        """Return what signs the certificates of these hosts."""
        place = network.shared / "authority"
        return new_certificates(place) if self.tls else Certificates(place)

    def of_server(self, host: Host) -> list[str]:
        """Return the options of a name server or of nodes."""
        if not self.tls:
            return ["--no-tls"]
        place = host.directory / "tls"
        return [
            word for name in ("cert", "key", "ca") for word in (f"--tls-{name}", str(place / f"{name}.pem"))
        ]

    def of_client(self, host: Host) -> list[str]:
        """Return the options of a command that asks a cluster."""
        return ["--tls-ca", str(host.directory / "tls" / "ca.pem")] if self.tls else ["--no-tls"]

    def settings(self, host: Host) -> TLS | Literal[False]:
        """Return the argument ``tls`` of a client."""
        return TLS(ca=str(host.directory / "tls" / "ca.pem")) if self.tls else False


class Command:
    """A command that runs on, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, pattern: str) -> str:
        """Return the first line in which a regular expression is found, once it is printed."""

        def find() -> str:
            found = next((line for line in self.lines if re.search(pattern, line)), "")
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
        listening = ["--host", self.address_of(host), "--port", str(PORT), *self.protection.of_server(host)]
        command = self._start(name, ["nameserver", *listening, *options])
        line = command.wait_for("ready at")
        found = re.search(r"ready at (\S+)\. ", line)
        assert found is not None, line
        self.nameserver = found[1]
        return copied(line)

    def start_nodes(self, names: Sequence[str], *options: str) -> None:
        """Start nodes on hosts, one on each unless ``options`` say more, and wait for them."""
        for name in names:
            host = self.network[name]
            there = ["--nameserver", self.nameserver, "--host", self.address_of(host)]
            self._start(
                name, ["nodes", *there, *self.protection.of_server(host), *(options or ("--nodes", "1"))]
            )
        for name in names:
            self.commands[name].wait_for(READY)

    def start_all(self, name: str) -> None:
        """Start a name server and a node on one host, which need not wait for nodes of an older cluster."""
        self.nameserver = format_address(self.address_of(self.network[name]), PORT)
        self.start_nodes([name], "--with-nameserver", "--nodes", "1")

    def start_copied(self, name: str, command: str, *options: str) -> Command:
        """Start what another host has printed, as it is, but for ``options``."""
        program, *arguments = shlex.split(command)
        assert program == "pyrocache"
        return self._start(name, [*arguments, *options])

    def client(self, name: str, **options: Any) -> PyroCacheClient:
        """Return a client on that host, whose calls are to be made there (`Host.call`)."""
        host = self.network[name]
        settings = {"secret_file": str(host.secret_file), "tls": self.protection.settings(host), **options}
        return host.call(PyroCacheClient, self.nameserver, transport="tcp", **settings)

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
