"""Nothing left: file descriptors, threads, processes, disk space, a place for temporary files. All of it is real.

Limits of threads and processes count for a user and not for root, hence the commands run as users that nobody else is.
"""

from __future__ import annotations

import os
import re
import resource
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from pyrocache import LocalCluster, PartialFailure, PyroCacheClient
from pyrocache.local import LocalNode
from pyrocache.net.directory import NameServerDirectory
from pyrocache.protocol.handshake import HandshakeRefused
from pyrocache.runtime.secret_file import FILE_VARIABLE
from tests.support.nodes import private_cluster, running_nameserver
from tests.support.processes import environment, free_address
from tests.support.secrets import copy_for, remote
from tests.support.waiting import PATIENCE_SECONDS, eventually

as_root = pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("setpriv") and shutil.which("prlimit")),
    reason="only root can run commands as another user, with setpriv and prlimit",
)

WAITS = r"(The name server lists no nodes: waiting .*\n)?"
"""What the first node says if it is started just after the name server."""

IN_LIMITS = """
import resource, sys
from pyrocache import *

def limit(kind, n):
    resource.setrlimit(kind, (n, resource.getrlimit(kind)[1]))

def fails(call):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
    else:
        print("no error")
"""


def run(
    script: str, *arguments: str, threads: int | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script; with ``threads``, as a user that may have no more threads and processes than that."""
    return command("-c", IN_LIMITS + script, *arguments, threads=threads, **variables)


def command(
    *arguments: str, threads: int | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    before: list[str] = []
    if threads is not None:
        user = 100_000 + secrets.randbelow(2**20)
        before = as_user(user, threads)
        variables[FILE_VARIABLE] = copy_for(user)
    return subprocess.run(
        [*before, sys.executable, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def as_user(user: int, threads: int) -> list[str]:
    """Return the beginning of a command line."""
    read = "+dac_read_search"  # the interpreter may be in a home directory
    caps = (f"--inh-caps={read}", f"--ambient-caps={read}")
    options = ("--reuid", str(user), "--regid", str(user), "--clear-groups")
    return ["setpriv", *options, *caps, "prlimit", f"--nproc={threads}:64"]


# File descriptors --------------------------------------------------------------------------------------------


def test_a_client_without_file_descriptors_says_so_and_works_again_with_some(
    shared_cluster: LocalCluster,
) -> None:
    script = """
    address, nobody = sys.argv[1:]
    cache, fresh = PyroCacheClient(address), PyroCacheClient(address)
    cache.set("key", 1)
    named = PyroCacheClient(nobody)
    import os
    used = len(os.listdir("/proc/self/fd"))
    limit(resource.RLIMIT_NOFILE, used - 1)
    assert cache.get("key") == 1, "its connection is open"
    cache._context.backend._router._connections._close_pools()
    limit(resource.RLIMIT_NOFILE, 3)
    fails(lambda: cache.get("key"))
    fails(lambda: fresh.get("key"))
    fails(lambda: named.get("key"))
    fails(lambda: cache.lock("job").acquire())
    print(len(cache.stats().away))
    limit(resource.RLIMIT_NOFILE, 256)
    print(cache.get("key"), fresh.get("key"))
    with cache.lock("job"):
        print("held")
    """.replace("\n    ", "\n")
    outcome = run(script, shared_cluster.nameserver, "localhost:9")
    assert outcome.stderr == ""
    lines = outcome.stdout.splitlines()
    cause = r"this process has no file descriptors left: raise its limit \(ulimit -n\)"
    assert re.match(
        rf"NodeUnavailable get failed: cache.node.\d at .* cannot be reached, because {cause}", lines[0]
    )
    assert re.match(rf"NameServerUnavailable The name server at .* cannot be asked .*: {cause}", lines[1])
    assert re.match(rf"NameServerUnavailable The name server at .* cannot be asked .*: {cause}", lines[2])
    assert re.match(rf"NodeUnavailable acquire failed: .*{cause}", lines[3])
    assert lines[4:] == ["3", "1 1", "held"]


@contextmanager
def running_command(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of ours that ends with SIGTERM; its output goes to ``log``."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pyrocache", *arguments],
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)


needs_prlimit = pytest.mark.skipif(
    not hasattr(resource, "prlimit"), reason="limits of another process need prlimit"
)


@needs_prlimit
@pytest.mark.full
def test_a_node_without_file_descriptors_serves_its_clients_and_logs_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        running_nameserver() as nameserver,
        running_command("nodes", "--nodes", "1", "--nameserver", nameserver, log=log),
        PyroCacheClient(nameserver) as cache,
        PyroCacheClient(nameserver, timeout=1.5) as late,
    ):
        eventually(lambda: "ready" in log.read_text(), PATIENCE_SECONDS)
        cache.set("key", 1)
        assert late.nodes()
        pid = cache.stats().nodes["cache.node.1"].pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        with pytest.raises(ConnectionError):
            late.get("key")
        eventually(lambda: "No more connections" in log.read_text())
        with pytest.raises(ConnectionError):
            late.get("key")
        assert cache.get("key") == 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)

        def served() -> bool:
            try:
                return bool(late.get("key") == 1)
            except ConnectionError:
                return False

        eventually(served, PATIENCE_SECONDS)
    text = log.read_text()
    assert (
        text.count("No more connections are accepted for now: this process has no file descriptors left") == 1
    )
    assert text.count("Connections are accepted again.") == 1


def takes_another_client(node: LocalNode, stack: ExitStack) -> bool:
    """Connect one more client, which stays until the stack is closed. Return whether it was accepted."""
    try:
        stack.enter_context(remote(node.name, node.address))
    except HandshakeRefused:
        return False
    return True


@contextmanager
def used_up(node: LocalNode) -> Iterator[None]:
    """Use up all file descriptors of a node by idle clients."""
    limits = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
    limit = max(map(int, os.listdir(f"/proc/{node.pid}/fd"))) + 10
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (limit, limits[1]))
    with ExitStack() as stack:
        stack.callback(lambda: node.alive and resource.prlimit(node.pid, resource.RLIMIT_NOFILE, limits))
        while takes_another_client(node, stack):
            pass
        eventually(lambda: len(os.listdir(f"/proc/{node.pid}/fd")) >= limit - 1)
        yield


@pytest.mark.full
@needs_prlimit
def test_a_node_without_file_descriptors_comes_back_to_a_name_server_that_was_replaced() -> None:
    """It opens a connection with a descriptor that it had in reserve: clients have all the others."""
    with private_cluster(nodes=1) as cluster, used_up(cluster.nodes[0]), ExitStack() as stack:
        cluster.kill_nameserver()
        for _ in range(15):  # one of the clients gets the descriptor of the connection that has ended
            takes_another_client(cluster.nodes[0], stack)
            time.sleep(0.1)
        cluster.restart_nameserver()
        registered = NameServerDirectory(cluster.nameserver).members
        eventually(lambda: [member.name for member in registered()] == ["cache.node.1"])


@pytest.mark.full
@needs_prlimit
def test_a_node_without_file_descriptors_answers_other_nodes_and_refuses_clients() -> None:
    with (
        private_cluster(nodes=2) as cluster,
        used_up(cluster.nodes[0]),
        PyroCacheClient(cluster.nameserver, timeout=2.0) as late,
    ):
        assert cluster.add_node().name == "cache.node.3", "or the silent node would hold the join up"
        with pytest.raises(PartialFailure, match="no file descriptors left for clients"):
            late.set_many({number: number for number in range(100)})


def test_a_cluster_without_file_descriptors_is_an_error_that_says_so() -> None:
    outcome = run(
        """
import os
limit(resource.RLIMIT_NOFILE, 3)
fails(lambda: LocalCluster(1))
limit(resource.RLIMIT_NOFILE, 256)
print(len(os.listdir("/proc/self/fd")))
with LocalCluster(1) as cluster:
    print(cluster.client().get("key", "none"))
"""
    )
    assert outcome.stderr == ""
    first, *others = outcome.stdout.splitlines()
    assert "no file descriptors left" in first or "writable directory" in first
    assert others == ["4", "none"]


# Threads and processes ---------------------------------------------------------------------------------------


@as_root
@pytest.mark.full
def test_a_lock_that_cannot_be_renewed_is_not_held_and_later_ones_are_renewed(
    shared_cluster: LocalCluster,
) -> None:
    outcome = run(
        """
import time
address, = sys.argv[1:]
with PyroCacheClient(address, transport="tcp") as cache, PyroCacheClient(address, transport="tcp") as other:
    lock = cache.lock("threads", ttl_seconds=0.6)
    for _ in range(3):
        fails(lock.acquire)
        assert not lock.held
        with_it = other.lock("threads", wait_seconds=0)
        try:
            with_it.acquire()
        except OutOfResources:  # and not LockTimeout
            print("free")
    limit(resource.RLIMIT_NPROC, 64)
    with lock:
        time.sleep(1.5)
        print("renewed", lock.held)
""",
        shared_cluster.nameserver,
        threads=1,
    )
    assert outcome.stderr == ""
    *failures, last = outcome.stdout.splitlines()
    assert last == "renewed True"
    assert failures[1::2] == ["free"] * 3
    for failure in failures[::2]:
        assert failure == (
            "OutOfResources acquire failed, and the lock is free again: can't start new thread: raise the limit of "
            "threads and processes (ulimit -u, or the pids limit of the container)."
        )


@as_root
def test_a_name_server_that_can_start_no_thread_says_so() -> None:
    outcome = command("-m", "pyrocache", "nameserver", "--port", "0", threads=1)
    assert outcome.returncode == 1
    assert outcome.stdout == ""
    assert re.fullmatch(r"The name server cannot start: can't start new thread: .*\n", outcome.stderr)


@as_root
@pytest.mark.parametrize(
    ("threads", "sentence"),
    [
        (1, r"A process cannot be started: no process can be started: .*\n"),
        (
            2,
            r"The node cannot start: can't start new thread: .*\n",
        ),  # the command, and a node without threads
        (3, r"The (node|process) cannot start: can't start new thread: .*\n"),
    ],
)
@pytest.mark.full
def test_nodes_that_can_start_no_thread_or_process_say_so_and_are_not_registered(
    threads: int, sentence: str
) -> None:
    with running_nameserver() as nameserver:
        outcome = command(
            "-m", "pyrocache", "nodes", "--nodes", "1", "--nameserver", nameserver, threads=threads
        )
        assert outcome.returncode == 1
        assert outcome.stdout == ""
        assert re.fullmatch(WAITS + sentence, outcome.stderr), outcome.stderr
        assert NameServerDirectory(nameserver).members() == []


@as_root
def test_a_cluster_without_processes_is_an_error_that_says_so() -> None:
    outcome = run("fails(lambda: LocalCluster(1))", threads=1)
    assert outcome.stderr == ""
    assert outcome.stdout.startswith(
        "OutOfResources A process cannot be started: no process can be started: "
    )


# Disk space --------------------------------------------------------------------------------------------------


def in_a_mount_namespace(mounts: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command where these shell commands have mounted something else."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"]).returncode:
        pytest.skip("this system lets us have no mounts of our own")
    script = f'set -e\n{mounts}\nexec "$@"'
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


# What is run may be below /tmp; it stays in sight.
READ_ONLY = """
for place in /tmp /var/tmp /usr/tmp; do
    if [ -d $place ]; then
        mount --rbind $place $place
        mount -o remount,bind,ro $place
    fi
done
cd /proc
"""
FULL = """
export TMPDIR=/mnt
mount -t tmpfs -o size=4k,nr_inodes=1 none /mnt
"""

SERVES_TCP = """
import sys, logging
from pyrocache.config import NodeConfig
from pyrocache.net.call_protocol import knowing
from pyrocache.net.directory import NameServerDirectory
from pyrocache.node.lifecycle import Node
from pyrocache.runtime.secret import find_secret
from pyrocache import PyroCacheClient
logging.basicConfig(format="%(message)s", level=logging.WARNING)
nameserver = sys.argv[1]
secret = find_secret()
directory = NameServerDirectory(nameserver, caller=knowing(secret))
node = Node(NodeConfig(nameserver=nameserver, new_cluster=True), directory, secret=secret)

def ready(member):
    with PyroCacheClient(nameserver) as cache:
        cache.set("key", 1)
        print(repr(member.socket_path), cache.get("key"))
    node.stop_request.request()

node.run(ready)
"""


@pytest.mark.parametrize(
    "mounts",
    [READ_ONLY, f"{READ_ONLY}\n{FULL}"],
    ids=["read-only", "read-only and full"],
)
def test_a_node_without_a_place_for_temporary_files_serves_tcp_and_says_so_once(mounts: str) -> None:
    with running_nameserver() as nameserver:
        outcome = in_a_mount_namespace(mounts, "-c", SERVES_TCP, nameserver)
    assert outcome.stdout == "'' 1\n", outcome.stderr
    assert outcome.stderr == (
        "This node is reached over TCP alone: it has no Unix socket "
        "(there is no writable directory for temporary files: set TMPDIR to one).\n"
    )


NAMES_ON_A_FULL_DISK = """
import sys
from tests.cluster.test_resources import run_on_a_full_disk
run_on_a_full_disk(sys.argv[1])
"""


def run_on_a_full_disk(address: str) -> None:
    """Run a name server on a disk that becomes full, and a node that it cannot register."""
    port = address.rpartition(":")[2]
    nameserver = subprocess.Popen(
        [sys.executable, "-m", "pyrocache", "nameserver", "--port", port, "--storage", "sql:/mnt/names.db"],
        stdout=subprocess.PIPE,
    )
    try:
        assert nameserver.stdout is not None
        nameserver.stdout.readline()
        with suppress(OSError), open("/mnt/rest", "wb", buffering=0) as rest:
            while True:
                rest.write(bytes(4096))
        node = [sys.executable, "-m", "pyrocache", "nodes", "--nodes", "1", "--nameserver", address]
        print(subprocess.run(node, timeout=30, check=False).returncode)
    finally:
        nameserver.kill()
        nameserver.wait()


@pytest.mark.full
def test_a_name_server_on_a_full_disk_says_so_to_the_node_that_it_cannot_register() -> None:
    outcome = in_a_mount_namespace(
        "mount -t tmpfs -o size=64k none /mnt", "-c", NAMES_ON_A_FULL_DISK, free_address()
    )
    assert outcome.stdout == "1\n", outcome.stderr
    sentence = r"The name server at .* refused to register a node: .*database or disk is full\n"
    assert re.fullmatch(WAITS + sentence, outcome.stderr)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_command_whose_output_is_on_a_full_disk_says_so() -> None:
    with open("/dev/full", "w") as full:
        outcome = subprocess.run(
            [sys.executable, "-m", "pyrocache", "nameserver", "--port", "0"],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("Cannot go on: the disk is full.\n")


def test_a_name_server_whose_file_cannot_be_written_says_so() -> None:
    outcome = command("-m", "pyrocache", "nameserver", "--storage", "sql:/nowhere/names.db")
    assert outcome.returncode == 1
    assert outcome.stderr == (
        "Cannot keep the entries in 'sql:/nowhere/names.db': its directory does not exist or cannot be written to.\n"
    )
