"""The values of settings in files and variables: their kinds, errors, paths and precedence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pyrocache import TLS, ConfigurationError
from pyrocache.settings import Settings
from pyrocache.settings.file import Content
from pyrocache.settings.reading import settings_of

FILE = "/srv/app/pyrocache.toml"


def read(values: dict[str, Any] | None = None, variables: Mapping[str, str] | None = None) -> Settings:
    return settings_of(None if values is None else Content(FILE, "", values), variables or {})


def problem(values: dict[str, Any] | None = None, variables: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as raised:
        read(values, variables)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_values_of_every_kind_in_a_file_and_in_variables_are_the_same() -> None:
    in_file = {
        "nameserver": "cache:9090",
        "node": {"max_memory": "64MiB", "max_value_bytes": 0, "weight": 2, "workers": 3, "open": True},
        "name_server": {"host": "0.0.0.0", "port": 0, "storage": "memory"},
        "client": {
            "ttl_seconds": 1.5,
            "compress_above": 0,
            "allowed_classes": ["a.B", "c.D"],
            "on_error": "miss",
        },
        "tls": {"require_client_cert": True},
    }
    variables = {
        "PYROCACHE_NAMESERVER": "cache:9090",
        "PYROCACHE_NODE_MAX_MEMORY": "64MiB",
        "PYROCACHE_NODE_MAX_VALUE_BYTES": "0",
        "PYROCACHE_NODE_WEIGHT": "2",
        "PYROCACHE_NODE_WORKERS": " 3",
        "PYROCACHE_NODE_OPEN": "yes",
        "PYROCACHE_NAME_SERVER_HOST": "0.0.0.0",
        "PYROCACHE_NAME_SERVER_PORT": "0",
        "PYROCACHE_NAME_SERVER_STORAGE": "memory",
        "PYROCACHE_CLIENT_TTL_SECONDS": "1.5",
        "PYROCACHE_CLIENT_COMPRESS_ABOVE": "0",
        "PYROCACHE_CLIENT_ALLOWED_CLASSES": "a.B, c.D",
        "PYROCACHE_CLIENT_ON_ERROR": "miss",
        "PYROCACHE_TLS_REQUIRE_CLIENT_CERT": "1",
    }
    one, other = read(in_file), read(None, variables)
    assert {name: found.value for name, found in one.found.items()} == {
        name: found.value for name, found in other.found.items()
    }
    assert one.of("node") == {
        "max_memory": 2**26,
        "max_value_bytes": 0,
        "weight": 2,
        "workers": 3,
        "open": True,
    }
    assert one.of("client")["allowed_classes"] == ("a.B", "c.D")
    assert {found.source for found in one.found.values()} == {FILE}
    assert other.found["node.open"].source == "$PYROCACHE_NODE_OPEN"
    assert (one.file, other.file) == (FILE, None)


def test_values_are_checked_without_those_that_other_sources_may_have() -> None:
    assert (
        read({"node": {"max_value_bytes": "1GiB", "host": "0.0.0.0"}}).of("node")["max_value_bytes"] == 2**30
    )


def test_a_variable_counts_more_than_the_file() -> None:
    given = read({"client": {"timeout": 1, "transport": "tcp"}}, {"PYROCACHE_CLIENT_TIMEOUT": "2"})
    assert given.of("client") == {"timeout": 2.0, "transport": "tcp"}
    assert given.found["client.timeout"].source == "$PYROCACHE_CLIENT_TIMEOUT"


def test_paths_in_a_file_are_relative_to_it_and_those_in_variables_to_the_working_directory(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    in_file = read(
        {
            "secret_file": "secret",
            "tls": {"ca": "../ca.pem", "cert": "~/cert.pem", "key": "/etc/key.pem"},
            "client": {"signing_key_file": "keys/signing"},
            "name_server": {"storage": "sql:names.db"},
        }
    )
    assert in_file.get("secret_file") == "/srv/app/secret"
    assert in_file.tls == TLS(ca="/srv/ca.pem", cert="/home/me/cert.pem", key="/etc/key.pem")
    assert in_file.get("client.signing_key_file") == "/srv/app/keys/signing"
    assert in_file.get("name_server.storage") == "sql:/srv/app/names.db"
    assert read(None, {"PYROCACHE_SECRET_FILE": "secret"}).get("secret_file") == f"{tmp_path}/secret"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"node": {"max_memory": "12 lots"}},
            "[node] max_memory: '12 lots' is not a valid size. Examples: 256MiB, 1GiB.",
        ),
        ({"node": {"max_memory": 1.5}}, "[node] max_memory: It must be a size like 256MiB, not 1.5."),
        ({"node": {"workers": "3"}}, "[node] workers: It must be a whole number, not '3'."),
        ({"node": {"workers": True}}, "[node] workers: It must be a whole number, not true."),
        ({"node": {"workers": 0}}, "[node] workers: workers must be a whole number, at least 1, not 0."),
        ({"node": {"weight": 1000}}, "[node] weight: A weight must be a number from 0.01 to 100, not 1000."),
        (
            {"node": {"drain_seconds": -1}},
            "[node] drain_seconds: drain_seconds must be a number of seconds from 0 to 1000000, not -1.",
        ),
        ({"node": {"open": "yes"}}, "[node] open: It must be true or false, not 'yes'."),
        ({"node": {"host": "no host"}}, "[node] host: 'no host' is not a valid host name or address."),
        (
            {"name_server": {"port": 70000}},
            "[name_server] port: A port must be a number from 0 to 65535, not 70000.",
        ),
        ({"client": {"timeout": "5"}}, "[client] timeout: It must be a number, not '5'."),
        (
            {"client": {"ttl_seconds": 0}},
            "[client] ttl_seconds: ttl_seconds must be above 0 (or None for no expiry), not 0.",
        ),
        ({"client": {"on_error": 1}}, "[client] on_error: It must be a text, not 1."),
        ({"client": {"on_error": ""}}, "[client] on_error: on_error must be 'raise' or 'miss', not ''."),
        ({"client": {"signing_key_file": ""}}, "[client] signing_key_file: It must be a path, not ''."),
        (
            {"client": {"allowed_classes": "a.B"}},
            "[client] allowed_classes: It must be a list of texts, not 'a.B'.",
        ),
        ({"nameserver": "a:b:c"}, "nameserver: 'a:b:c' is not a valid address. Example: 127.0.0.1:9090."),
        ({"no_tls": 1}, "no_tls: It must be true or false, not 1."),
        ({"node": 1}, "node: It must be a table."),
        ({"node": {"max_memry": 1}}, "[node] max_memry: There is no such setting. Did you mean max_memory?"),
        ({"nodes": {}}, "nodes: There is no such setting. Did you mean node?"),
        ({"max_memory": 1}, "max_memory: There is no such setting. It belongs in [node]."),
        (
            {"client": {"nameserver": "a"}},
            "[client] nameserver: There is no such setting. It belongs at the top level.",
        ),
        ({"host": "a"}, "host: There is no such setting. It belongs in [name_server] or in [node]."),
        ({"node.workers": 1}, "node.workers: There is no such setting."),
        ({"client": {"namespace": "x"}}, "[client] namespace: There is no such setting."),
        ({"no_tls": True, "tls": {"ca": "x"}}, "no_tls and [tls] contradict each other: remove one of them."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_names_the_file_the_table_and_the_setting(values: dict[str, Any], said: str) -> None:
    assert problem(values) == f"{FILE}: {said}"


def test_an_error_in_a_project_file_has_its_table() -> None:
    content = Content("/x/pyproject.toml", "tool.pyrocache", {"client": {"timeout": 0}, "no_tls": False})
    with pytest.raises(ConfigurationError, match=r"^/x/pyproject.toml: \[tool.pyrocache.client\] timeout: "):
        settings_of(content, {})


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("NODE_MAX_MEMORY", "12 lots", "'12 lots' is not a valid size. Examples: 256MiB, 1GiB."),
        ("NODE_PORT", "tcp://10.0.0.1:90", "It must be a whole number, not 'tcp://10.0.0.1:90'."),
        ("NODE_WORKERS", "9" * 5000, None),
        ("NODE_WEIGHT", "heavy", "It must be a number, not 'heavy'."),
        ("NO_TLS", "perhaps", "It must be 1 or 0, not 'perhaps'."),
        (
            "CLIENT_TIMEOUT",
            "nan",
            "timeout must be a number of seconds above 0 and at most 1000000, not nan.",
        ),
    ],
)
def test_an_error_names_the_variable(variable: str, value: str, said: str | None) -> None:
    told = problem(None, {f"PYROCACHE_{variable}": value})
    assert told.startswith(f"$PYROCACHE_{variable}: ")
    assert said is None or told.endswith(f": {said}")


def test_an_unknown_variable_is_no_error() -> None:
    assert read(None, {"PYROCACHE_NODE_MAX_MEMRY": "1", "PYROCACHE_CHILD_OF": "1"}).found == {}


def test_what_the_environment_says_of_tls_replaces_what_the_file_says_to_the_contrary() -> None:
    encrypted, plain = {"tls": {"ca": "/ca"}}, {"no_tls": True}
    assert read(encrypted).tls == TLS(ca="/ca")
    assert read(plain).tls is False
    assert read(encrypted, {"PYROCACHE_NO_TLS": "1"}).tls is False
    assert set(read(encrypted, {"PYROCACHE_NO_TLS": "1"}).found) == {"no_tls"}, "else both would be options"
    assert read(plain, {"PYROCACHE_TLS_CA": "/other"}).tls == TLS(ca="/other")
    assert read(plain, {"PYROCACHE_NO_TLS": "0"}).tls is None
    assert read({"tls": {"require_client_cert": True}}).tls is None
    assert read({"tls": {"ca": "/ca"}}, {"PYROCACHE_TLS_CA": "/other"}).tls == TLS(ca="/other")
    said = problem(None, {"PYROCACHE_NO_TLS": "1", "PYROCACHE_TLS_CA": "/other"})
    assert said == "$PYROCACHE_NO_TLS and $PYROCACHE_TLS_CA contradict each other: remove one of them."


def test_a_certificate_without_its_key_is_an_error_of_those_who_use_it() -> None:
    with pytest.raises(ConfigurationError, match=rf"^{FILE}: \[tls\]: A certificate needs its private key"):
        _ = read({"tls": {"cert": "/cert"}}).tls
