"""The files of a detached cluster: what is a living keeper, and who counts as its client."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from dataclasses import asdict
from pathlib import Path

import pytest

from pyrocache.detached import place as place_module
from pyrocache.detached.place import LockedFile, Log, Place, Written
from pyrocache.errors import OutOfResources


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(str(tmp_path))


def written(place: Place, address: str = "127.0.0.1:4000") -> Written:
    return Written(place, address=address, nodes=3, max_memory=2**30, idle_timeout=60.0)


def test_a_keeper_is_found_as_long_as_it_lives(place: Place) -> None:
    assert place.running() is None
    keeper = written(place)
    running = place.running()
    assert running is not None
    assert (running.record.address, running.record.pid, running.alive()) == (
        "127.0.0.1:4000",
        os.getpid(),
        True,
    )
    keeper._file.close()  # as the kernel does when it is killed
    assert place.running() is None
    assert not running.alive()
    assert running.wait(0.0)


def test_a_stale_record_is_no_cluster_whatever_process_has_its_id(place: Place) -> None:
    keeper = written(place)
    running = place.running()
    assert running is not None
    record = {**asdict(running.record), "pid": os.getpid()}
    keeper._file.close()
    Path(place.directory, "cluster.json").write_text(json.dumps(record))
    assert place.running() is None
    running.signal(signal.SIGKILL)  # this process has that id, and lives on


def test_what_a_new_keeper_writes_does_not_make_an_old_one_alive(place: Place) -> None:
    old = written(place)
    running = place.running()
    assert running is not None
    old._file.close()
    new = written(place, "127.0.0.1:5000")
    assert not running.alive()
    assert running.join() is None
    found = place.running()
    assert found is not None
    assert found.record.address == "127.0.0.1:5000"
    old.withdraw()  # late: the files are another keeper's by now
    assert place.running() is not None
    new.withdraw()
    assert place.running() is None
    assert sorted(os.listdir(place.directory)) == []


def test_clients_count_until_they_are_closed_or_collected(place: Place) -> None:
    keeper = written(place)
    running = place.running()
    assert running is not None
    assert not keeper.has_clients()
    one, two = running.join(), running.join()
    assert one is not None
    assert two is not None
    assert keeper.has_clients()
    assert not keeper.shut_out()
    one.close()
    one.close()  # does nothing
    assert keeper.has_clients()
    del two
    assert not keeper.has_clients()
    assert keeper.shut_out()
    assert running.join() is None


def test_a_client_of_a_killed_keeper_is_none_of_the_next_one(place: Place) -> None:
    first = written(place)
    running = place.running()
    assert running is not None
    client = running.join()
    first._file.close()
    assert not written(place).has_clients()
    assert client is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_holds_no_lock(place: Place) -> None:
    keeper = written(place)
    running = place.running()
    assert running is not None
    client, start = running.join(), place.starting()
    assert client is not None
    assert start is not None
    ours, of_child = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        of_child.send(b"forked")
        of_child.recv(1)  # until the parent process closes its end, however it does
        os._exit(0)
    try:
        assert ours.recv(6) == b"forked"
        client.close()
        start.close()
        assert not keeper.has_clients()
        again = place.starting()
        assert again is not None
        again.close()
    finally:
        ours.close()
        of_child.close()
        os.waitpid(pid, 0)


def test_one_starts_at_a_time(place: Place) -> None:
    first = place.starting()
    assert first is not None
    assert place.starting() is None
    first.close()
    assert place.starting() is not None


def test_a_record_that_cannot_be_read_is_said_to_be_so(place: Place) -> None:
    keeper = written(place)
    os.ftruncate(keeper._file.descriptor, 10)
    with pytest.raises(OutOfResources, match=r"is not the record of a cluster.*or remove the file"):
        place.running()


def test_nobody_else_reads_the_files(place: Place) -> None:
    keeper, start = written(place), place.starting()
    assert keeper is not None
    assert start is not None
    modes = {
        stat.S_IMODE(os.stat(os.path.join(place.directory, name)).st_mode)
        for name in os.listdir(place.directory)
    }
    assert modes == {0o600}


def test_a_symbolic_link_is_not_followed(place: Place, tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "cluster.start").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        place.starting()


def test_the_log_keeps_the_last_part(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_module, "_LONGEST_LOG_BYTES", 100)
    monkeypatch.setattr(place_module, "_KEPT_LOG_BYTES", 25)
    with Log(place.log) as log:
        for number in range(10):
            os.write(log.descriptor, b"line %d\n" % number)
        log.shorten()
        assert len(Path(place.log).read_bytes()) == 70
        os.write(log.descriptor, b"." * 40 + b"\n" + b"last 1\nlast 2\nlast 3\n")
        log.shorten()
        os.write(log.descriptor, b"more\n")
    assert Path(place.log).read_text() == "last 1\nlast 2\nlast 3\nmore\n"


def test_a_directory_that_cannot_be_made_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(place_module.private_directory, "make", refuse)
    with pytest.raises(
        OutOfResources, match=r"^There can be no detached cluster here: Permission denied\. Set"
    ):
        Place()


def test_a_lock_excludes_others_and_not_itself(tmp_path: Path) -> None:
    one, two = LockedFile(str(tmp_path / "f"), create=True), LockedFile(str(tmp_path / "f"))
    assert one.lock()
    assert two.is_locked()
    assert not two.lock(shared=True)
    one.unlock()
    assert not two.is_locked()
    assert two.lock(shared=True)
    assert not one.is_locked()  # shared locks do not count
    assert not one.lock()
