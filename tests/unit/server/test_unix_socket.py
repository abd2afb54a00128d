"""Where a node's Unix socket lies, who may reach it, and what becomes of those of dead nodes."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyrocache.server import unix_socket

INCARNATION = "0123456789abcdef"
PATIENCE_SECONDS = 15.0


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for temporary files that is nobody else's, and whose path is short."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)


@pytest.fixture
def sockets(temporary: Path) -> Path:
    """Where nodes put their sockets; not there yet."""
    return temporary / f"pyrocache-{os.getuid()}"


@contextlib.contextmanager
def listening(incarnation: str = INCARNATION) -> Iterator[str]:
    """The path of a node's socket."""
    answer = unix_socket.listen(incarnation)
    assert answer is not None
    with answer[0]:
        yield answer[1]


def dead_socket(path: Path) -> Path:
    """What a killed node leaves behind."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
        dead.listen()
    return path


def answers(path: str | Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(os.fspath(path)) == 0


def test_its_name_is_the_incarnation_and_somebody_listens(sockets: Path) -> None:
    with listening() as path:
        assert path == f"{sockets}/{INCARNATION}.sock"
        assert answers(path)
        assert [entry.name for entry in sockets.iterdir()] == [f"{INCARNATION}.sock"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_directory_is_this_users_alone(sockets: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with listening():
            status = sockets.lstat()
    finally:
        os.umask(before)
    assert stat.S_ISDIR(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert status.st_uid == os.getuid()


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o750, 0o701, 0o720, 0o1777])
def test_a_directory_that_others_may_enter_is_not_used(sockets: Path, mode: int) -> None:
    sockets.mkdir()
    sockets.chmod(mode)
    assert unix_socket.listen(INCARNATION) is None
    assert stat.S_IMODE(sockets.stat().st_mode) == mode
    assert list(sockets.iterdir()) == []


def test_a_directory_that_is_a_link_is_not_used(temporary: Path, sockets: Path) -> None:
    (temporary / "elsewhere").mkdir(mode=0o700)
    dead = dead_socket(temporary / "elsewhere" / f"{INCARNATION}.sock")
    sockets.symlink_to(temporary / "elsewhere")
    assert unix_socket.listen("f" * 16) is None
    assert dead.exists(), "nothing there was touched"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_another_users_directory_is_not_used(sockets: Path) -> None:
    sockets.mkdir(mode=0o700)
    os.chown(sockets, 12345, 12345)
    assert unix_socket.listen(INCARNATION) is None
    assert list(sockets.iterdir()) == []


def test_a_directory_that_seems_another_users_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    (temporary / f"pyrocache-{me + 1}").mkdir(mode=0o700)
    assert unix_socket.listen(INCARNATION) is None


@pytest.mark.parametrize("what", ["file", "dangling link", "missing"])
def test_where_there_can_be_no_directory_there_is_no_socket(
    temporary: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "file":
        sockets.write_text("not a directory")
    elif what == "dangling link":
        sockets.symlink_to(temporary / "nothing")
    else:
        monkeypatch.setattr(tempfile, "tempdir", os.fspath(temporary / "no" / "such"))
    assert unix_socket.listen(INCARNATION) is None
    assert not (temporary / "nothing").exists()


def test_a_platform_without_unix_sockets_has_none(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    assert unix_socket.listen(INCARNATION) is None


def test_a_path_that_is_too_long_means_no_socket_and_leaves_nothing(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for length in (40, 60, 70, 80, 120, 200):
        directory = temporary / ("d" * length)
        directory.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", os.fspath(directory))
        answer = unix_socket.listen(INCARNATION)
        left = [entry for entry in directory.rglob("*") if not entry.is_dir()]
        if answer is None:
            assert left == []
        else:
            with answer[0]:
                assert answers(answer[1])
            assert len(answer[1]) <= 104
    assert answer is None


def test_those_of_dead_nodes_are_removed_and_those_of_live_ones_stay(sockets: Path) -> None:
    with listening("a" * 16) as live:
        dead = [dead_socket(sockets / f"{letter * 16}.sock") for letter in "bcd"]
        with listening() as path:
            assert answers(live)
            assert answers(path)
        assert not any(entry.exists() for entry in dead)


def test_one_whose_queue_is_full_is_not_taken_for_dead(sockets: Path) -> None:
    sockets.mkdir(mode=0o700)
    busy = sockets / f"{'a' * 16}.sock"
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(os.fspath(busy))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100):
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(os.fspath(busy))
        with listening():
            assert busy.exists()


def test_what_is_no_socket_of_a_node_is_left_alone(sockets: Path) -> None:
    sockets.mkdir(mode=0o700)
    others = [sockets / "notes.txt", sockets / "text.sock"]
    for other in others:
        other.write_text("somebody's")
    unfinished = dead_socket(sockets / ("b" * 16))
    with listening():
        assert others[0].exists()
        assert unfinished.exists(), "it may be about to listen"


def test_nodes_that_start_at_once_do_not_remove_each_others(sockets: Path) -> None:
    count, rounds = 8, 12
    begin = threading.Barrier(count)
    answered: list[bool] = []
    with ExitStack() as stack:
        kept: list[str] = []

        def start(number: int) -> None:
            for turn in range(rounds):
                if number == 0:
                    sockets.mkdir(mode=0o700, exist_ok=True)
                    dead_socket(sockets / f"{0xDEAD0000 + turn:016x}.sock")
                begin.wait(PATIENCE_SECONDS)
                answer = unix_socket.listen(f"{turn * count + number:016x}")
                assert answer is not None
                stack.enter_context(answer[0])
                kept.append(answer[1])

        threads = [threading.Thread(target=start, args=(number,), daemon=True) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
        answered = [answers(path) for path in kept]
    assert answered == [True] * (count * rounds)


def test_one_that_starts_while_another_is_about_to_listen_leaves_it_alone(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen = socket.socket.listen
    others: list[tuple[socket.socket, str] | None] = []

    def listen_late(sock: socket.socket, backlog: int) -> None:
        if not others:
            others.append(None)
            others[0] = unix_socket.listen("f" * 16)
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", listen_late)
    with listening() as path:
        assert others[0] is not None
        with others[0][0]:
            assert answers(path)
            assert answers(others[0][1])


def test_removing_does_no_harm_when_there_is_nothing(sockets: Path) -> None:
    with listening() as path:
        unix_socket.remove(path)
        assert not os.path.exists(path)
        unix_socket.remove(path)
        unix_socket.remove("")
