"""The secret of a user, as its processes find and use it: real processes, each with a directory of its own."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from pyrocache import AuthenticationError, ConfigurationError, LocalCluster, PyroCacheClient
from pyrocache.client.stock import stock_handshake
from pyrocache.net.call_protocol import ANONYMOUS, Caller, knowing
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NameServerDirectory
from pyrocache.runtime import secret_file
from pyrocache.runtime.secret import find_secret, read_secret
from pyrocache.runtime.secret_file import FILE_VARIABLE
from tests.support.background import background
from tests.support.commands import call, run, run_all
from tests.support.forked import A_USER, as_root
from tests.support.leaks import files_that_show, shows
from tests.support.nodes import private_cluster
from tests.support.processes import ROOT, children, free_address

GET = """\
import sys
from pyrocache import PyroCacheClient, PyroCacheError
try:
    with PyroCacheClient(sys.argv[1]) as cache:
        print(cache.get("key"))
        cache.set("answer", "of another process")
except PyroCacheError as error:
    print(type(error).__mro__[1].__name__, error, sep="\\n")
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A cluster of this user, with an entry."""
    with private_cluster(nodes=2) as cluster:
        with cluster.client() as cache:
            cache.set("key", "value")
        yield cluster


@pytest.fixture
def other_home(tmp_path: Path) -> Path:
    """A directory for configuration without a secret."""
    return tmp_path / "other"


@pytest.fixture(scope="module")
def other_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A secret file that is in no usual place."""
    path = tmp_path_factory.mktemp("secret") / "named"
    secret_file.make(str(path))
    return path


@pytest.fixture(scope="module")
def other_cluster(other_file: Path) -> Iterator[LocalCluster]:
    """A cluster with another secret than the one of this user."""
    with private_cluster(nodes=1, secret_file=other_file) as cluster:
        with cluster.client() as cache:
            cache.set("key", "of the other cluster")
        yield cluster


# One user ----------------------------------------------------------------------------------------------------


def test_two_processes_of_a_user_share_a_cluster_with_nothing_to_set(cluster: LocalCluster) -> None:
    outcome = run("-c", GET, cluster.nameserver)
    assert (outcome.out, outcome.err) == ("value\n", "")
    with cluster.client() as cache:
        assert cache.get("answer") == "of another process"


def test_a_process_with_another_secret_is_told_where_it_has_it(
    cluster: LocalCluster, other_home: Path
) -> None:
    """In one sentence, from the interface and from the command line, after it has made a secret of its own."""
    commands = [("get", "key"), ("status",), ("ping",)]
    outcomes = run_all(
        [
            ("-c", GET, cluster.nameserver),
            *(("-m", "pyrocache", *command, "--nameserver", cluster.nameserver) for command in commands),
        ],
        XDG_CONFIG_HOME=str(other_home),
    )
    kind, sentence = outcomes[0].out.splitlines()
    assert kind == "AuthenticationError"
    path = other_home / "pyrocache" / "secret"
    assert f"the secret of this process is in {path})" in sentence
    assert "secret_file=" in sentence
    for outcome in outcomes[1:]:
        assert outcome.status == 1
        assert outcome.sentence == sentence


@pytest.mark.parametrize(
    "command", ["stats", "set key value", "delete key", "scan", "nodes", "nodes remove cache.node.1"]
)
def test_every_command_is_told(cluster: LocalCluster, other_home: Path, command: str) -> None:
    outcome = call(
        "pyrocache",
        *command.split(),
        PYROCACHE_NAMESERVER=cluster.nameserver,
        XDG_CONFIG_HOME=str(other_home),
    )
    assert outcome.status == 1
    assert str(other_home) in outcome.sentence
    with cluster.client() as cache:
        assert cache.get("key") == "value"
        assert len(cache.nodes()) == 2


@pytest.mark.parametrize("on_error", ["raise", "miss"])
def test_the_wrong_secret_is_an_error_and_never_a_miss(
    cluster: LocalCluster, other_file: Path, on_error: str
) -> None:
    options = {"on_error": on_error, "secret_file": other_file}
    with (
        PyroCacheClient(cluster.nameserver, **options) as cache,  # type: ignore[arg-type]
        pytest.raises(AuthenticationError, match=str(other_file)) as raised,
    ):
        cache.get("key")
    assert raised.value.__cause__ is None


# A named file ------------------------------------------------------------------------------------------------


def test_an_argument_names_another_file(other_cluster: LocalCluster, other_file: Path) -> None:
    with PyroCacheClient(other_cluster.nameserver, secret_file=other_file) as cache:
        assert cache.get("key") == "of the other cluster"
    with PyroCacheClient(other_cluster.nameserver) as cache, pytest.raises(AuthenticationError):
        cache.get("key")


def test_a_variable_and_an_option_name_another_file(other_cluster: LocalCluster, other_file: Path) -> None:
    command = ("pyrocache", "get", "key", "--nameserver", other_cluster.nameserver)
    assert call(*command).status == 1
    assert call(*command, PYROCACHE_SECRET_FILE=str(other_file)).out == "'of the other cluster'\n"
    assert call(*command, "--secret-file", str(other_file)).out == "'of the other cluster'\n"
    missing = str(other_file) + ".missing"
    assert call(*command, "--secret-file", str(other_file), PYROCACHE_SECRET_FILE=missing).status == 0


@pytest.mark.parametrize("command", ["status", "stats", "ping", "set new value", "delete old", "scan"])
def test_every_command_takes_the_option(other_cluster: LocalCluster, other_file: Path, command: str) -> None:
    with other_cluster.client() as cache:
        cache.set("old", 1)
    address = ("--nameserver", other_cluster.nameserver)
    assert call("pyrocache", *command.split(), *address, "--secret-file", str(other_file)).status == 0


def test_a_cluster_with_a_named_file_makes_clients_that_fit(
    other_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the directory of the process, or its environment, has changed since."""
    monkeypatch.chdir(other_file.parent)
    with private_cluster(nodes=1, secret_file=other_file.name) as cluster:
        monkeypatch.chdir("/")
        with cluster.client() as cache:
            assert cache.set("key", 1)
        cluster.restart_nameserver()
        cluster.add_node()
        with cluster.client() as cache:
            assert cache.ping() == 2
    monkeypatch.setenv(FILE_VARIABLE, str(other_file))
    with private_cluster(nodes=1) as cluster:
        monkeypatch.delenv(FILE_VARIABLE)
        with cluster.client() as cache:
            assert cache.set("key", 1)
        with PyroCacheClient(cluster.nameserver) as stranger, pytest.raises(AuthenticationError):
            stranger.get("key")


def test_a_named_file_that_does_not_exist_is_one_sentence(cluster: LocalCluster, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    sentence = f"The key file {missing} does not exist"
    with pytest.raises(ConfigurationError, match=sentence):
        PyroCacheClient(cluster.nameserver, secret_file=missing)
    with pytest.raises(ConfigurationError, match=sentence):
        LocalCluster(nodes=1, secret_file=missing)
    with pytest.raises(ConfigurationError, match=sentence):
        stock_handshake("cache.node.1", cluster.nameserver, secret_file=missing)
    for command in (
        *("get key", "set key value", "delete key", "scan", "status", "stats", "ping --wait 60"),
        *("nodes", "nodes remove cache.node.1", "nameserver --port 0"),
    ):
        for option, variables in (
            (("--secret-file", str(missing)), {}),
            ((), {FILE_VARIABLE: str(missing)}),
        ):
            address = {} if "--port" in command else {"PYROCACHE_NAMESERVER": cluster.nameserver}
            outcome = call("pyrocache", *command.split(), *option, **variables, **address)
            assert outcome.status == 1
            assert outcome.sentence.startswith(sentence)
    assert not missing.exists()


@pytest.mark.full
def test_the_commands_that_serve_take_the_option(other_file: Path, tmp_path: Path) -> None:
    option = ("--secret-file", str(other_file))
    with background(
        tmp_path / "output", "run_nameserver.py", "--port", "0", *option, ready="ready at"
    ) as server:
        address = server.out.partition("ready at ")[2].partition(". ")[0]
        nodes = ("run_nodes.py", "-n", "1", "-m", "16MiB", "--nameserver", address, *option)
        with background(tmp_path / "output", *nodes, ready="ready\n"):
            with PyroCacheClient(address, secret_file=other_file) as cache:
                assert cache.set("key", "value")
            with PyroCacheClient(address) as stranger, pytest.raises(AuthenticationError):
                stranger.get("key")
            remove = ("pyrocache", "nodes", "remove", "--nameserver", address, "--force")
            assert call(*remove, "cache.node.1").status == 1
            assert "is not a node" in call(*remove, *option, "cache.node.7").sentence
            assert "is alive" in call(*remove, *option, "cache.node.1").sentence


# Without a home ----------------------------------------------------------------------------------------------

HOMELESS = """\
import json, logging, os, pickle, sys
from pyrocache import PyroCacheError, stock_handshake
from pyrocache.runtime.secret import find_secret
from tests.support.leaks import files_that_show
from tests.support.nodes import private_cluster
from tests.support.processes import children

found = {}
with private_cluster(nodes=2) as cluster:
    cache = cluster.client()
    cache.set("key", "value")
    child = os.fork()
    if child == 0:
        try:
            cache.set("child", cache.get("key"))
            cluster.client().set("child of the child", 1)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    found["child"] = [cache.get("child"), cache.get("child of the child")]
    cluster.kill(0)
    cluster.restart(0)
    cluster.restart_nameserver()
    cluster.add_node()
    found["nodes"] = cache.ping()
    found["token"] = sorted(stock_handshake("cache.node.1", cluster.nameserver))
    for thing in (cache, cache._context.config):
        try:
            found["pickled"] = len(pickle.dumps(thing))
        except PyroCacheError as error:
            found[type(thing).__name__] = str(error)
    found["repr"] = repr(cache._context.config.secret)
    keys = find_secret().keys
    found["leaks"] = files_that_show(keys, [os.getpid(), *children(os.getpid())])
    found["processes"] = len(children(os.getpid()))
print(json.dumps(found))
"""


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave no place for a file to the processes that are started. Return the directory for temporary files."""
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("HOME", "/proc")  # where nobody can make anything
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / f"pyrocache-{os.getuid()}").write_text("not a directory")
    return tmp_path


def test_without_any_place_a_cluster_has_a_secret_in_memory(homeless: Path) -> None:
    outcome = run("-c", HOMELESS)
    found = json.loads(outcome.out)
    assert found["child"] == ["value", 1]
    assert found["nodes"] == 3
    assert found["token"] == ["incarnation", "node", "token"]
    assert "pickled" not in found
    for thing in ("PyroCacheClient", "ClientConfig"):
        assert found[thing].startswith("The secret of this process is only in its memory")
    assert found["repr"] == "<Secret in the memory of this process, 1 key>"
    assert (found["leaks"], found["processes"]) == ([], 4)
    assert outcome.err.count("No place for a secret file was found") == 1
    assert [path.name for path in homeless.rglob("*secret*")] == []


@pytest.mark.full
def test_without_any_place_the_commands_know_their_own_secret_only(homeless: Path) -> None:
    address = free_address()
    nodes = ("run_nodes.py", "-n", "1", "-m", "16MiB", "--with-nameserver", "--nameserver", address)
    with background(homeless / "output", *nodes, ready="ready\n"):
        outcome = run("-m", "pyrocache", "get", "key", "--nameserver", address)
    assert outcome.status == 1
    assert "the secret of this process is in the memory of this process" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.full
@as_root
def test_a_home_of_another_user_gets_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under sudo -E. It is with the sockets, so that two processes find each other all the same."""
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, A_USER, A_USER)
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    address = free_address()
    nodes = ("run_nodes.py", "-n", "1", "-m", "16MiB", "--with-nameserver", "--nameserver", address)
    with background(tmp_path / "output", *nodes, ready="ready\n"):
        assert run("-m", "pyrocache", "set", "key", "value", "--nameserver", address).status == 0
    assert list(home.iterdir()) == []
    assert (tmp_path / f"pyrocache-{os.getuid()}" / "secret").exists()


# Pickling, and what nobody may see ---------------------------------------------------------------------------

UNPICKLE = """import pickle, sys
from pyrocache import PyroCacheError
try:
    with open(sys.argv[1], "rb") as file, pickle.load(file) as cache:
        print(cache.get("key"))
except PyroCacheError as error:
    print(error)
"""


def test_a_pickled_client_has_the_path_and_not_the_key(
    other_cluster: LocalCluster, other_file: Path, other_home: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copy(other_file, copy)  # with its mode
    with PyroCacheClient(other_cluster.nameserver, secret_file=copy) as cache:
        content = pickle.dumps(cache)
    assert str(copy).encode() in content
    assert not shows(content, read_secret(other_file).keys)
    kept = tmp_path / "pickled"
    kept.write_bytes(content)
    outcome = run("-c", UNPICKLE, str(kept), XDG_CONFIG_HOME=str(other_home))
    assert (outcome.out, outcome.err) == ("of the other cluster\n", "")
    assert not other_home.exists()
    copy.unlink()
    assert run("-c", UNPICKLE, str(kept)).out.startswith(f"The key file {copy} does not exist")


LOG_ALL = """import logging, os
logging.basicConfig(level=1, filename=os.path.join({directory!r}, f"{{os.getpid()}}.log"))
"""


@pytest.mark.full
def test_no_key_shows_anywhere(
    other_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in arguments, environments, logs of any level, reprs, errors and tracebacks with variables."""
    logs, modules = tmp_path / "logs", tmp_path / "modules"
    logs.mkdir()
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(LOG_ALL.format(directory=str(logs)))
    monkeypatch.setenv("PYTHONPATH", f"{modules}:{ROOT}")
    caplog.set_level(1)
    keys = [*read_secret(other_file).keys, *find_secret().keys]
    texts: list[object] = []
    before = children(os.getpid())
    with private_cluster(nodes=2, secret_file=other_file) as cluster:
        with cluster.client() as cache, PyroCacheClient(cluster.nameserver) as stranger:
            cache.set("key", "value")
            config = cache._context.config
            texts += [
                cache,
                config,
                config.secret,
                read_secret(other_file).keys,
                secret_file.read(str(other_file)),
                knowing(read_secret(other_file)),
                *(getattr(config, field.name) for field in fields(config)),
            ]
            texts += [cache.stats(), cluster, vars(cluster), stranger]
            for call_ in (
                lambda: stranger.get("key"),
                lambda: NameServerDirectory(cluster.nameserver, caller=knowing(find_secret())).ping(5.0),
                lambda: knock(cluster, knowing(find_secret())),
                lambda: knock(cluster, ANONYMOUS),  # whom the node refuses, and not he the node
                lambda: stock_handshake("cache.node.9", cluster.nameserver, secret_file=other_file),
                lambda: pickle.dumps(read_secret(other_file).keys),
            ):
                with pytest.raises(Exception) as raised:  # noqa: PT011
                    call_()
                texts.append(str(raised.value))
                told = traceback.TracebackException.from_exception(raised.value, capture_locals=True)
                texts.append("".join(told.format()))
        started = children(os.getpid()) - before
        assert len(started) == 3
        assert files_that_show(keys, [os.getpid(), *started]) == []
    written = {path.name: path.read_bytes() for path in logs.iterdir()}
    assert {f"{pid}.log" for pid in started} <= set(written)
    assert b"was closed" in b"".join(written.values())
    assert not any(shows(content, keys) for content in written.values())
    assert not shows(caplog.text.encode(), keys)
    assert [text for text in map(repr, texts) if shows(text.encode(), keys)] == []


def knock(cluster: LocalCluster, caller: Caller) -> None:
    """Connect to a node. Raises what comes of it."""
    member = NameServerDirectory(cluster.nameserver).members()[0]
    connection = Connection(member, "tcp", caller)
    try:
        connection.finish_opening(Deadline(5.0))
    finally:
        connection.close()
