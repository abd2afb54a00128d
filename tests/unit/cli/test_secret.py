"""``pyrocache secret`` makes the secret, shows where it is, and replaces its key; it never prints a key."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pyrocache.runtime import secret as secrets
from pyrocache.runtime import secret_file
from tests.support.commands import Outcome, call

Command = Callable[..., Outcome]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user who has just been created."""
    for variable in ("XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "PYROCACHE_SECRET_FILE"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(secrets, "_in_memory", {})
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def file(home: Path) -> Path:
    """Where the secret of this user is; it is not made yet."""
    return home / ".config" / "pyrocache" / "secret"


def secret(*arguments: str, **variables: str) -> Outcome:
    outcome = call("pyrocache", "secret", *arguments, **variables)
    assert not re.search("[0-9a-f]{32}", outcome.out + outcome.err), "a key"
    return outcome


def succeeds(*arguments: str, **variables: str) -> list[str]:
    """The lines that it prints."""
    outcome = secret(*arguments, **variables)
    assert (outcome.status, outcome.err) == (0, "")
    return outcome.out.splitlines()


def fails(*arguments: str, status: int = 1, **variables: str) -> str:
    """The sentence that it prints."""
    outcome = secret(*arguments, **variables)
    assert outcome.status == status
    return outcome.sentence


def test_it_is_made_once(file: Path) -> None:
    assert succeeds() == [str(file), "1 key"]
    made = file.read_bytes()
    assert succeeds() == [str(file), "1 key"]
    assert file.read_bytes() == made
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_rotation_says_the_next_command_at_each_step(file: Path) -> None:
    succeeds()
    old = secret_file.read(str(file)).primary
    path, told = succeeds("add")
    assert path == str(file)
    assert told.startswith("2 keys; the added one is accepted, and not used yet. Next: pyrocache secret ")
    assert told.endswith(f" --secret-file {file} promote")
    assert succeeds() == [path, told]
    assert secret_file.read(str(file)).primary == old
    assert succeeds("promote")[1].endswith(f"Next: pyrocache secret --secret-file {file} prune")
    new = secret_file.read(str(file))
    assert new.all == (new.primary, old)
    assert succeeds("prune") == [path, "1 key"]
    assert "no old key" in fails("prune")
    assert secret_file.read(str(file)).all == (new.primary,)


def test_a_step_at_the_wrong_time_is_refused_in_a_sentence(file: Path) -> None:
    assert "add one with `add`" in fails("promote")
    succeeds("add")
    assert "next step is `promote`" in fails("add")
    assert "next step is `promote`" in fails("prune")


def test_another_file_is_named_before_or_after_the_step_or_in_the_environment(home: Path, file: Path) -> None:
    one, two = str(home / "one"), str(home / "two")
    assert succeeds("--secret-file", one) == [one, "1 key"]
    assert succeeds(PYROCACHE_SECRET_FILE=two) == [two, "1 key"]
    assert succeeds("--secret-file", one, "add", PYROCACHE_SECRET_FILE=two)[0] == one
    assert succeeds("promote", "--secret-file", one, PYROCACHE_SECRET_FILE=two)[0] == one
    assert succeeds("add", PYROCACHE_SECRET_FILE=two)[0] == two
    assert not file.exists()


def test_a_step_makes_no_file_that_was_named(home: Path) -> None:
    missing = str(home / "none")
    assert fails("add", "--secret-file", missing).endswith(f"pyrocache secret --secret-file {missing}")
    assert not os.path.exists(missing)


def test_errors_are_one_sentence(home: Path, file: Path) -> None:
    succeeds()
    file.chmod(0o640)
    for command in ("add", "promote", "prune"):
        assert "chmod 600" in fails(command)
    assert "chmod 600" in fails()
    assert "cannot be made" in fails("--secret-file", "/proc/nothing/x")
    assert "not a regular file" in fails("--secret-file", "/dev/null")
    assert "name a file" in fails("--secret-file", "")
    assert "No such command 'nope'" in fails("nope", status=2)


def test_without_any_place_a_file_must_be_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    for arguments in ((), ("add",)):
        assert "--secret-file" in fails(*arguments, HOME="/proc")


def test_the_help_has_the_steps(home: Path) -> None:
    told = " ".join(secret("--help").out.split())
    for step in ("1. add", "2. promote", "3. prune", "copy the file"):
        assert step in told
