"""The file of a secret: which is used, how it comes to be, and how its keys are replaced."""

from __future__ import annotations

import copy
import errno
import fcntl
import os
import pickle
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.errors import ConfigurationError
from pyrocache.runtime import secret_file
from pyrocache.runtime.secret_file import MAX_KEYS, Key, Keys
from tests.support.forked import A_USER, Forked, as_root, forked

ONE, TWO, THREE = (Key(bytes([n]) * 32) for n in (1, 2, 3))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return os.fspath(tmp_path / "secret")


@pytest.fixture
def file(path: str) -> Path:
    """A file with one key."""
    return write(path, ONE.hex())


def write(path: str | Path, content: str | bytes, mode: int = 0o600) -> Path:
    file = Path(path)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    file.chmod(mode)
    return file


def refused(path: str | Path) -> str:
    """The sentence that says why a file is not used."""
    with pytest.raises(ConfigurationError) as caught:
        secret_file.read(os.fspath(path))
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


# What is in it -----------------------------------------------------------------------------------------------


def test_the_first_key_is_used_and_one_with_a_plus_is_the_next(path: str) -> None:
    write(path, f"# a comment: é\r\n\r\n{ONE.hex().upper()}  # of May\r\n + {TWO.hex()}\r\n  {THREE.hex()}")
    keys = secret_file.read(path)
    assert keys == Keys(ONE, TWO, (THREE,))
    assert keys.all == (ONE, TWO, THREE)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "# only a comment\n",
        "abc",
        ONE.hex()[:-1],
        ONE.hex() + "0",
        f"{ONE.hex()} {TWO.hex()}",
        f"{ONE.hex()}\nsecret = hunter2",
        f"+{ONE.hex()}",
        f"{ONE.hex()}\n+{TWO.hex()}\n+{THREE.hex()}",
        f"{ONE.hex()}\n" * (MAX_KEYS + 1),
        f"{ONE.hex()}\n" + "#" * 17_000,
        ONE.hex().translate(str.maketrans("0", "٠")),
        b"\x00" * 64,
        b"\xff\xfe" + ONE.hex().encode("utf-16-le"),
    ],
)
def test_a_file_with_other_content_is_refused_and_not_quoted(path: str, content: str | bytes) -> None:
    write(path, content)
    text = refused(path)
    for quoted in ("hunter2", ONE.hex()[:8], TWO.hex()[:8], "abc"):
        assert quoted not in text.replace(path, "")


@given(st.binary(max_size=300))
def test_whatever_is_in_it_only_the_declared_error_is_raised(content: bytes) -> None:
    try:
        secret_file._parse("/secret", content)
    except ConfigurationError:
        pass


def test_the_largest_number_of_keys_is_read(path: str) -> None:
    write(path, f"{ONE.hex()}\n" * MAX_KEYS)
    assert len(secret_file.read(path).all) == MAX_KEYS


def test_a_key_is_never_shown_nor_pickled() -> None:
    for text in (repr(ONE), str(ONE), f"{ONE}", f"{ONE!r}", f"{Keys(ONE, TWO)}", repr([ONE])):
        assert "\\x01" not in text
        assert "<key>" in text
    assert bytes(ONE) == b"\x01" * 32
    for copied in (pickle.dumps, copy.copy):
        with pytest.raises(ConfigurationError, match="not pickled"):
            copied(Keys(ONE) if copied is pickle.dumps else ONE)


# Which files are used ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_this_user_alone_is_used(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert secret_file.read(str(file)) == Keys(ONE)


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602, 0o644, 0o610, 0o601, 0o666])
def test_a_file_that_others_can_open_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    text = refused(file)
    assert f"{mode:04o}" in text
    assert f"chmod 600 {file}" in text


def test_a_file_that_does_not_exist_is_not_found(path: str) -> None:
    assert refused(path).endswith(
        f"does not exist: copy it from where it is in use, or make a new one with: "
        f"pyrocache secret --secret-file {path}"
    )


def test_commands_in_sentences_are_quoted_for_the_shell() -> None:
    assert refused("/my dir/secret").endswith("--secret-file '/my dir/secret'")


@as_root
def test_a_file_of_another_user_is_refused(file: Path) -> None:
    os.chown(file, A_USER, A_USER)
    assert f"belongs to the user {A_USER}, and this process runs as 0" in refused(file)


@pytest.fixture
def mounted() -> Iterator[Path]:
    """A file of root as Kubernetes mounts a secret: behind links, in a directory like /tmp."""
    with tempfile.TemporaryDirectory() as directory:
        volume = Path(directory)
        (volume / "..data-1").mkdir(mode=0o755)
        write(volume / "..data-1" / "secret", ONE.hex(), 0o440)
        os.chown(volume / "..data-1" / "secret", 0, A_USER)
        (volume / "..data").symlink_to("..data-1")
        (volume / "secret").symlink_to("..data/secret")
        volume.chmod(0o1777)
        yield volume / "secret"


@as_root
def test_a_file_of_root_that_a_group_can_read_is_used_by_its_members(mounted: Path) -> None:
    def keys() -> bytes:
        return bytes(secret_file.read(str(mounted)).primary)

    assert forked(keys, user=A_USER) == bytes(ONE)
    with pytest.raises(ConfigurationError, match="mode 0440"):
        secret_file.read(str(mounted))  # by root itself
    os.chown(mounted, 0, A_USER + 1)
    assert "Permission denied" in forked(keys, user=A_USER), "of another group"


@as_root
@pytest.mark.parametrize("mode", [0o400, 0o444, 0o460, 0o450, 0o404, 0o644])
def test_a_file_of_root_that_is_not_for_its_readers_alone_is_refused(mounted: Path, mode: int) -> None:
    mounted.chmod(mode)
    text = forked(lambda: secret_file.read(str(mounted)), user=A_USER)
    assert "belongs to the user 0, and this process runs as 54321" in text


@as_root
def test_a_file_of_root_is_not_changed_by_a_member_of_its_group(mounted: Path) -> None:
    text = forked(lambda: secret_file.update(str(mounted), Keys.stage), user=A_USER)
    assert text == f"ConfigurationError: The key file {mounted} cannot be changed: Permission denied."


@as_root
def test_a_file_of_a_user_that_is_not_root_is_not_used_by_a_group(mounted: Path) -> None:
    os.chown(mounted, A_USER + 1, A_USER)
    assert "belongs to the user 54322" in forked(lambda: secret_file.read(str(mounted)), user=A_USER)


@as_root
def test_root_can_not_be_made_to_trust_the_file_of_another_user_by_a_link(tmp_path: Path, file: Path) -> None:
    os.chown(file, A_USER, A_USER)
    link = tmp_path / "link"
    link.symlink_to(file)
    assert f"belongs to the user {A_USER}" in refused(link)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o775, 0o702, 0o720])
def test_a_directory_that_others_can_change_is_refused(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    file = write(directory / "secret", ONE.hex())
    directory.chmod(mode)
    assert f"chmod go-w {directory}" in refused(file)
    directory.chmod(0o755)
    assert secret_file.read(str(file)) == Keys(ONE)
    directory.chmod(0o1777)  # as /tmp: others cannot replace a file there
    assert secret_file.read(str(file)) == Keys(ONE)


@as_root
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    directory.mkdir(mode=0o755)
    file = write(directory / "secret", ONE.hex())
    os.chown(directory, A_USER, A_USER)
    assert f"a directory of the user {A_USER}" in refused(file)


def test_a_link_is_followed_and_the_file_and_both_directories_are_checked(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir(mode=0o700)
    (tmp_path / "near").mkdir(mode=0o700)
    target, link = write(tmp_path / "far" / "keys", ONE.hex()), tmp_path / "near" / "secret"
    link.symlink_to(target)
    assert secret_file.read(str(link)) == Keys(ONE)
    target.chmod(0o644)
    assert "0644" in refused(link)
    target.chmod(0o600)
    for directory in (target.parent, link.parent):
        directory.chmod(0o777)
        assert f"chmod go-w {directory}" in refused(link)
        directory.chmod(0o700)


def test_a_link_to_nothing_and_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    assert f"is a link to {tmp_path / 'nothing'}, which does not exist" in refused(link)
    link.unlink()
    link.symlink_to(link)
    assert "Too many levels of symbolic links" in refused(link)


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket", "device"])
def test_what_is_not_a_regular_file_is_refused_at_once(path: str, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "directory":
        os.mkdir(path, 0o700)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
    else:
        os.symlink("/dev/zero", path)
    assert "is not a regular file" in refused(path)
    with pytest.raises(ConfigurationError):
        secret_file.update(path, Keys.stage)


def test_a_huge_file_is_not_read_as_a_whole(file: Path) -> None:
    os.truncate(file, 2**40)
    assert "is longer than 16 KiB" in refused(file)


@as_root
def test_a_directory_that_cannot_be_entered_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    file = write(tmp_path / "closed" / "secret", ONE.hex())
    text = forked(lambda: secret_file.read(str(file)), user=A_USER)
    assert text == f"ConfigurationError: The key file {file} cannot be read: Permission denied."


# How it is made ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["with links", "without links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system with hard links, and one without."""

    def none(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if request.param == "without links":
        monkeypatch.setattr(os, "link", none)
    return str(request.param)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_a_new_file_and_its_new_directories_are_this_users_alone(
    tmp_path: Path, links: str, umask: int
) -> None:
    directory = tmp_path if umask == 0o777 else tmp_path / "a" / "b"  # nobody could enter that
    path = directory / "secret"
    before = os.umask(umask)
    try:
        secret_file.make(str(path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [entry.name for entry in directory.iterdir()] == ["secret"], "nothing else is left"
    assert len(secret_file.read(str(path)).all) == 1


def test_every_new_key_is_another(tmp_path: Path) -> None:
    for name in "ab":
        secret_file.make(str(tmp_path / name))
    assert secret_file.read(str(tmp_path / "a")) != secret_file.read(str(tmp_path / "b"))


def test_a_file_that_is_there_stays(file: Path, links: str) -> None:
    secret_file.make(str(file))
    assert secret_file.read(str(file)) == Keys(ONE)
    assert len(list(file.parent.iterdir())) == 1


def test_none_is_made_where_others_could_replace_it(path: str) -> None:
    os.chmod(os.path.dirname(path), 0o777)
    with pytest.raises(ConfigurationError, match="chmod go-w"):
        secret_file.make(path)
    assert not os.path.exists(path)


def test_many_processes_at_once_make_one_file(tmp_path: Path, links: str) -> None:
    def find(path: str, start: int) -> Any:
        os.read(start, 1)  # until the other end is closed
        secret_file.make(path)
        return secret_file.read(path).primary.hex()

    for number in range(3):
        path = str(tmp_path / f"{number}" / "secret")
        start, go = os.pipe()

        def wait(path: str = path, start: int = start, go: int = go) -> Any:
            os.close(go)
            return find(path, start)

        processes = [Forked(wait) for _ in range(8)]
        os.close(go)
        found = {process.result() for process in processes}
        os.close(start)
        assert found == {secret_file.read(path).primary.hex()}
        assert os.listdir(os.path.dirname(path)) == ["secret"]


def test_a_file_that_cannot_be_written_leaves_nothing(path: str) -> None:
    def make() -> None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        secret_file.make(path)

    assert "File too large" in forked(make)
    assert os.listdir(os.path.dirname(path)) == []


def test_a_file_system_without_modes_is_not_used(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fchmod", lambda descriptor, mode: os.chmod(f"/dev/fd/{descriptor}", 0o666))
    with pytest.raises(PermissionError, match="does not keep the owner and the mode"):
        secret_file.make(path)
    assert os.listdir(os.path.dirname(path)) == []


# How its keys are replaced -----------------------------------------------------------------------------------


def test_the_steps_of_a_rotation(file: Path) -> None:
    added = secret_file.update(str(file), Keys.stage)
    assert (added.primary, added.old) == (ONE, ())
    new = added.staged
    assert added.all == (ONE, new)
    assert secret_file.read(str(file)) == added
    assert secret_file.update(str(file), Keys.promote).all == (new, ONE)
    assert secret_file.update(str(file), Keys.prune).all == (new,)
    assert secret_file.read(str(file)).all == (new,)


def test_steps_in_another_order_are_refused_and_change_nothing() -> None:
    with pytest.raises(ConfigurationError, match="next step is `promote`"):
        Keys(ONE, TWO).stage()
    with pytest.raises(ConfigurationError, match="next step is `promote`"):
        Keys(ONE, TWO, (THREE,)).prune()
    with pytest.raises(ConfigurationError, match="add one with `add`"):
        Keys(ONE, None, (TWO,)).promote()
    with pytest.raises(ConfigurationError, match="with `prune`"):
        Keys(ONE, None, (TWO,) * (MAX_KEYS - 1)).stage()


@pytest.mark.parametrize("mode", [0o600, 0o700])
def test_a_changed_file_keeps_its_mode_and_the_link_to_it(tmp_path: Path, file: Path, mode: int) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    file.chmod(mode)
    secret_file.update(str(link), Keys.stage)
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert {entry.name for entry in tmp_path.iterdir()} == {"secret", "link"}


@as_root
def test_a_changed_file_keeps_its_owner_and_group(file: Path) -> None:
    os.chown(file, -1, A_USER)
    secret_file.update(str(file), Keys.stage)
    assert (file.stat().st_uid, file.stat().st_gid) == (0, A_USER)


def test_a_file_is_replaced_as_a_whole(file: Path) -> None:
    with file.open() as before:
        secret_file.update(str(file), Keys.stage)
        assert before.read() == ONE.hex()


def test_an_unusable_file_is_not_changed(file: Path) -> None:
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="0644"):
        secret_file.update(str(file), Keys.stage)
    assert file.read_text() == ONE.hex()


def test_changes_at_once_lose_no_key(file: Path) -> None:
    def add_old(number: int) -> None:
        key = Key(bytes([100 + number]) * 32)
        secret_file.update(str(file), lambda keys: Keys(keys.primary, None, (*keys.old, key)))

    processes = [Forked(lambda number=number: add_old(number)) for number in range(MAX_KEYS - 1)]
    assert [process.result() for process in processes] == [None] * len(processes)
    assert len({*secret_file.read(str(file)).all}) == MAX_KEYS


def test_of_rotations_at_once_one_adds_a_key(file: Path) -> None:
    processes = [Forked(lambda: secret_file.update(str(file), Keys.stage) and None) for _ in range(6)]
    results = [process.result() for process in processes]
    assert results.count(None) == 1
    assert len(secret_file.read(str(file)).all) == 2


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_file, "_LOCK_SECONDS", 0.05)


def test_a_lock_that_is_never_released_ends_in_a_sentence(file: Path, impatient: None) -> None:
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="cannot be changed: another process keeps it locked"):
            secret_file.update(str(file), Keys.stage)
    assert secret_file.read(str(file)) == Keys(ONE)
