"""Settings as defaults of options, and the output of ``pyrocache config``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer

from pyrocache.cli.commands import app
from pyrocache.cli.config import _OPTIONS, _as_options_have_it, defaults
from pyrocache.settings import Settings
from pyrocache.settings.table import Found, settings
from tests.support.commands import Outcome, call
from tests.support.forked import A_USER, as_root
from tests.support.processes import free_address

TEXT = """\
nameserver = "127.0.0.1:1001"

[node]
"max_memory" = "64MiB"
workers = 2

[client]
timeout = 3
allowed_classes = ["a.B", "c.D"]
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def file(directory: Path) -> Path:
    file = directory / "pyrocache.toml"
    file.write_text(TEXT)
    return file


def config(*arguments: str, **variables: str) -> Outcome:
    return call("pyrocache", "config", *arguments, **variables)


def given(**found: Any) -> Settings:
    return Settings({name.replace("__", "."): Found(value, "here") for name, value in found.items()}, None)


def default_map(**found: Any) -> dict[str, Any]:
    return defaults(typer.main.get_command(app), given(**found))


def test_a_setting_is_the_default_of_the_options_of_its_table() -> None:
    found = default_map(
        nameserver="a:1",
        secret_file="/s",
        node__eviction="lru",
        name_server__port=1,
        name_server__host="h",
        client__timeout=3,
    )
    assert found["nodes"]["eviction"] == "lru"
    assert found["nameserver"] == {"secret_file": "/s", "port": 1, "host": "h"}
    assert found["nodes"]["remove"] == {"nameserver": "a:1", "secret_file": "/s"}
    assert found["get"] == {"nameserver": "a:1", "secret_file": "/s", "timeout": 3}
    assert found["status"] == {"nameserver": "a:1", "secret_file": "/s"}, (
        "commands that look have a timeout of their own"
    )
    assert "demo" not in found
    assert found["secret"] == {"secret_file": "/s"}, "its steps take the file from it"


def test_options_whose_names_differ_have_their_setting() -> None:
    assert set(_OPTIONS.values()) <= set(settings())
    assert default_map(node__max_value_bytes=5, node__open=True)["nodes"] == {
        "max_value": 5,
        "open_": True,
        "remove": {},
    }
    assert default_map(client__ttl_seconds=5)["set"] == {"ttl": 5}
    assert default_map(no_tls=True)["nodes"]["no_tls"] is True


def test_an_option_of_tls_replaces_what_the_settings_say_to_the_contrary() -> None:
    encrypted, plain = given(tls__ca="/ca", tls__cert="/cert"), given(no_tls=True)
    assert set(_as_options_have_it(encrypted, ["get", "--no-tls", "key"]).found) == set()
    assert set(_as_options_have_it(encrypted, ["get", "--tls-ca=/x", "key"]).found) == {"tls.ca", "tls.cert"}
    assert set(_as_options_have_it(plain, ["get", "--tls-ca", "/x", "key"]).found) == set()
    assert set(_as_options_have_it(plain, ["get", "key"]).found) == {"no_tls"}
    assert _as_options_have_it(encrypted, ["get", "--", "--no-tls"]) is encrypted


def test_every_option_of_every_command_has_a_setting_or_is_known_to_have_none() -> None:
    """An option that is added must be named like its setting, or be in `_OPTIONS`."""
    without = {"nodes": {"nodes", "with_nameserver", "name"}, "nameserver": set()}
    everything = Settings({name: Found("x", "here") for name in settings()}, None)
    program: Any = typer.main.get_command(app)
    for command, left_out in without.items():
        options = {
            one.name for one in program.commands[command].params if one.param_type_name == "option"
        } - {"help"}
        assert options - set(defaults(program, everything)[command]) == left_out


def test_the_table_says_what_is_in_force_and_where_it_comes_from(file: Path) -> None:
    told = config(PYROCACHE_CLIENT_TRANSPORT="tcp", PYROCACHE_NODE_OPEN="1")
    assert (told.status, told.err) == (0, "")
    first, *lines = told.out.splitlines()
    assert first == f"Settings file: {file}"
    rows = {name: (value, source) for name, value, source in (line.split() for line in lines)}
    assert list(rows) == list(settings())
    assert rows["nameserver"] == ("127.0.0.1:1001", f"{file}:1")
    assert rows["node.max_memory"] == (str(64 * 2**20), f"{file}:4")
    assert rows["node.open"] == ("true", "$PYROCACHE_NODE_OPEN")
    assert rows["client.transport"] == ("tcp", "$PYROCACHE_CLIENT_TRANSPORT")
    assert rows["client.allowed_classes"] == ("a.B,c.D", f"{file}:9")
    assert rows["client.on_error"] == ("raise", "default")
    assert rows["tls.ca"] == ("-", "default")


def test_some_settings_or_tables_can_be_named(file: Path) -> None:
    assert config("client.timeout").out.splitlines()[1:] == [f"client.timeout  3  {file}:8"]
    named = config("tls", "nameserver").out.splitlines()[1:]
    assert [line.split()[0] for line in named] == [
        "nameserver",
        "tls.ca",
        "tls.cert",
        "tls.key",
        "tls.require_client_cert",
    ]
    unknown = config("node.max_memry")
    assert (unknown.status, unknown.sentence) == (
        1,
        "There is no setting 'node.max_memry'. Did you mean node.max_memory?",
    )


def test_json(directory: Path) -> None:
    (directory / "pyproject.toml").write_text(
        "[tool.pyrocache]\nclient = { timeout = 3 }\n[tool.pyrocache.node]\nport = 5\n"
    )
    shown = json.loads(config("client.timeout", "node.port", "tls.ca", "--json").out)
    path = str(directory / "pyproject.toml")
    assert shown == {
        "file": path,
        "settings": {
            "tls.ca": {"value": None, "from": "default"},
            "node.port": {"value": 5, "from": f"{path}:4"},
            "client.timeout": {"value": 3, "from": path},
        },
    }
    (directory / "pyproject.toml").unlink()
    assert json.loads(config("no_tls", "-j").out)["file"] is None


def test_without_a_file_it_says_so() -> None:
    assert config("no_tls").out == "No settings file was read.\nno_tls  false  default\n"


def test_an_unknown_variable_is_a_warning() -> None:
    told = config("no_tls", PYROCACHE_NODE_MAX_MEMRY="1", PYROCACHE_CHILD_OF="1", PYROCACHE_CONFIG=os.devnull)
    assert told.status == 0
    assert (
        told.err
        == "Warning: $PYROCACHE_NODE_MAX_MEMRY is not a setting. Did you mean PYROCACHE_NODE_MAX_MEMORY?\n"
    )


def test_a_setting_that_is_not_valid_is_an_error_of_every_command_except_help(file: Path) -> None:
    file.write_text("[node]\nmax_memory = '12 lots'\n")
    said = f"{file}: [node] max_memory: '12 lots' is not a valid size. Examples: 256MiB, 1GiB."
    for command in (("config",), ("get", "key"), ("nodes",)):
        told = call("pyrocache", *command)
        assert (told.status, told.sentence) == (1, said)
    told = call("run_nodes.py")
    assert (told.status, told.sentence) == (1, said)
    assert call("pyrocache", "--help").status == 0


def test_a_command_reports_every_error_whatever_the_settings_of_clients_say(file: Path) -> None:
    address = free_address()
    file.write_text(f"nameserver = '{address}'\n[client]\non_error = 'miss'\n")
    told = call("pyrocache", "get", "key")
    assert told.status == 1
    assert "No name server was found" in told.sentence
    assert address in told.sentence


def test_a_script_has_the_settings_of_its_command(file: Path) -> None:
    file.write_text(
        "[node]\nmax_memory = '77MiB'\n"
    )  # its help is enough: `nodes` would handle signals in this process
    assert f"[default: {77 * 2**20}]" in " ".join(call("run_nodes.py", "--help").out.split())


def test_tls_files_that_do_not_fit_are_an_error(file: Path) -> None:
    file.write_text("[tls]\ncert = 'cert.pem'\n")
    assert config().sentence.startswith(f"{file}: [tls]: A certificate needs its private key")


@as_root
def test_a_foreign_file_is_an_error_unless_it_is_named(file: Path) -> None:
    os.chown(file, A_USER, A_USER)
    assert "so it is not used: name it with --config" in config().sentence
    assert call("pyrocache", "--config", "pyrocache.toml", "config", "client.timeout").status == 0


def test_a_file_that_is_named_with_an_option_or_a_variable(file: Path, directory: Path) -> None:
    other = directory / "other.toml"
    other.write_text("[client]\ntimeout = 7\n")
    for told in (
        call("pyrocache", "--config", "other.toml", "config", "client.timeout"),
        config("client.timeout", PYROCACHE_CONFIG="other.toml"),
        call("pyrocache", "--config", str(other), "config", "client.timeout", PYROCACHE_CONFIG=str(file)),
    ):
        assert told.out.splitlines() == [f"Settings file: {other}", f"client.timeout  7  {other}:2"]
    assert call("pyrocache", "--config", "", "config").sentence == "--config names no file."


def test_help_shows_the_default_in_force(file: Path) -> None:
    assert "[default: 3]" in " ".join(call("pyrocache", "get", "--help").out.split())
    assert "[default: 5.0]" in " ".join(
        call("pyrocache", "--config", os.devnull, "get", "--help").out.split()
    )


def test_keys_are_never_printed(directory: Path) -> None:
    secret = directory / "secret"
    secret.write_text("5e" * 32 + "\n")
    secret.chmod(0o600)
    told = config(PYROCACHE_SECRET_FILE="secret", PYROCACHE_CLIENT_SIGNING_KEY_FILE="secret")
    assert told.status == 0
    assert str(secret) in told.out
    assert "5e5e" not in told.out
