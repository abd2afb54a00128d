"""The servers of a run: each a context manager that starts one, waits until it answers, and stops it by its handle.

All on free loopback ports or on Unix sockets in a private directory. Programs get a process group of their own, so
that Ctrl-C in a terminal reaches this process alone, which then stops them. All processes of a run share a secret
(`own_secret`) that is not the user's. Where something is missing they raise
`NotInstalled`, whose text says how to get it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.managers import DictProxy
from pathlib import Path
from typing import Any

from benchmarks.stock_pyro import serve
from pyrocache import TLS, LocalCluster
from pyrocache.runtime import secret_file
from pyrocache.runtime.child_process import start_nameserver, start_node

FORKSERVER = multiprocessing.get_context("forkserver")
"""Where our own child processes come from: forked from a process that has nothing but the imports."""

_START_SECONDS = 10.0
_STOP_SECONDS = 5.0


class NotInstalled(Exception):
    """A contender is not on this machine; the text is one line saying how to get it."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        pids: its processes.
        address: how to reach it, in the words of its client.
    """

    pids: tuple[int, ...]
    address: Any


@contextmanager
def own_secret() -> Iterator[None]:
    """Let this process, and those that it starts meanwhile, use a secret that is made for this run."""
    before = os.environ.get(secret_file.FILE_VARIABLE)
    with _directory() as directory:
        path = os.environ[secret_file.FILE_VARIABLE] = str(directory / "secret")
        secret_file.make(path)
        try:
            yield
        finally:
            if before is None:
                del os.environ[secret_file.FILE_VARIABLE]
            else:
                os.environ[secret_file.FILE_VARIABLE] = before


@contextmanager
def pyrocache_cluster(nodes: int, max_memory: str) -> Iterator[Server]:
    """Ours; the address is the name server's. Its processes are the nodes (no call goes to the name server)."""
    with LocalCluster(nodes=nodes, max_memory=max_memory) as cluster:
        yield Server(tuple(node.pid for node in cluster.nodes), cluster.nameserver)


@contextmanager
def one_node(tls: TLS | None = None, **settings: Any) -> Iterator[Server]:
    """One node of ours; the address is the name server's.

    Args:
        tls: the certificate of both.
        settings: further fields of `NodeConfig`.
    """
    with contextlib.ExitStack() as stack:
        encryption = None if tls is None else asdict(tls)
        nameserver = start_nameserver(quiet=True, tls=encryption)
        stack.callback(nameserver.kill)
        address = nameserver.wait_until_ready()["address"]
        node = start_node(
            {"nameserver": address, "new_cluster": True, "tls": encryption, **settings}, quiet=True
        )
        stack.callback(node.kill)
        node.wait_until_ready()
        yield Server((node.pid,), address)


@contextmanager
def redis_server(password: str = "", tls: TLS | None = None) -> Iterator[Server]:
    """Redis without persistence; one server listens at both addresses, keywords of ``redis.Redis`` by transport.

    With a password, clients must give it. With ``tls``, its TCP port speaks TLS, and demands no certificate.
    """
    program = _program("redis-server", "redis-server")
    check_library("redis")
    with _directory() as directory:
        port, path = _free_port(), str(directory / "redis.sock")
        command = [program, "--bind", "127.0.0.1", "--unixsocket", path]
        encrypted: dict[str, Any] = {}
        if tls is None:
            command += ["--port", str(port)]
        else:
            command += ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"]
            command += ["--tls-cert-file", str(tls.cert), "--tls-key-file", str(tls.key)]
            command += ["--tls-ca-cert-file", str(tls.ca)]
            encrypted = {"ssl": True, "ssl_ca_certs": tls.ca}
        command += ["--save", "", "--appendonly", "no", "--dir", str(directory)]
        if password:
            command += ["--requirepass", password]
        with _running(command) as process:
            _wait_until_connected(process, path)
            _wait_until_connected(process, ("127.0.0.1", port))
            login = {"password": password} if password else {}
            addresses = {
                "TCP": {"host": "127.0.0.1", "port": port, **login, **encrypted},
                "Unix": {"unix_socket_path": path, **login},
            }
            yield Server((process.pid,), addresses)


@contextmanager
def memcached_server(transport: str, *, megabytes: int, largest_item: str) -> Iterator[Server]:
    """memcached, which listens at one kind of address only."""
    program = _program("memcached", "memcached")
    check_library("pymemcache")
    with _directory() as directory:
        address: str | tuple[str, int]
        if transport == "Unix":
            address = str(directory / "memcached.sock")
            listen = ["-s", address]
        else:
            address = ("127.0.0.1", _free_port())
            listen = ["-l", "127.0.0.1", "-p", str(address[1]), "-U", "0"]
        command = [program, *listen, "-m", str(megabytes), "-I", largest_item]
        if os.geteuid() == 0:
            command += ["-u", "root"]  # it wants to be told
        with _running(command) as process:
            _wait_until_connected(process, address)
            yield Server((process.pid,), address)


@contextmanager
def stock_pyro_daemon(transport: str) -> Iterator[Server]:
    """A stock Pyro5 daemon; the address is the object's URI."""
    with _directory() as directory:
        where = {"unixsocket": str(directory / "pyro.sock")} if transport == "Unix" else {"host": "127.0.0.1"}
        ours, theirs = FORKSERVER.Pipe()
        process = FORKSERVER.Process(target=serve, args=(theirs, where), name="stock Pyro5", daemon=True)
        process.start()
        theirs.close()
        try:
            if not ours.poll(_START_SECONDS):
                raise TimeoutError("the stock Pyro5 daemon did not start")
            uri = ours.recv()
            assert process.pid is not None
            yield Server((process.pid,), uri)
        finally:
            ours.close()
            process.join(_STOP_SECONDS)
            process.kill()
            process.join()


@contextmanager
def manager_dict() -> Iterator[Server]:
    """A ``multiprocessing.Manager().dict()``; the address is its proxy."""
    before = set(multiprocessing.active_children())
    with FORKSERVER.Manager() as manager:
        (process,) = set(multiprocessing.active_children()) - before
        assert process.pid is not None
        entries: DictProxy[str, bytes] = manager.dict()
        yield Server((process.pid,), entries)


def _program(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise NotInstalled(f"{name} is not installed and left out; get it with: apt-get install {package}")
    return path


def check_library(name: str) -> None:
    """Raise `NotInstalled` if there is no such package."""
    if importlib.util.find_spec(name) is None:
        raise NotInstalled(f"The Python package {name} is missing; get it with: pip install '.[bench]'")


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pyrocache-bench-") as path:
        yield Path(path)


@contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_until_connected(process: subprocess.Popen[bytes], address: str | tuple[str, int]) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    while True:
        with socket.socket(family) as probe:
            probe.settimeout(_START_SECONDS)
            try:
                return probe.connect(address)
            except OSError as error:
                if process.poll() is not None or time.monotonic() > give_up_at:
                    raise RuntimeError(f"{process.args!r} did not start") from error
        time.sleep(0.002)
