"""What docs/deployment.md has an operator type, on the hosts of a `Network`.

A line of the document begins with the name of a host: ``cache1$ pyrocache secret``. Here, ``ssh`` and ``scp`` run and
copy by themselves, `pyrocache nameserver` and `pyrocache nodes` run on, and ``sleep`` takes as long as an operator is
told to be patient.

Thread safety: used by one thread at a time.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from tests.support.commands import shell_environment
from tests.support.deployment import Command
from tests.support.network import Host, Network
from tests.support.processes import ROOT, children

DOCUMENT = ROOT / "docs" / "deployment.md"
_LINE = re.compile(r"^ *(\w+)\$ (.+)$", re.MULTILINE)
_SECONDS = 30.0


def lines_of(heading: str) -> list[tuple[str, str]]:
    """Return the lines of a section of the document: the name of a host, and what is typed there."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, heading
    found = _LINE.findall(section[1])
    assert found, heading
    return found


class Operator:
    """Types lines on hosts.

    Attributes:
        network: the hosts.
        running: the commands that run on, by host.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.running: dict[str, list[Command]] = {}
        self._tunnels: list[socket.socket] = []
        script = network.shared / "bin"
        script.mkdir()
        self._path = shell_environment(script, "")["PATH"]
        for host in network:
            host.variables["XDG_CONFIG_HOME"] = str(host.directory / ".config")
            host.variables["PATH"] = self._path

    def type(self, name: str, line: str) -> str:
        """Run a line on a host. Return what it has printed, unless it runs on."""
        host = self.network[name]
        word, *rest = shlex.split(line)
        if line.startswith(("pyrocache nameserver", "pyrocache nodes --")):
            command = Command(host.start("-m", "pyrocache", *rest))
            self.running.setdefault(name, []).append(command)
            command.wait_for(r"^ready$|ready at")
            return ""
        if line.startswith("ssh -N "):
            return self._tunnel(host, rest)
        if word == "ssh":
            return self.shell(self.network[rest[0]], shlex.join(rest[1:]))
        if word == "scp":
            return self._copy(host, line.split()[2:])
        return self.shell(host, line)

    def shell(self, host: Host, line: str) -> str:
        """Run a line in a shell on a host, in the home, or in the source tree if it needs that. Return its output."""
        where = ROOT if "examples/" in line else host.directory
        done = host.call(
            subprocess.run,
            ["sh", "-c", line],
            cwd=where,
            env={**shell_environment(self.network.shared / "bin", ""), **host.variables},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        assert done.returncode == 0, f"{host.name}$ {line}\n{done.stdout}{done.stderr}"
        return str(done.stdout)

    def stop(self, name: str) -> None:
        """End the last command of a host with SIGTERM, as ``systemctl stop`` does."""
        process = self.running[name].pop().process
        process.terminate()
        assert process.wait(_SECONDS) == 0

    def lose(self, name: str) -> None:
        """Kill the nodes of a host without a word, as if its power was cut."""
        process = self.running[name].pop().process
        process.send_signal(signal.SIGSTOP)  # or it starts them again
        for pid in children(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait(_SECONDS)

    def reload(self, name: str) -> None:
        """Do what ``systemctl reload`` does for all commands of a host."""
        for command in self.running[name]:
            command.process.send_signal(signal.SIGHUP)

    def close(self) -> None:
        """End the tunnels. The network ends the commands."""
        for tunnel in self._tunnels:
            tunnel.close()

    def _copy(self, host: Host, words: list[str]) -> str:
        """Copy files between two hosts, through a directory that both see."""
        *sources, target = words
        between = self.network.shared / "copied"
        if ":" in target:
            other, there = target.split(":")
            self.shell(host, f"rm -rf {between}; mkdir {between}; cp -p {' '.join(sources)} {between}/")
            return self.shell(self.network[other], f"cp -p {between}/* {there}")
        other, path = sources[0].split(":")
        self.shell(
            self.network[other],
            f"rm -rf {between}; mkdir {between}; cp -p {path} {between}/{Path(path).name}",
        )
        return self.shell(host, f"mkdir -p -m 700 $(dirname {target}); cp -p {between}/* {target}")

    def _tunnel(self, host: Host, words: list[str]) -> str:
        """Pass connections on, as ``ssh -N -L PORT:127.0.0.1:PORT ... HOST`` does."""
        *options, other = words
        for forward in [word for word in options if ":" in word]:
            port, address, target = forward.split(":")
            listener = host.call(socket.create_server, ("127.0.0.1", int(port)))
            self._tunnels.append(listener)
            threading.Thread(
                target=_forward, args=(listener, self.network[other], (address, int(target))), daemon=True
            ).start()
        return ""


def _forward(listener: socket.socket, other: Host, address: tuple[str, int]) -> None:
    with suppress(OSError):  # it is closed
        while True:
            near, _ = listener.accept()
            far = other.call(socket.create_connection, address)
            for one, another in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(one, another), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
