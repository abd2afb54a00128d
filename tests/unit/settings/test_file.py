"""Which file of settings is trusted, and what is said of one that is not."""

from __future__ import annotations

import grp
import os
import pwd
import tempfile
from pathlib import Path

import pytest

import pyrocache.settings
from pyrocache import ConfigurationError, PyroCacheClient
from pyrocache.settings import CONFIG_VARIABLE, in_force
from tests.support.forked import A_USER, Forked, as_root

TEXT = 'nameserver = "127.0.0.1:1001"\n'
PROJECT = f"[tool.pyrocache]\n{TEXT}"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    project = tmp_path / "project"
    project.mkdir()
    project.chmod(0o755)
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def file(project: Path) -> Path:
    file = project / "pyrocache.toml"
    file.write_text(TEXT)
    file.chmod(0o644)
    return file


def refusal() -> str:
    pyrocache.settings._last = None  # what happens by itself after two seconds
    with pytest.raises(ConfigurationError) as raised:
        in_force()
    return str(raised.value)


def found() -> bool:
    pyrocache.settings._last = None
    return in_force().get("nameserver") is not None


@as_root
@pytest.mark.parametrize(("name", "text"), [("pyrocache.toml", TEXT), ("pyproject.toml", PROJECT)])
def test_a_file_of_another_user_is_refused_and_the_sentence_says_how_to_name_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    file = project / name
    file.write_text(text)
    os.chown(file, A_USER, A_USER)
    assert refusal() == (
        f"The settings file {file} belongs to the user {A_USER}, and this process runs as 0, so it is not used: name "
        "it with --config or $PYROCACHE_CONFIG if you trust it, or give PYROCACHE_CONFIG=/dev/null to read no file."
    )
    with pytest.raises(ConfigurationError, match="so it is not used"):
        PyroCacheClient()
    monkeypatch.setenv(CONFIG_VARIABLE, name)
    assert found()
    monkeypatch.setenv(CONFIG_VARIABLE, os.devnull)
    assert not found()


@as_root
def test_a_project_file_of_another_user_without_settings_is_passed_over(project: Path) -> None:
    file = project / "pyproject.toml"
    file.write_text("not even [TOML, pyrocache")
    os.chown(file, A_USER, A_USER)
    assert not found()


@as_root
def test_a_file_of_root_is_trusted(file: Path, tmp_path: Path) -> None:
    directory = tmp_path
    while directory != Path(tempfile.gettempdir()):
        directory.chmod(0o755)
        directory = directory.parent
    assert Forked(found, user=A_USER).result() is True


@as_root
def test_a_link_or_a_directory_of_another_user_is_refused(project: Path, file: Path) -> None:
    target = file.rename(project / "target.toml")
    file.symlink_to(target)
    assert found()
    os.lchown(file, A_USER, A_USER)
    assert "belongs to the user" in refusal()
    os.lchown(file, 0, 0)
    os.chown(project, A_USER, A_USER)
    assert f"is in {project}, a directory of the user {A_USER}" in refusal()


def test_a_file_that_everybody_can_write_to_is_refused(file: Path) -> None:
    file.chmod(0o646)
    assert "can be written to by other users (mode 0646)" in refusal()


def test_a_file_in_a_directory_that_everybody_can_change_is_refused(project: Path, file: Path) -> None:
    project.chmod(0o757)
    assert "which other users can change (mode 0757)" in refusal()
    project.chmod(0o1777)  # as /tmp: nobody else can replace this file
    assert found()


def test_a_file_above_the_working_directory_where_everybody_can_write_is_passed_over(
    project: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = project / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    project.chmod(0o1777)
    assert not found()
    file.write_text("anything")
    assert not found()


@as_root
def test_a_group_that_others_are_in_is_refused(
    project: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(file, -1, A_USER)
    assert found()
    file.chmod(0o664)
    assert "can be written to by other users (mode 0664)" in refusal()
    with monkeypatch.context() as patched:  # it has the right name, and is not the primary group
        patched.setattr(grp, "getgrgid", lambda number: grp.struct_group(("root", "x", number, [])))
        refusal()
    file.chmod(0o644)
    os.chown(project, -1, A_USER)
    project.chmod(0o775)
    assert "which other users can change" in refusal()


def test_the_group_of_this_user_alone_may_write(
    project: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = pwd.getpwuid(os.geteuid())
    os.chown(file, -1, user.pw_gid)
    os.chown(project, -1, user.pw_gid)
    file.chmod(0o664)
    project.chmod(0o775)
    for name, members, trusted in (
        (user.pw_name, [], True),
        (user.pw_name, [user.pw_name], True),
        (user.pw_name, ["somebody"], False),
        ("users", [], False),
    ):
        group = grp.struct_group((name, "x", user.pw_gid, members))
        monkeypatch.setattr(grp, "getgrgid", lambda _, group=group: group)  # what the system's tables say
        if trusted:
            assert found()
        else:
            refusal()


def test_a_fifo_is_refused_and_does_not_block(project: Path) -> None:
    os.mkfifo(project / "pyproject.toml")
    assert not found()
    os.mkfifo(project / "pyrocache.toml")
    assert "is not a regular file" in refusal()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"nameserver = \n", "is not valid TOML: Invalid value (at line 1, column 14)."),
        (b"x = '\xff'\n", "is not text in UTF-8."),
        (b"x = " + b"[" * 100_000, "is nested too deeply."),
        (b"#" * (2**20 + 1), "is longer than 1 MiB."),
    ],
    ids=["syntax", "encoding", "nested", "long"],
)
def test_a_file_that_cannot_be_parsed(file: Path, content: bytes, problem: str) -> None:
    file.write_bytes(content)
    assert refusal() == f"The settings file {file} {problem}"
