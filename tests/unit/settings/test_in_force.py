"""Which file is read, and when a change of it, of a variable or of the directory counts."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import pyrocache.settings
from pyrocache import TLS, ConfigurationError, PyroCacheClient
from pyrocache.settings import CONFIG_VARIABLE, ignored, in_force
from pyrocache.settings.table import Found
from tests.support.forked import Forked

SOMEWHERE = 'nameserver = "127.0.0.1:1001"\n'
ELSEWHERE = 'nameserver = "127.0.0.1:1002"\n'


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, below which there is no settings file and no home with one."""
    project = tmp_path / "project" / "inner"
    project.mkdir(parents=True)
    monkeypatch.chdir(project)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    return project


def port() -> int:
    return int(in_force().get("nameserver", "127.0.0.1:0").rpartition(":")[2])


def look_again() -> None:
    """Do what happens by itself after two seconds."""
    pyrocache.settings._last = None


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_a_file_and_variables_nothing_is_set() -> None:
    given = in_force()
    assert (dict(given.found), given.file, given.tls, given.of("client")) == ({}, None, None, {})


def test_the_nearest_file_counts_alone(project: Path, tmp_path: Path) -> None:
    outer = write(project.parent / "pyrocache.toml", SOMEWHERE + "[client]\ntimeout = 2\n")
    write(tmp_path / "configuration/pyrocache/pyrocache.toml", "[client]\ntransport = 'tcp'\n")
    assert in_force().of("client") == {"timeout": 2}
    assert in_force().file == str(outer)
    write(project / "pyrocache.toml", ELSEWHERE)
    look_again()
    assert (port(), in_force().of("client")) == (1002, {})


def test_a_project_file_counts_if_it_has_the_table(project: Path) -> None:
    write(project / "pyproject.toml", '[project]\nname = "x"\ndependencies = ["pyrocache"]\n[tool.other]\n')
    write(project.parent / "pyproject.toml", f"[tool.pyrocache]\n{SOMEWHERE}")
    assert port() == 1001
    look_again()
    write(project.parent / "pyrocache.toml", ELSEWHERE)  # goes before the other one in its directory
    assert port() == 1002


@pytest.mark.parametrize(
    "mention", ["# see tool.pyrocache\n", "[tool]\nx = 1\n# tool.pyrocache\n", "tool = 'tool.pyrocache'\n"]
)
def test_a_project_file_that_only_mentions_the_table_is_passed_over(project: Path, mention: str) -> None:
    write(project / "pyproject.toml", mention)
    write(project.parent / "pyrocache.toml", SOMEWHERE)
    assert port() == 1001


def test_the_file_of_the_user_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "configuration/pyrocache/pyrocache.toml", SOMEWHERE)
    assert port() == 1001
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert port() == 0
    write(tmp_path / ".config/pyrocache/pyrocache.toml", ELSEWHERE)
    look_again()
    assert port() == 1002


def test_a_named_file_is_the_only_one(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project / "pyrocache.toml", SOMEWHERE)
    named = write(tmp_path / "named.toml", ELSEWHERE)
    monkeypatch.setenv(CONFIG_VARIABLE, str(named))
    assert port() == 1002
    monkeypatch.setenv(CONFIG_VARIABLE, os.path.relpath(named))
    assert port() == 1002
    monkeypatch.setenv(CONFIG_VARIABLE, os.devnull)
    assert (port(), in_force().file) == (0, os.devnull)
    monkeypatch.setenv(CONFIG_VARIABLE, "")
    assert port() == 1001
    named.unlink()
    monkeypatch.setenv(CONFIG_VARIABLE, str(named))
    with pytest.raises(ConfigurationError, match=r"named.toml, which .* names, cannot be read: No such file"):
        in_force()


def test_a_named_project_file_must_have_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = write(tmp_path / "pyproject.toml", "[project]\n")
    monkeypatch.setenv(CONFIG_VARIABLE, str(named))
    with pytest.raises(ConfigurationError, match=r"has no table \[tool.pyrocache\]"):
        in_force()


def test_a_change_of_the_file_counts_at_once(project: Path) -> None:
    file = write(project / "pyrocache.toml", SOMEWHERE)
    assert port() == 1001
    file.write_text(ELSEWHERE + "# longer\n")
    assert port() == 1002
    file.unlink()
    assert port() == 0


def test_a_new_file_counts_after_a_while(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert port() == 0
    write(project / "pyrocache.toml", SOMEWHERE)
    monkeypatch.setattr(pyrocache.settings, "LOOK_AGAIN_SECONDS", 0.0)
    assert port() == 1001


def test_another_directory_and_another_value_of_a_variable_count_at_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project / "pyrocache.toml", SOMEWHERE)
    assert port() == 1001
    monkeypatch.chdir(project.parent)
    assert port() == 0
    monkeypatch.setenv("PYROCACHE_NAMESERVER", "127.0.0.1:1003")
    assert in_force().found["nameserver"] == Found("127.0.0.1:1003", "$PYROCACHE_NAMESERVER")
    monkeypatch.setenv("PYROCACHE_NAMESERVER", "127.0.0.1:1004")
    assert port() == 1004
    monkeypatch.setenv("PYROCACHE_NAMESERVER", "")
    assert port() == 0


def test_a_working_directory_that_was_removed_has_no_file(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.rmdir()
    assert port() == 0
    monkeypatch.setenv("PYROCACHE_TLS_CA", "ca.pem")
    assert in_force().get("tls.ca") == "/ca.pem"
    os.chdir(tmp_path)


def test_what_is_read_again_is_the_same_object(project: Path) -> None:
    write(project / "pyrocache.toml", SOMEWHERE)
    assert in_force() is in_force()


def test_an_error_is_raised_each_time(project: Path) -> None:
    write(project / "pyrocache.toml", "[client]\ntimeout = 0\n")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="timeout"):
            in_force()


def test_settings_are_ignored_in_one_thread_and_until_the_end(project: Path) -> None:
    write(project / "pyrocache.toml", SOMEWHERE)
    seen = []
    with ignored():
        assert port() == 0
        thread = threading.Thread(target=lambda: seen.append(port()))
        thread.start()
        thread.join()
    assert (seen, port()) == ([1001], 1001)


# What a client takes of them --------------------------------------------------------------------------------


def test_a_client_takes_what_its_caller_leaves_out(project: Path) -> None:
    more = """
        timeout = 2
        ttl_seconds = 60
        serializer = "json"
        on_error = "miss"
        on_undecodable = "miss"
        max_connections = 7
        compress_above = "1KiB"
        allowed_classes = ["a.B"]
        transport = "tcp"
        counters = true
    """
    write(project / "pyrocache.toml", f"{SOMEWHERE}[client]\n{more}")
    config = PyroCacheClient()._context.config
    assert config.nameserver == "127.0.0.1:1001"
    assert (config.timeout, config.ttl_seconds, config.serializer, config.on_error) == (
        2.0,
        60.0,
        "json",
        "miss",
    )
    assert (config.max_connections, config.compress_above, config.allowed_classes) == (7, 1024, ("a.B",))
    assert (config.transport, config.on_undecodable, config.counters) == ("tcp", "miss", True)


def test_an_argument_goes_before_a_setting(project: Path) -> None:
    write(
        project / "pyrocache.toml",
        SOMEWHERE + "[client]\ntimeout = 2\nttl_seconds = 60\nserializer = 'json'\ncounters = true\n",
    )
    client = PyroCacheClient(
        "127.0.0.1:1009", timeout=5.0, ttl_seconds=float("inf"), serializer="pickle", counters=False
    )
    config = client._context.config
    assert (config.nameserver, config.timeout, config.ttl_seconds) == ("127.0.0.1:1009", 5.0, None)
    assert (config.serializer, config.counters) == ("pickle", False)


class Codec:
    dumps = loads = staticmethod(bytes)


def test_a_codec_is_used_in_place_of_a_serializer_of_the_settings(project: Path) -> None:
    write(project / "pyrocache.toml", "[client]\nserializer = 'json'\n")
    assert PyroCacheClient(codec=Codec())._context.config.serializer == "pickle"
    with pytest.raises(ConfigurationError, match="either a codec or a serializer"):
        PyroCacheClient(codec=Codec(), serializer="json")


def test_a_client_without_the_secret_takes_none_from_the_settings(project: Path) -> None:
    write(project / "pyrocache.toml", "secret_file = 'nowhere'\n")
    assert PyroCacheClient(authenticate=False)._context.config.secret is None
    with pytest.raises(ConfigurationError, match="inner/nowhere does not exist"):
        PyroCacheClient()


def test_a_forked_process_sees_its_own_environment(project: Path) -> None:
    write(project / "pyrocache.toml", SOMEWHERE)
    assert port() == 1001

    def other() -> int:
        os.environ["PYROCACHE_NAMESERVER"] = "127.0.0.1:1005"
        return port()

    assert Forked(other).result() == 1005


def test_a_client_has_tls_as_the_settings_say_unless_its_caller_does(project: Path) -> None:
    file = write(project / "pyrocache.toml", "[tls]\nca = 'ca.pem'\n")
    encrypted = TLS(ca=str(project / "ca.pem"))
    assert PyroCacheClient()._context.config.tls == encrypted
    assert PyroCacheClient(tls=False)._context.config.tls is False
    assert PyroCacheClient(tls=TLS(ca="/other"))._context.config.tls == TLS(ca="/other")
    file.write_text("no_tls = true\n")
    assert PyroCacheClient()._context.config.tls is False
    assert PyroCacheClient(tls=encrypted)._context.config.tls == encrypted
