"""`pyrocache.connect` and ``pyrocache stop``: which cluster a program gets, and how a detached one lives and ends."""

from __future__ import annotations

import os
import pty
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pyrocache import LocalCluster, NodeUnavailable
from tests.support.commands import Outcome, run
from tests.support.detached import Program, ProgramError, User, user
from tests.support.nodes import running_nameserver
from tests.support.processes import children, environment, free_address, is_gone
from tests.support.waiting import PATIENCE_SECONDS, eventually

STARTED = re.compile(
    r"Started a cluster of 1 node at (\S+) \(in a terminal: pyrocache status --nameserver \1\)\. "
    r"It ends after 1 h without clients, or with: pyrocache stop\n"
)
CONNECTED = re.compile(
    r"Connected to your cluster at (\S+) \(1 node, started \d+ s ago; in a terminal: "
    r"pyrocache status --nameserver \1\)\.\n"
)


@pytest.fixture
def me() -> Iterator[User]:
    with user() as one:
        yield one


@pytest.fixture(scope="module")
def ours() -> Iterator[User]:
    """A user with a cluster that tests do no lasting harm to. Its lines are printed."""
    with user(AS_A_PERSON="1") as one:
        yield one


# Which cluster -----------------------------------------------------------------------------------------------


def test_the_next_program_finds_the_cluster_that_the_first_one_started(ours: User) -> None:
    first, second = ours.program(), ours.program()
    address = first.connect()
    said = STARTED.fullmatch(first.printed())
    assert said is not None
    assert said[1] == address
    first.run("cache['key'] = 42")
    assert second.connect() == address
    said = CONNECTED.fullmatch(second.printed())
    assert said is not None
    assert said[1] == address
    assert second.run("cache['key']") == 42
    second.connect("nodes=2, max_memory='1GiB', timeout=1.5, quiet=True")
    assert second.run("cache._context.timeout") == 1.5
    second.connect("nodes=2, max_memory='1GiB'")
    line = second.printed()
    assert line.endswith(
        "It is used as it is, with 1 node of 64.0 MiB, not 2 of 1.0 GiB: to change that, run pyrocache stop, and "
        "connect again.\n"
    ), line


def test_the_cluster_outlives_its_starter_and_belongs_to_nobody(ours: User) -> None:
    program = ours.program()
    program.connect()
    program.run("cache['kept'] = 1")
    os.killpg(program.process.pid, signal.SIGKILL)  # as a kernel is killed when it is restarted
    program.process.wait()
    pid = ours.running().record.pid
    assert os.getsid(pid) not in (os.getsid(0), program.process.pid)
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        files = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.exists()}
        known = ("/dev/null", ours.place.directory, "socket:", "pipe:", "anon_inode:")
        assert not [file for file in files if not file.startswith(known)]
    next_one = ours.program()
    next_one.connect()
    assert next_one.run("cache['kept']") == 1


def test_commands_find_the_cluster_unless_they_are_told_another_address(ours: User) -> None:
    program = ours.program()
    address = program.connect()
    program.run("cache['from a notebook'] = 1")
    command = (
        "import os, sys; from pyrocache.detached import connect; "
        "connect.DEFAULT_NAMESERVER = os.environ['USUAL_ADDRESS']; from pyrocache.cli import main; main()"
    )
    found = run("-c", command, "get", "from a notebook", **ours.variables)
    assert found == Outcome(0, "1\n", "")
    doctor = run("-c", command, "doctor", **ours.variables)
    assert f"{address} (that of pyrocache.connect()) answers" in doctor.out
    elsewhere = free_address()
    for told in (
        run("-c", command, "get", "from a notebook", "--nameserver", elsewhere, **ours.variables),
        run("-c", command, "get", "from a notebook", **{**ours.variables, "PYROCACHE_NAMESERVER": elsewhere}),
    ):
        assert told.status == 1
        assert elsewhere in told.err


def test_a_client_is_pickled_and_forked_like_any_other(ours: User) -> None:
    program = ours.program()
    address = program.connect()
    program.run("cache['key'] = 'value'")
    program.run("import pickle; copy = pickle.loads(pickle.dumps(cache))")
    assert program.run("copy._context.config.nameserver, copy['key']") == [address, "value"]
    program.run(
        "import os\n"
        "reading, writing = os.pipe()\n"
        "if not os.fork():\n"
        "    other = pyrocache.connect(quiet=True)\n"
        "    os.write(writing, repr((cache['key'], other['key'])).encode())\n"
        "    os._exit(0)\n"
        "os.wait()"
    )
    assert program.run("os.read(reading, 100).decode()") == "('value', 'value')"


def test_a_spawned_process_finds_the_cluster_although_it_imports_the_program(
    ours: User, tmp_path: Path
) -> None:
    address = ours.program().connect()
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, pyrocache\n"
        "from pyrocache.detached import connect\n"
        "connect.DEFAULT_NAMESERVER = os.environ['USUAL_ADDRESS']\n"
        "cache = pyrocache.connect()\n"
        "def work(number):\n"
        "    return cache._context.config.nameserver\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print({work(0), *pool.map(work, range(1))})\n"
    )
    assert run(str(script), **ours.variables) == Outcome(0, f"{{{address!r}}}\n", "")


def test_a_configured_cluster_is_used_and_none_is_started_beside_it(
    me: User, shared_cluster: LocalCluster
) -> None:
    address = shared_cluster.nameserver
    me.variables |= {"AS_A_PERSON": "1", "XDG_CONFIG_HOME": os.environ["XDG_CONFIG_HOME"]}
    me.variables["PYROCACHE_NAMESERVER"] = address
    program = me.program()
    assert program.connect() == address
    assert (
        program.printed() == f"Connected to the cluster at {address} (3 nodes, from $PYROCACHE_NAMESERVER).\n"
    )
    program.run(f"import os; os.environ['PYROCACHE_NAMESERVER'] = {free_address()!r}")
    with pytest.raises(ProgramError, match=r"^NameServerUnavailable: No name server was found"):
        program.connect()
    assert me.place.running() is None


def test_the_usual_address_is_used_if_it_is_this_users_and_has_nodes(
    me: User, shared_cluster: LocalCluster
) -> None:
    me.variables["USUAL_ADDRESS"] = shared_cluster.nameserver
    own = {"XDG_CONFIG_HOME": os.environ["XDG_CONFIG_HOME"]}
    with Program({**me.variables, **own}) as program:
        assert program.connect() == shared_cluster.nameserver
    assert me.place.running() is None


@pytest.mark.full
def test_a_name_server_without_nodes_at_the_usual_address_is_passed_over(me: User) -> None:
    with running_nameserver() as address:
        me.variables |= {"USUAL_ADDRESS": address, "XDG_CONFIG_HOME": os.environ["XDG_CONFIG_HOME"]}
        assert me.program().connect() != address


# Races -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("programs", [10, pytest.param(20, marks=pytest.mark.full)])
def test_programs_that_connect_at_once_get_one_cluster(
    me: User, programs: int, shared_cluster: LocalCluster
) -> None:
    # Another user's cluster is at the usual address.
    me.variables |= {"AS_A_PERSON": "1", "USUAL_ADDRESS": shared_cluster.nameserver}
    all_ = [me.program() for _ in range(programs)]
    for program in all_:
        program.run("1")  # all are ready
    for program in all_:
        program.begin("cache = pyrocache.connect(nodes=1, max_memory='64MiB')")
    for program in all_:
        program.end()
    addresses = {program.run("cache._context.config.nameserver") for program in all_}
    assert addresses == {me.running().record.address}
    assert len([line for program in all_ if (line := program.printed()).startswith("Started")]) == 1
    assert len(me.everything()) == 3  # a keeper, a name server, a node
    assert me.log.count("is ready") == 1


@pytest.mark.parametrize("moments", [[0.3], [number / 5 for number in range(8)]])
@pytest.mark.full
def test_an_interrupted_start_leaves_a_whole_cluster_or_none(me: User, moments: list[float]) -> None:
    for moment in moments:
        program = me.program()
        program.run("1")
        program.begin("cache = pyrocache.connect(nodes=1, max_memory='64MiB')")
        time.sleep(moment + random.random() / 10)  # whenever it is, the outcome must be right
        program.process.send_signal(signal.SIGINT)
        with suppress(ProgramError):
            program.end()
        # The program keeps nothing that would hinder others, although it may keep the exception.
        other = me.program()
        other.connect()
        assert other.run("cache.set('a', 1)") is True
        assert len(me.everything()) == 3  # a keeper, a name server, a node
        assert run("-m", "pyrocache", "stop", **me.variables).status == 0


@pytest.mark.full
def test_a_starter_that_is_killed_leaves_a_whole_cluster_or_none(me: User) -> None:
    for _ in range(8):
        program = me.program()
        program.run("1")
        program.begin("cache = pyrocache.connect(nodes=1, max_memory='64MiB')")
        time.sleep(random.random())
        program.kill()
        other = me.program()
        other.connect()
        assert other.run("cache.set('a', 1)") is True
        assert len(me.everything()) == 3  # a keeper, a name server, a node
        assert run("-m", "pyrocache", "stop", **me.variables).status == 0


@pytest.mark.full
def test_who_connects_when_the_cluster_ends_gets_another_one(me: User) -> None:
    program = me.program()
    program.run("import time, random")
    for _ in range(20):
        program.connect("nodes=1, max_memory='64MiB', idle_timeout=0.3")
        assert program.run("cache.set('a', 1)") is True
        program.run("cache.close(); time.sleep(random.uniform(0.25, 0.7))")


# How it lives and ends ---------------------------------------------------------------------------------------


def test_it_ends_when_there_has_been_no_client_for_the_idle_timeout(me: User) -> None:
    seconds = 1.0
    program, killed = me.program(), me.program()
    address = program.connect(f"nodes=1, max_memory='64MiB', idle_timeout={seconds}")
    assert killed.connect() == address
    running = me.running()

    def has_looked_for_long() -> bool:
        """Whether the keeper has looked for clients, and found one, when the timeout had passed twice."""
        return os.stat(running.record.clients).st_mtime > since + 2 * seconds

    since = time.time()
    eventually(has_looked_for_long, PATIENCE_SECONDS)  # an open client, which calls nothing
    with me.client(address) as other:
        assert other.set("a", 1)
        program.run("cache.close()")
        killed.kill()
        since = time.time()
        eventually(has_looked_for_long, PATIENCE_SECONDS)  # one that only has a connection
        assert other["a"] == 1
    assert running.wait(PATIENCE_SECONDS)
    assert f"There was no client for {seconds:g} s, so the cluster ends." in me.log
    assert me.place.running() is None


@pytest.mark.full
def test_stop_ends_the_cluster_of_an_open_client(me: User) -> None:
    program = me.program()
    address = program.connect()
    program.run("cache['a'] = 1")
    everything = {me.running().record.pid, *me.processes()}
    assert not everything & children(program.process.pid)  # so the program need not wait for them
    os.kill(me.running().record.pid, signal.SIGSTOP)  # even so
    assert run("-m", "pyrocache", "stop", **me.variables) == Outcome(
        0, f"Your cluster at {address} has ended.\n", ""
    )
    eventually(lambda: all(map(is_gone, everything)))  # their locks are free a moment before
    with pytest.raises(ProgramError) as failed:
        program.run("cache['a']")
    assert re.fullmatch(
        rf"{NodeUnavailable.__name__}: get failed: cache.node.1 at \S+ cannot be reached \(ConnectionRefusedError\)\. "
        r"If the cluster was stopped, call pyrocache.connect\(\) again\. See which nodes answer with: "
        rf"pyrocache status --nameserver {address}",
        str(failed.value),
    )
    none = Outcome(0, "You have no detached cluster that runs.\n", "")
    assert run("-m", "pyrocache", "stop", **me.variables) == none
    assert sorted(os.listdir(me.place.directory)) == ["cluster.log", "cluster.start"]


def test_it_survives_its_terminal_and_a_killed_node_and_not_its_keeper(me: User) -> None:
    code = (
        "import os, time, pyrocache\n"
        "from pyrocache.detached import connect\n"
        "connect.DEFAULT_NAMESERVER = os.environ['USUAL_ADDRESS']\n"
        "cache = pyrocache.connect(nodes=1, max_memory='64MiB')\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    pid, terminal = pty.fork()
    if not pid:
        with suppress(BaseException):
            os.execve(sys.executable, [sys.executable, "-c", code], environment(**me.variables))
        os._exit(1)
    try:
        said = b""
        while b"ready" not in said:
            said += os.read(terminal, 1000)
        os.close(terminal)  # the kernel hangs up the program
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGHUP
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    running = me.running()
    os.kill(running.record.pid, signal.SIGHUP)  # as some tools send to all processes of a user
    program = me.program()
    assert program.connect() == running.record.address
    assert program.run("cache.set('a', 1)") is True
    _check_restarts(me, program)


def _check_restarts(me: User, program: Program) -> None:
    """A killed node is started again, and a killed keeper takes all with it. The next program starts anew."""
    address = program.run("cache._context.config.nameserver")
    first = me.running()
    before = me.processes()
    node = program.run("next(iter(cache.stats().nodes.values())).pid")
    assert node in before
    os.kill(node, signal.SIGKILL)
    eventually(lambda: len(me.processes() - {node}) == 2, PATIENCE_SECONDS)
    eventually(lambda: "is back with pid" in me.log, PATIENCE_SECONDS)
    assert program.run("cache.set('b', 2)") is True
    everything = me.processes()
    first.signal(signal.SIGKILL)
    eventually(lambda: all(map(is_gone, everything)), PATIENCE_SECONDS)
    # Its record is stale now.
    assert os.path.exists(os.path.join(me.place.directory, "cluster.json"))
    assert me.place.running() is None
    assert program.connect() != address
    assert program.run("cache.get('a', 'nothing')") == "nothing"
    assert me.running().record.pid != first.record.pid


# What cannot be ----------------------------------------------------------------------------------------------


def test_a_start_that_fails_says_why_and_where_the_log_is(me: User) -> None:
    program = me.program()
    program.run("connect = __import__('pyrocache.detached.connect', fromlist=['x'])")
    program.run("connect._KEEPER = 'pyrocache.cli.no_such_module'")
    with pytest.raises(ProgramError) as failed:
        program.run("pyrocache.connect()")
    assert "PyroCacheError: Your cluster did not start." in str(failed.value)
    assert "No module named 'pyrocache.cli.no_such_module'" in str(failed.value)
    assert str(failed.value).endswith(f"Its log: {me.place.log}")
    lock = me.place.starting()
    assert lock is not None  # it is free
    lock.close()
