"""Clients and nodes of one host over Unix sockets: real processes, each test's in a temporary directory of its own."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyrocache import LocalCluster, NodeUnavailable, PyroCacheClient
from pyrocache.cluster.routing import Member
from pyrocache.net.directory import NameServerDirectory
from pyrocache.runtime.child_process import start_node
from tests.support.nodes import private_cluster, running_nameserver, running_node
from tests.support.stock import name_server_proxy
from tests.support.waiting import PATIENCE_SECONDS, wait_until
from tests.support.wire import NAME


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory for temporary files of the processes that the test starts."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


@pytest.fixture
def sockets(temporary: Path) -> Path:
    """Where nodes put their sockets."""
    return temporary / f"pyrocache-{os.getuid()}"


@pytest.fixture
def nameserver() -> Iterator[str]:
    """The address of a name server."""
    with running_nameserver() as address:
        yield address


def families(client: PyroCacheClient) -> set[int]:
    """Over what a client's connections go."""
    pools = client._context.backend._router._connections._pools.values()
    return {connection._channel.family for pool in pools for connection in pool.idle}


def use(client: PyroCacheClient) -> set[int]:
    """Have a client do this and that; over what it did."""
    entries = {f"key:{number}": number for number in range(50)}
    assert client.set_many(entries) == len(entries)
    assert client.get_many(list(entries)) == entries
    assert client.set("large", bytes(3_000_000)) is True
    assert client.get("large") == bytes(3_000_000)
    assert client.delete("large") is True
    return families(client)


def members(nameserver: str) -> list[Member]:
    return NameServerDirectory(nameserver).members()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with private_cluster(nodes=2) as cluster:
        yield cluster


class TestClients:
    """Of a cluster whose nodes have Unix sockets."""

    def test_the_default_is_the_unix_socket(self, cluster: LocalCluster) -> None:
        with cluster.client() as client:
            assert use(client) == {socket.AF_UNIX}

    def test_tcp_never_is(self, cluster: LocalCluster) -> None:
        with cluster.client(transport="tcp") as client:
            assert use(client) == {socket.AF_INET}

    def test_both_see_the_same_entries(self, cluster: LocalCluster) -> None:
        with cluster.client() as local, cluster.client(transport="tcp") as remote:
            for number in range(20):
                local.set(number, number)
                assert remote.get(number) == number
                assert remote.delete(number) is True
                assert local.get(number) is None

    def test_the_name_server_has_the_paths(self, cluster: LocalCluster) -> None:
        for member in members(cluster.nameserver):
            path = Path(member.socket_path)
            assert path.name == f"{member.incarnation}.sock"
            assert stat.S_ISSOCK(path.stat().st_mode)
            directory = path.parent.lstat()
            assert stat.S_ISDIR(directory.st_mode)
            assert (directory.st_uid, stat.S_IMODE(directory.st_mode)) == (os.getuid(), 0o700)

    @pytest.mark.parametrize("used_before", [True, False])
    def test_a_forked_child_uses_them_too(self, cluster: LocalCluster, used_before: bool) -> None:
        with cluster.client() as client:
            if used_before:
                client.set("parent", "here")
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                verdict = b"failed"
                try:
                    right = use(client) == {socket.AF_UNIX} and client.set("child", "there")
                    verdict = b"fine" if right else b"over what?"
                except BaseException as error:
                    verdict = type(error).__name__.encode()
                finally:
                    os.write(writing, verdict)
                    os._exit(0)
            os.close(writing)
            for number in range(50):
                assert client.set("parent", number)
                assert client.get("parent") == number
            with open(reading, "rb") as pipe:
                verdict = pipe.read()
            os.waitpid(child, 0)
            assert verdict == b"fine"
            assert client.get("child") == "there"
            assert families(client) == {socket.AF_UNIX}


class TestWithoutTheSocket:
    def test_a_client_goes_on_over_tcp_when_the_path_is_gone(self, nameserver: str, sockets: Path) -> None:
        with (
            running_node(nameserver),
            PyroCacheClient(nameserver) as before,
            PyroCacheClient(nameserver) as after,
        ):
            assert use(before) == {socket.AF_UNIX}
            (path,) = sockets.iterdir()
            path.unlink()
            assert before.get("key:1") == 1
            assert use(after) == {socket.AF_INET}
            assert after.get("key:1") == 1

    def test_a_client_goes_on_over_tcp_when_it_may_not_reach_it(self, nameserver: str, sockets: Path) -> None:
        with running_node(nameserver), PyroCacheClient(nameserver) as client:
            (path,) = sockets.iterdir()
            path.unlink()
            with socket.socket(socket.AF_UNIX) as deaf:
                deaf.bind(os.fspath(path))  # and nobody listens
                assert use(client) == {socket.AF_INET}

    @pytest.mark.parametrize("what", ["mode", "owner", "link", "file", "length"])
    def test_a_node_without_a_directory_of_its_users_alone_serves_over_tcp(
        self, nameserver: str, temporary: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        if what == "mode":
            sockets.mkdir()
            sockets.chmod(0o755)
        elif what == "owner":
            if os.getuid() != 0:
                pytest.skip("only root can give a directory away")
            sockets.mkdir(mode=0o700)
            os.chown(sockets, 12345, 12345)
        elif what == "link":
            (temporary / "elsewhere").mkdir(mode=0o700)
            sockets.symlink_to(temporary / "elsewhere")
        elif what == "file":
            sockets.write_text("no directory")
        else:
            long = temporary / ("d" * 100)
            long.mkdir()
            monkeypatch.setenv("TMPDIR", os.fspath(long))
        with running_node(nameserver), PyroCacheClient(nameserver) as client:
            assert use(client) == {socket.AF_INET}
            assert [member.socket_path for member in members(nameserver)] == [""]
            assert not [path for path in temporary.rglob("*") if path.is_socket()]


class TestPaths:
    def test_a_graceful_end_removes_the_path(self, nameserver: str, sockets: Path) -> None:
        with running_node(nameserver) as node:
            assert len(list(sockets.iterdir())) == 1
            node.process.terminate()
            node.process.wait(PATIENCE_SECONDS)
            assert node.process.exit_status == 0
        assert list(sockets.iterdir()) == []

    @pytest.mark.full
    def test_a_node_whose_name_is_taken_leaves_no_path(self, nameserver: str, sockets: Path) -> None:
        with running_node(nameserver):
            second = start_node({"nameserver": nameserver, "name": NAME}, quiet=True)
            try:
                second.wait(PATIENCE_SECONDS)
            finally:
                second.kill()
            assert second.exit_status == 3
            assert len(list(sockets.iterdir())) == 1

    def test_the_next_node_removes_the_path_of_a_killed_one(self, nameserver: str, sockets: Path) -> None:
        with running_node(nameserver, name="cache.node.2"), PyroCacheClient(nameserver, timeout=10) as client:
            with running_node(nameserver) as node:
                assert use(client) == {socket.AF_UNIX}
                (killed,) = [member for member in members(nameserver) if member.name == NAME]
                node.process.kill()
            assert Path(killed.socket_path).exists()
            with running_node(nameserver):
                assert not Path(killed.socket_path).exists()
                listed = {Path(member.socket_path) for member in members(nameserver)}
                assert set(sockets.iterdir()) == listed
                assert len(listed) == 2
                assert wait_until(lambda: uses_unix_sockets_again(client))

    @pytest.mark.full
    def test_nodes_that_start_at_once_leave_each_other_theirs(self, nameserver: str, sockets: Path) -> None:
        with ExitStack() as stack:
            nodes = []
            for _ in range(4):
                nodes.append(start_node({"nameserver": nameserver}, quiet=True))
                stack.callback(nodes[-1].kill)
            for node in nodes:
                node.wait_until_ready()
            listed = members(nameserver)
            assert len(listed) == 4
            assert {Path(member.socket_path) for member in listed} == set(sockets.iterdir())
            with PyroCacheClient(nameserver) as client:
                assert use(client) == {socket.AF_UNIX}
                assert len(client._context.backend._router._connections._pools) == 4


def uses_unix_sockets_again(client: PyroCacheClient) -> bool:
    try:
        return use(client) == {socket.AF_UNIX}
    except NodeUnavailable:
        return False


class TestForeignPaths:
    """Anybody can write anything into a name server."""

    @pytest.mark.parametrize(
        "path",
        [
            "/var/run/docker.sock",
            "{directory}/docker.sock",
            "{directory}/pyrocache-0/0000000000000000.sock",
            "{directory}/pyrocache-0/{incarnation}.sock/../../docker.sock",
            "{directory}/other-0/{incarnation}.sock",
        ],
    )
    def test_a_client_speaks_to_no_socket_but_the_nodes(
        self, nameserver: str, sockets: Path, path: str
    ) -> None:
        with (
            tempfile.TemporaryDirectory(dir="/tmp") as directory,
            running_node(nameserver) as node,
            ExitStack() as stack,
        ):
            assert node.process.exit_status is None
            (member,) = members(nameserver)
            path = path.format(directory=directory, incarnation=member.incarnation)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.setblocking(False)
            if path.startswith(directory):
                place = Path(os.path.normpath(path))
                place.parent.mkdir(exist_ok=True)
                listener.bind(os.fspath(place))
                listener.listen()
            with name_server_proxy(nameserver) as server:
                uri, tags = server.lookup(NAME, return_metadata=True)
                tags = {tag for tag in tags if not tag.startswith("unix=")} | {f"unix={path}"}
                server.register(NAME, uri, metadata=tags)
                (view,) = server.list(prefix="cache.view.")
                uri, tags = server.lookup(view, return_metadata=True)
                server.register(view, uri, metadata={tag.replace(member.socket_path, path) for tag in tags})
            assert [member.socket_path for member in members(nameserver)] == [""]
            with PyroCacheClient(nameserver) as client:
                assert use(client) == {socket.AF_INET}
            if path.startswith(directory):
                with pytest.raises(BlockingIOError):
                    listener.accept()

    def test_the_entry_says_where_the_socket_is(self, nameserver: str, sockets: Path) -> None:
        with running_node(nameserver), name_server_proxy(nameserver) as server:
            _, tags = server.lookup(NAME, return_metadata=True)
            (path,) = sockets.iterdir()
            assert f"unix={path}" in tags
            assert f"incarnation={path.stem}" in tags
