"""What another user of this host can try without the secret: fill a log, lend a socket, take an address of a name."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from Pyro5.nameserver import start_ns

from pyrocache import ConfigurationError, NoNodes, PyroCacheClient
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import view_from_metadata, view_to_metadata
from pyrocache.net.channel import Dialing
from pyrocache.net.directory import member_from_entry
from pyrocache.protocol import framing
from pyrocache.runtime.child_process import start_nameserver
from pyrocache.runtime.secret import find_secret
from pyrocache.server import tcp_socket
from tests.contract.test_pyro5 import running
from tests.support.secrets import directory_of
from tests.support.waiting import PATIENCE_SECONDS

INCARNATION = "0123456789abcdef"


def test_python_does_not_comment_on_what_strangers_send(capfd: pytest.CaptureFixture[str]) -> None:
    names = start_nameserver(quiet=False)  # its output is that of the test
    try:
        address = names.wait_until_ready()["address"]
        host, _, port = address.rpartition(":")
        for text in ("1if 1else 2\n" * 1000, "'\\d'\n" * 1000, "[" + "1or " * 3000 + "1]"):
            body = b"# serpent utf-8 python3.2\n" + text.encode()
            with socket.create_connection((host, int(port)), PATIENCE_SECONDS) as sock:
                sock.sendall(framing.pack_message(framing.CONNECT, 0, body, serializer=1))
                while sock.recv(1000):
                    pass
        directory_of(address).ping(PATIENCE_SECONDS)
    finally:
        names.kill()
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if "was closed" not in line] == []
    assert len(lines) == 1


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        listener.setblocking(False)
        yield listener


@pytest.mark.parametrize("trick", ["linked socket", "linked directory", "open directory", "no socket"])
def test_no_socket_of_this_user_is_connected_to_but_those_of_nodes(tmp_path: Path, trick: str) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    lent = tmp_path / "pyrocache-0"
    with listening(private / f"{INCARNATION}.sock") as victim, tcp_socket.listen("127.0.0.1", 0) as node:
        path = lent / f"{INCARNATION}.sock"
        if trick == "linked directory":
            lent.symlink_to(private)
        else:
            lent.mkdir(mode=0o755 if trick == "open directory" else 0o700)
        if trick == "linked socket":
            path.symlink_to(private / path.name)
        elif trick == "no socket":
            path.write_bytes(b"")
        elif trick == "open directory":
            lent.chmod(0o755)
            os.rename(private / path.name, path)
        port = node.getsockname()[1]
        dialing = Dialing(Member("cache.node.1", "127.0.0.1", port, 1.0, INCARNATION, str(path)), "auto")
        with dialing.sock as sock:
            assert sock.family == socket.AF_INET
        with pytest.raises(BlockingIOError):
            victim.accept()


@pytest.mark.parametrize("text", ["a\nb", "a b", "\x1b[2J", "é", "x" * 65])
def test_what_others_list_is_not_passed_on_as_an_id(text: str) -> None:
    member = Member("cache.node.1", "127.0.0.1", 9, 1.0, "a", "", "c")
    for forged in (replace(member, incarnation=text), replace(member, cluster=text)):
        view = ClusterView([forged], 7, forged.cluster)
        assert view_from_metadata(7, view_to_metadata(view)) is None
        metadata = [f"incarnation={forged.incarnation}", f"cluster={forged.cluster}"]
        assert member_from_entry(member.name, (f"PYRO:{member.name}@127.0.0.1:9", metadata)) is None


def test_localhost_is_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> None:
        raise AssertionError("whoever resolves it may get an address that is another user's")

    with tcp_socket.listen("localhost", 0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        original = socket.getaddrinfo
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda name, *rest, **more: original(name, *rest, **more) if name == b"127.0.0.1" else resolve(),
        )
        dialing = Dialing(Member("cache.node.1", "localhost", port), "auto")
        with dialing.sock as sock:
            assert sock.getpeername() == ("127.0.0.1", port)


def test_a_name_server_that_proves_nothing_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    _, daemon, _ = start_ns(host="127.0.0.1", port=0, enableBroadcast=False)
    with running(daemon), caplog.at_level(logging.WARNING, "pyrocache"):
        for _ in range(2):
            with PyroCacheClient(daemon.locationStr) as cache, pytest.raises(NoNodes):
                cache.get("key")
    (line,) = caplog.messages
    assert re.match(rf"The name server at {daemon.locationStr} does not prove the secret", line)


def test_the_secret_does_not_sign_values() -> None:
    with pytest.raises(ConfigurationError, match="is the secret, which nodes have"):
        PyroCacheClient(signing_key_file=find_secret().path)
