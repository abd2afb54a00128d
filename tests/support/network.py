"""Hosts of a network, on one machine: network namespaces, each with an IPv4 and an IPv6 address and a host name.

All packets between two hosts go through a process of our own (`tests.support.between`). It can silently cut off pairs
of hosts from each other, and lose and delay packets. Each host has a TUN device that leads to this process. So this
needs root, but not the kernel's traffic control.

A host also has a mount namespace of its own, with its own ``/etc/hosts`` and its own directory for temporary files,
home and settings. The directory has the same path on each host, so no host sees the Unix sockets and the secret of
another one. All other files are shared.

Namespaces have no names, and belong to a thread of this process (`Host.call`). So the system always removes them with
the last process in them, and parallel runs do not disturb each other.

Thread safety: a `Network` is used by one thread at a time; a `Host` by any.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from pyrocache.runtime.secret import locate
from tests.support.between import State
from tests.support.commands import Outcome
from tests.support.processes import ROOT, environment

DOMAIN = "pyrocache.test"
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_PR_SET_PDEATHSIG = 1
_COMMAND_SECONDS = 30.0

_libc = ctypes.CDLL(None, use_errno=True)

_T = TypeVar("_T")


class Unsupported(Exception):
    """There can be no namespaces here."""


class Host:
    """One host. Made by `Network`.

    Args:
        number: of the host, from 1.
        name: of the host, without the domain.
        directory: where its own files are mounted. The same for all hosts.
        hosts_file: the text of its ``/etc/hosts``.
        aliases: further addresses, which it takes over from other hosts.

    Attributes:
        name: its name, with the domain.
        ipv4, ipv6: its addresses.
        tun: the descriptor of its packets.
        variables: of the environment of the commands that it runs.
    """

    def __init__(
        self, number: int, name: str, directory: Path, hosts_file: str, aliases: Sequence[str] = ()
    ) -> None:
        self.number = number
        self.name = f"{name}.{DOMAIN}"
        self.ipv4, self.ipv6 = addresses_of(number)
        self.directory = directory
        self.variables = {
            "HOME": str(directory),
            "TMPDIR": str(directory),
            "XDG_CONFIG_HOME": str(directory / "config"),
            "XDG_RUNTIME_DIR": str(directory / "runtime"),
        }
        self._processes: list[subprocess.Popen[str]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        try:
            self.tun: int = self._thread.submit(self._set_up, hosts_file, aliases).result()
        except BaseException:
            self._thread.shutdown()
            raise

    def call(self, function: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
        """Call a function on this host: the sockets, threads and processes that it makes belong to the host."""
        return self._thread.submit(function, *arguments, **options).result()

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a Python command. It ends with the host, and with this process."""
        process = self.call(
            subprocess.Popen,
            [sys.executable, *command],
            cwd=ROOT,
            env=environment(**self.variables),
            text=True,
            preexec_fn=_end_with_parent,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options},
        )
        self._processes.append(process)
        return process

    def run(self, *command: str) -> Outcome:
        """Run a Python command to its end."""
        with self.start(*command, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=_COMMAND_SECONDS)
        return Outcome(process.returncode, out, err)

    def give_secret(self) -> None:
        """Give the user of this host the secret of this test run."""

        def copy() -> None:
            path = self.secret_file
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copyfile(secret, path)
            path.chmod(0o600)

        secret = locate()
        self.call(copy)

    @property
    def secret_file(self) -> Path:
        """Where this host has the secret."""
        return self.directory / "config" / "pyrocache" / "secret"

    def close(self) -> None:
        """Kill all processes of the host. The system removes the rest when nobody uses it."""
        own = self.call(os.readlink, "/proc/thread-self/ns/net")
        for path in Path("/proc").glob("[0-9]*/ns/net"):
            with contextlib.suppress(OSError):  # it has ended
                if os.readlink(path) == own:
                    os.kill(int(path.parts[2]), signal.SIGKILL)
        for process in self._processes:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        os.close(self.tun)
        self._thread.shutdown()

    def _set_up(self, hosts_file: str, aliases: Sequence[str]) -> int:
        """Enter new namespaces, for good, and set them up. Runs in the thread of the host."""
        if _libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET):
            raise Unsupported(f"no namespaces can be made ({os.strerror(ctypes.get_errno())})")
        for command in (
            ["mount", "--make-rprivate", "/"],
            ["mount", "-t", "tmpfs", "-o", "mode=0700", "tmpfs", str(self.directory)],
        ):
            _system(*command)
        (self.directory / "runtime").mkdir(mode=0o700)
        hosts = self.directory / "hosts"
        hosts.write_text(hosts_file)
        _system("mount", "--bind", str(hosts), "/etc/hosts")
        try:
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"net0", _IFF_TUN | _IFF_NO_PI))
        except OSError as error:
            raise Unsupported(f"no TUN device can be made ({error.strerror})") from None
        lines = ["link set lo up", "link set net0 mtu 1500 up"]
        lines += [f"addr add {self.ipv4}/24 dev net0", f"addr add {self.ipv6}/64 dev net0 nodad"]
        lines += [f"addr add {alias}/{128 if ':' in alias else 32} dev net0" for alias in aliases]
        _system("ip", "-batch", "-", stdin="\n".join(lines))
        return tun


class Network:
    """Hosts that reach each other.

    Args:
        names: of the hosts, without the domain.
        aliases: further addresses of a host, by its name: those of hosts that it acts as, see `divert`.

    Attributes:
        shared: a directory whose files all hosts see.
    """

    def __init__(self, *names: str, **aliases: Sequence[str]) -> None:
        self._stack = contextlib.ExitStack()
        with self._stack:
            self.shared = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hosts-")))
            own = self.shared / "own"
            own.mkdir()
            self._hosts = {
                name: self._add(Host(number, name, own, _hosts_file(names), aliases.get(name, ())))
                for number, name in enumerate(names, 1)
            }
            self._start_between()
            self._stack = self._stack.pop_all()

    def __getitem__(self, name: str) -> Host:
        """Return a host."""
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        """Return all hosts."""
        return iter(self._hosts.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def cut(self, one: str, other: str) -> None:
        """Let nothing pass between two hosts, from now on, and say nothing."""
        self._set(cut=[*self._state.cut, self._pair(one, other)])

    def heal(self, one: str, other: str) -> None:
        """Undo `cut`."""
        self._set(cut=[pair for pair in self._state.cut if pair != self._pair(one, other)])

    def delay(self, seconds: float) -> None:
        """Let each packet take so long: a round trip takes twice as long."""
        self._set(delay=seconds)

    def lose(self, share: float) -> None:
        """Lose this share of all packets, in each direction."""
        self._set(loss=share)

    def divert(self, source: str, target: str, other: str) -> None:
        """Give what a host sends to ``target`` to another host, which has the target's addresses as well."""
        numbers = (self._number(source), self._number(target), self._number(other))
        self._set(diverted=[*self._state.diverted, numbers])

    def _set(self, **changes: Any) -> None:
        self._state = replace(self._state, **changes)
        assert self._between.stdin is not None
        assert self._between.stdout is not None
        self._between.stdin.write(self._state.to_line())
        self._between.stdin.flush()
        assert self._between.stdout.readline()

    def _number(self, name: str) -> int:
        return self._hosts[name].number - 1

    def _pair(self, one: str, other: str) -> tuple[int, int]:
        first, second = sorted((self._number(one), self._number(other)))
        return first, second

    def _add(self, host: Host) -> Host:
        self._stack.callback(host.close)
        return host

    def _start_between(self) -> None:
        self._state = State()
        hosts = [(host.tun, (host.ipv4, host.ipv6)) for host in self]
        self._between = subprocess.Popen(
            [sys.executable, "-m", "tests.support.between", json.dumps(hosts)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[host.tun for host in self],
            process_group=0,  # Ctrl-C reaches this process alone
        )
        self._stack.callback(self._stop_between)
        self._set()  # waits until it forwards

    def _stop_between(self) -> None:
        self._between.communicate()  # ends its input


def addresses_of(number: int) -> tuple[str, str]:
    """Return the IPv4 and the IPv6 address of a host, of ranges that are nowhere in use."""
    return f"192.0.2.{number}", f"2001:db8::{number:x}"


def network(*names: str, **aliases: Sequence[str]) -> Network:
    """Return a `Network`. Skips the test where there can be none."""
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("network namespaces need Linux and root")
    for program in ("ip", "mount"):
        if shutil.which(program) is None:
            pytest.skip(f"the hosts of a network need the command `{program}`")
    try:
        return Network(*names, **aliases)
    except Unsupported as error:
        pytest.skip(f"this machine cannot have hosts of its own: {error}")


def _hosts_file(names: Sequence[str]) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    for number, name in enumerate(names, 1):
        ipv4, ipv6 = addresses_of(number)
        lines += [f"{ipv4} {name}.{DOMAIN} {name}-4.{DOMAIN}", f"{ipv6} {name}.{DOMAIN} {name}-6.{DOMAIN}"]
    return "\n".join([*lines, ""])


def _end_with_parent() -> None:
    """Have the system end this process with the thread that started it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _system(*command: str, stdin: str = "") -> None:
    outcome = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise Unsupported(f"{' '.join(command)}: {outcome.stderr.strip()}")
