"""Files of keys: what is accepted, and what is refused with which sentence; no content is shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyrocache.errors import ConfigurationError
from pyrocache.runtime.key_file import KEY_BYTES, make_key_file, read_keys

ONE, TWO = bytes(range(32)), bytes(range(32, 64))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "signing.key"


def write(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_new_file_has_one_random_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        keys = []
        for name in "ab":
            make_key_file(str(tmp_path / name))
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
            keys += read_keys(str(tmp_path / name))
    finally:
        os.umask(old)
    assert len(set(keys)) == 2
    assert {len(key) for key in keys} == {KEY_BYTES}


def test_a_file_that_exists_is_not_changed(path: Path) -> None:
    write(path, "precious")
    with pytest.raises(ConfigurationError, match="exists already"):
        make_key_file(str(path))
    assert path.read_text() == "precious"


def test_a_file_cannot_be_made_where_there_is_no_directory(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{path}/k cannot be made: No such file"):
        make_key_file(f"{path}/k")


def test_comments_empty_lines_and_space_do_not_matter(path: Path) -> None:
    text = f"# ours\n\n  {ONE.hex()}  # the new one\r\n{TWO.hex().upper()}"
    assert read_keys(write(path, text)) == (ONE, TWO)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_a_file_of_this_user_alone_is_read(path: Path, mode: int) -> None:
    assert read_keys(write(path, ONE.hex(), mode)) == (ONE,)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666])
def test_a_file_that_others_can_open_is_refused(path: Path, mode: int) -> None:
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        read_keys(write(path, ONE.hex(), mode))


def test_a_file_of_somebody_else_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, ONE.hex())
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(ConfigurationError, match="belongs to the user with the number"):
        read_keys(str(path))


@pytest.mark.parametrize(
    "line",
    [
        ONE.hex()[:-2],
        ONE.hex() + "00",
        ONE.hex()[:-1] + "g",
        "é" * 32,
        " ".join([ONE.hex()[:32], ONE.hex()[32:]]),
        f"{ONE.hex()} {TWO.hex()}",
    ],
)
def test_a_line_that_is_not_a_key_is_named_and_not_shown(path: Path, line: str) -> None:
    write(path, f"{TWO.hex()}\n{line}\n")
    with pytest.raises(ConfigurationError, match=f"Line 2 of {path} is not a key") as raised:
        read_keys(str(path))
    assert line[:8] not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_file_without_keys_is_refused(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no key"):
        read_keys(write(path, "# nothing\n"))


def test_what_is_not_a_file_of_keys_is_refused_at_once(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{path} cannot be opened: No such file"):
        read_keys(str(path))
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigurationError, match="not a regular file"):
        read_keys(str(path))
    path.unlink()
    with pytest.raises(ConfigurationError, match="more than 65536 bytes"):
        read_keys(write(path, "#" * 100_000))
    with pytest.raises(ConfigurationError, match="not a regular file"):
        read_keys(str(path.parent))
