"""Which processes are trusted at the other end of a Unix socket."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator

import pytest

from pyrocache.runtime import unix_peer
from tests.support.waiting import PATIENCE_SECONDS


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, other = socket.socketpair()
    with ours, other:
        yield ours, other


def test_a_process_of_this_user_is_trusted(pair: tuple[socket.socket, socket.socket]) -> None:
    assert unix_peer.is_trusted(pair[0]) is True


@pytest.mark.parametrize(
    ("uid", "own", "trusted"), [(7, 7, True), (0, 7, True), (8, 7, False), (7, 0, False)]
)
def test_own_processes_and_those_of_root_are_trusted(
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    own: int,
    trusted: bool,
) -> None:
    monkeypatch.setattr(unix_peer, "_uid", lambda sock: uid)
    monkeypatch.setattr(os, "geteuid", lambda: own)
    assert unix_peer.is_trusted(pair[0]) is trusted


@pytest.mark.skipif(
    os.geteuid() != 0 or not hasattr(socket, "SO_PEERCRED"), reason="only root can become another user"
)
def test_the_user_of_a_real_process_is_told_by_the_system() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory, socket.socket(socket.AF_UNIX) as listener:
        path = os.path.join(directory, "socket")
        listener.bind(path)
        listener.listen()
        listener.settimeout(PATIENCE_SECONDS)
        os.chmod(directory, 0o755)  # pytest's own directories are closed to other users
        os.chmod(path, 0o777)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setuid(12345)
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(path)
                    sock.recv(1)
                status = 0
            finally:
                os._exit(status)
        try:
            sock, _ = listener.accept()
            with sock:
                assert unix_peer._uid(sock) == 12345
                assert unix_peer.is_trusted(sock) is False
        finally:
            assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="Linux tells")
def test_where_the_system_does_not_tell_the_handshake_decides(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED")
    monkeypatch.delattr(socket, "LOCAL_PEERCRED", raising=False)
    assert unix_peer.is_trusted(pair[0]) is True


def test_a_socket_that_is_closed_is_an_error() -> None:
    ours, other = socket.socketpair()
    other.close()
    ours.close()
    with pytest.raises(OSError, match=r"."):
        unix_peer.is_trusted(ours)
