"""Where the secret of a user is found or made, and what becomes of it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pyrocache.errors import ConfigurationError, OutOfResources
from pyrocache.runtime import secret as secrets
from pyrocache.runtime import secret_file
from pyrocache.runtime.child_process import ChildProcess
from pyrocache.runtime.secret import Secret, find_secret, locate, read_secret, secret_of_parent
from pyrocache.runtime.secret_file import Keys
from tests.support.forked import A_USER, Forked, as_root, forked
from tests.support.processes import environment


class Places:
    """The places for the secret of a user."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        self.runtime = directory / "runtime"
        self.temporary = directory / "tmp"
        for place in (self.home, self.runtime, self.temporary):
            place.mkdir(mode=0o700)
        self.configured = self.home / ".config" / "pyrocache" / "secret"
        self.in_runtime = self.runtime / "pyrocache" / "secret"
        self.with_sockets = self.temporary / f"pyrocache-{os.getuid()}" / "secret"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    """The places of a user who has just been created. (`tmp_path` is made before that is among them.)"""
    for variable in ("XDG_CONFIG_HOME", "PYROCACHE_SECRET_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(secrets, "_in_memory", {})
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # pytest's own is closed to other users
        os.chmod(directory, 0o755)
        places = Places(Path(directory))
        monkeypatch.setenv("HOME", str(places.home))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(places.runtime))
        monkeypatch.setattr(tempfile, "tempdir", str(places.temporary))
        yield places


def put(path: Path) -> Path:
    """Make a secret."""
    secret_file.make(str(path))
    return path


def found() -> str | None:
    return find_secret().path


def give(directory: Path, user: int = A_USER) -> None:
    """Let another user own a directory and what is in it."""
    for path in (directory, *directory.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)


# Where it is -------------------------------------------------------------------------------------------------


def test_it_is_made_in_the_home_and_found_there(places: Places) -> None:
    secret = find_secret()
    assert secret.path == str(places.configured)
    assert [len(key) for key in secret.keys] == [32]
    assert find_secret().keys == secret.keys
    assert not places.with_sockets.parent.exists()
    assert not places.in_runtime.exists()


def test_the_directory_for_configuration_can_be_elsewhere(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = places.home / "elsewhere"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(elsewhere))
    assert found() == str(elsewhere / "pyrocache" / "secret")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert found() == str(places.configured)


def test_a_secret_that_exists_goes_before_a_better_place_without_one(places: Places) -> None:
    secrets.private_directory.make()
    put(places.with_sockets)
    assert found() == str(places.with_sockets)
    put(places.in_runtime)
    assert found() == str(places.in_runtime)
    put(places.configured)
    assert found() == str(places.configured)


@pytest.mark.parametrize("home", ["", "relative", "/proc", "/dev/null", "missing"])
def test_without_a_usable_home_the_directory_of_the_session_is_used(
    places: Places, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", str(places.home / "missing") if home == "missing" else home)
    if home == "":
        monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/config")
    assert found() == str(places.in_runtime)


@pytest.mark.parametrize("runtime", [None, "", "relative", "missing", "/proc", "open to others"])
def test_without_that_too_the_directory_of_the_sockets_is_used(
    places: Places, monkeypatch: pytest.MonkeyPatch, runtime: str | None
) -> None:
    monkeypatch.setenv("HOME", "/proc")
    if runtime is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
    elif runtime == "open to others":
        put(places.in_runtime)
        places.runtime.chmod(0o755)
    else:
        missing = str(places.runtime / "missing")
        monkeypatch.setenv("XDG_RUNTIME_DIR", missing if runtime == "missing" else runtime)
    assert found() == str(places.with_sockets)


@pytest.fixture
def nowhere(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without any place for a file."""
    monkeypatch.setenv("HOME", "/proc")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(tempfile, "tempdir", "/proc")


def test_without_any_place_it_is_in_memory_and_one_for_the_whole_process(
    nowhere: None, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[Secret] = []
    threads = [threading.Thread(target=lambda: found.append(find_secret())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(secret) for secret in found}) == 1
    assert (found[0].path, len(found[0].keys[0])) == (None, 32)
    assert not found[0].refresh()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "PYROCACHE_SECRET_FILE" in caplog.text
    assert forked(lambda: find_secret().keys[0].hex()) == found[0].keys[0].hex(), (
        "a forked process has it too"
    )


def test_one_in_memory_stays_when_a_file_appears(
    places: Places, nowhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = find_secret()
    monkeypatch.setenv("HOME", str(places.home))
    put(places.configured)
    assert find_secret() is secret
    assert find_secret(places.configured) is not secret


@pytest.mark.parametrize("spoiled", ["mode", "content", "dangling link", "directory"])
def test_a_secret_that_cannot_be_used_is_an_error_and_no_other_place_is_tried(
    places: Places, spoiled: str
) -> None:
    put(places.in_runtime)
    put(places.configured)
    if spoiled == "mode":
        places.configured.chmod(0o644)
    elif spoiled == "content":
        places.configured.write_text("garbage")
    elif spoiled == "directory":
        places.configured.parent.chmod(0o777)
    else:
        places.configured.unlink()
        places.configured.symlink_to("nothing")
    with pytest.raises(ConfigurationError, match=str(places.configured)):
        find_secret()


def test_a_directory_of_its_own_that_others_can_change_is_an_error_before_one_is_made(places: Places) -> None:
    places.configured.parent.mkdir(parents=True)
    places.configured.parent.chmod(0o777)
    with pytest.raises(ConfigurationError, match="chmod go-w"):
        find_secret()


def test_processes_that_start_together_have_the_same(places: Places) -> None:
    start, go = os.pipe()

    def find() -> Any:
        os.close(go)
        os.read(start, 1)
        return find_secret().keys[0].hex()

    processes = [Forked(find) for _ in range(8)]
    os.close(go)
    results = [process.result() for process in processes]
    os.close(start)
    assert results == [find_secret().keys[0].hex()] * 8


def test_without_file_descriptors_it_does_not_go_on_to_the_next_place(places: Places) -> None:
    def find() -> Any:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        try:
            find_secret()
        except OutOfResources as error:
            return str(error)

    text = forked(find)
    assert text.startswith(
        "The secret of this user cannot be made: this process has no file descriptors left"
    )
    assert not places.in_runtime.exists()


# Of other users ----------------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("configuration", ["missing", "of root", "of the user"])
def test_root_makes_none_in_the_home_of_another_user(places: Places, configuration: str) -> None:
    if configuration != "missing":
        (places.home / ".config").mkdir()
    give(places.home)
    give(places.runtime)
    if configuration == "of root":
        give(places.home / ".config", 0)
    assert found() == str(places.with_sockets)
    assert not places.configured.exists()


@as_root
def test_none_is_made_in_a_directory_of_another_user(places: Places) -> None:
    (places.home / ".config").mkdir()
    give(places.home / ".config")
    assert found() == str(places.in_runtime)


@as_root
def test_root_does_not_use_the_secret_of_another_user(places: Places) -> None:
    put(places.configured)
    give(places.home)
    with pytest.raises(ConfigurationError, match=f"belongs to the user {A_USER}"):
        find_secret()


@as_root
def test_a_session_of_another_user_is_passed_over(places: Places) -> None:
    put(places.in_runtime)
    give(places.runtime)
    assert found() == str(places.configured)


@as_root
def test_a_home_that_is_another_users_is_passed_over_and_its_secret_refused(places: Places) -> None:
    places.temporary.chmod(0o1777)
    places.runtime.chmod(0o755)
    assert forked(found, user=A_USER) == f"{places.temporary}/pyrocache-{A_USER}/secret"
    put(places.configured)
    assert forked(found, user=A_USER) == f"{places.temporary}/pyrocache-{A_USER}/secret", "it cannot be seen"
    for directory in (places.home, places.home / ".config", places.configured.parent):
        directory.chmod(0o755)
    assert "belongs to the user 0, and this process runs as" in forked(found, user=A_USER)


@as_root
def test_a_home_that_is_read_only_is_passed_over_and_one_that_was_made_before_is_used(places: Places) -> None:
    give(places.home)
    give(places.runtime)
    places.home.chmod(0o500)
    assert forked(found, user=A_USER) == str(places.in_runtime)
    shutil.rmtree(places.runtime / "pyrocache")
    places.home.chmod(0o700)
    assert forked(found, user=A_USER) == str(places.configured)
    places.home.chmod(0o500)
    assert forked(found, user=A_USER) == str(places.configured)


@as_root
def test_a_directory_for_sockets_that_another_user_has_taken_is_passed_over(
    places: Places, nowhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(places.temporary))
    secrets.private_directory.make()
    put(places.with_sockets)
    give(places.with_sockets.parent)
    assert find_secret().path is None


@as_root
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare, to mount a full file system")
def test_a_full_home_is_passed_over(places: Places) -> None:
    script = """
mount -t tmpfs -o size=4k,mode=700 none "$HOME" || exit 77
head -c 4096 /dev/zero > "$HOME/full"
exec "$0" -c "
import tempfile; tempfile.tempdir = '/proc'
from pyrocache.runtime.secret import find_secret
import os
print(find_secret().path, *os.listdir(os.environ['HOME']))"
"""
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    if run.returncode == 77 or "unshare" in run.stderr:
        pytest.skip("this system lets nobody mount a file system")
    path, *left = run.stdout.split()
    assert path == str(places.in_runtime)
    assert set(left) <= {"full", ".config"}


# A file that is named ----------------------------------------------------------------------------------------


def test_a_named_file_is_used_alone_and_the_argument_goes_before_the_environment(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(places.configured)
    one, two = put(tmp_path / "one"), put(tmp_path / "two")
    assert find_secret(one).path == str(one)
    monkeypatch.setenv("PYROCACHE_SECRET_FILE", str(two))
    assert found() == str(two)
    assert find_secret(str(one)).path == str(one)
    with pytest.raises(ConfigurationError, match="is empty: name a file"):
        find_secret("")
    monkeypatch.setenv("PYROCACHE_SECRET_FILE", "")
    assert found() == str(places.configured)


def test_a_named_file_that_does_not_exist_is_not_made(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "none"
    for argument in (str(missing), None):
        monkeypatch.setenv("PYROCACHE_SECRET_FILE", str(missing))
        with pytest.raises(ConfigurationError, match=f"pyrocache secret --secret-file {missing}$"):
            find_secret(argument)
    assert not missing.exists()
    assert not places.configured.exists()


def test_a_named_file_is_made_on_request(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new" / "secret"
    assert locate(new) == str(new)
    assert not new.exists()
    assert locate(new, make=True) == str(new)
    made = read_secret(new)
    locate(new, make=True)
    assert read_secret(new).keys == made.keys
    monkeypatch.setenv("PYROCACHE_SECRET_FILE", str(tmp_path / "other"))
    assert read_secret(locate(make=True)).path == str(tmp_path / "other")
    assert not places.configured.exists()
    monkeypatch.delenv("PYROCACHE_SECRET_FILE")
    assert read_secret(locate()).path == str(places.configured)
    with pytest.raises(
        ConfigurationError, match=r"The key file /proc/nothing/x cannot be made: .*--secret-file"
    ):
        locate("/proc/nothing/x", make=True)


def test_a_relative_path_stays_the_same_file_when_the_directory_changes(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "here")
    put(places.home / "there")
    secret = find_secret("here")
    assert secret.path == str(tmp_path / "here")
    monkeypatch.chdir("/")
    assert not secret.refresh()
    assert find_secret("~/there").path == str(places.home / "there")


# What becomes of it ------------------------------------------------------------------------------------------


def test_refreshing_takes_over_what_the_file_has_now(places: Places) -> None:
    secret = find_secret()
    before = secret.keys
    assert not secret.refresh()
    for step, number in ((Keys.stage, 2), (Keys.promote, 2), (Keys.prune, 1)):
        keys = secret_file.update(str(places.configured), step)
        assert secret.refresh()
        assert secret.keys == keys.all
        assert len(secret.keys) == number
    assert secret.keys != before


def test_keys_stay_if_the_file_vanishes_or_cannot_be_used_and_each_change_is_logged_once(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    secret = find_secret()
    keys, content = secret.keys, places.configured.read_bytes()

    def logged() -> list[tuple[str, str]]:
        for _ in range(3):
            assert not secret.refresh()
            assert secret.keys == keys
        records = [(record.levelname, record.getMessage()) for record in caplog.records]
        caplog.clear()
        return records

    assert logged() == []
    places.configured.chmod(0o644)
    [(level, text)] = logged()
    assert level == "WARNING"
    assert "chmod 600" in text
    places.configured.write_text("garbage")
    places.configured.chmod(0o600)
    [(level, text)] = logged()
    assert (level, "hexadecimal digits in line 1" in text) == ("WARNING", True)
    places.configured.unlink()
    [(level, text)] = logged()
    assert (level, "does not exist" in text) == ("WARNING", True)
    os.mkfifo(places.configured, 0o600)
    [(level, text)] = logged()
    assert (level, "not a regular file" in text) == ("WARNING", True)
    places.configured.unlink()
    places.configured.write_bytes(content)
    places.configured.chmod(0o600)
    assert [level for level, _ in logged()] == ["INFO"]
    assert not {key.hex() for key in keys} & set(caplog.text.split())


def test_it_is_pickled_as_its_path(places: Places) -> None:
    secret = find_secret()
    pickled = pickle.dumps(secret)
    assert str(places.configured).encode() in pickled
    assert bytes(secret.keys[0]) not in pickled
    assert pickle.loads(pickled).keys == secret.keys
    places.configured.unlink()
    with pytest.raises(ConfigurationError, match="does not exist"):
        pickle.loads(pickled)


def test_one_in_memory_is_not_pickled(nowhere: None) -> None:
    with pytest.raises(ConfigurationError, match=r"can be pickled.*secret_file= or \$PYROCACHE_SECRET_FILE"):
        pickle.dumps(find_secret())


def test_its_repr_names_the_place_and_no_key(places: Places, nowhere: None) -> None:
    in_memory, in_a_file = find_secret(), read_secret(put(places.configured))
    secret_file.update(str(places.configured), Keys.stage)
    in_a_file.refresh()
    assert repr(in_memory) == "<Secret in the memory of this process, 1 key>"
    assert repr(in_a_file) == f"<Secret in {places.configured}, 2 keys>"


def test_a_child_gets_the_path_or_the_keys(
    places: Places, nowhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_file, in_memory = read_secret(put(places.configured)), find_secret()
    assert in_a_file.for_child() == str(places.configured)
    settings = json.loads(json.dumps({"a": in_a_file.for_child(), "b": in_memory.for_child()}))
    monkeypatch.setattr(secrets, "_in_memory", {})  # as in another process
    assert secret_of_parent(settings["a"]).path == str(places.configured)
    assert find_secret().keys != in_memory.keys
    monkeypatch.setattr(secrets, "_in_memory", {})
    assert secret_of_parent(settings["b"]).keys == in_memory.keys
    assert find_secret().keys == in_memory.keys, "whoever looks for it there finds the same"


CHILD = """
import hashlib, json, pickle
from pyrocache.runtime.secret import find_secret, secret_of_parent
from pyrocache.runtime.start import answer

def main(argv):
    sent = secret_of_parent(json.loads(argv[0])["secret"])
    answer(int(argv[1]), {"digest": hashlib.sha256(sent.keys[0]).hexdigest(), "same": find_secret() is sent})
"""


def test_one_in_memory_reaches_a_real_child_and_is_not_in_its_arguments(
    nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child_of_a_test.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    secret = find_secret()
    process = ChildProcess("child_of_a_test", {"secret": secret.for_child()}, quiet=True)
    try:
        answer = process.wait_until_ready()
        assert answer == {"digest": hashlib.sha256(secret.keys[0]).hexdigest(), "same": True}
        assert secret.keys[0].hex() not in repr(process._process.args)
    finally:
        process.wait()


def test_reading_is_what_finding_does_with_a_path(places: Places) -> None:
    assert read_secret(put(places.configured)).keys == find_secret(places.configured).keys


@pytest.mark.parametrize("call", ["lstat", "stat", "open", "fstat", "read", "close"])
@pytest.mark.parametrize("use", ["refresh", "current", "find_secret", "read_secret"])
def test_what_a_signal_handler_raises_reaches_the_caller(
    places: Places, monkeypatch: pytest.MonkeyPatch, call: str, use: str
) -> None:
    secret = find_secret()
    assert secret.path is not None
    uses: dict[str, Callable[[], object]] = {
        "refresh": secret.refresh,
        "current": secret.current,
        "find_secret": find_secret,
        "read_secret": lambda: read_secret(secret.path or ""),
    }
    monkeypatch.setattr("pyrocache.runtime.secret.REREAD_SECONDS", 0.0)
    original = getattr(os, call)

    def handle(signum: int, frame: FrameType) -> None:
        raise TimeoutError

    def interrupted(*arguments: Any, **options: Any) -> Any:
        original(*arguments, **options)
        handle(0, sys._getframe())  # as the interpreter calls it when the system call has returned

    with monkeypatch.context() as patch:
        patch.setattr(os, call, interrupted)
        with pytest.raises(TimeoutError):
            uses[use]()
