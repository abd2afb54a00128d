"""The shape of the package: what it exports, and what never meets."""

from __future__ import annotations

import doctest
import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import pyrocache
from pyrocache import errors


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def test_the_public_names() -> None:
    others = [
        "AsyncLock",
        "AsyncPyroCacheClient",
        "DEFAULT_TTL",
        "Entry",
        "EntryInfo",
        "HotKey",
        "LocalCluster",
        "Lock",
        "Member",
        "PyroCacheClient",
        "TLS",
    ]
    figures = ["ClientStats", "LatencyHistogram", "NamespaceStats", "NodeStats", "Stats", "Totals"]
    assert sorted(pyrocache.__all__) == sorted([*errors.__all__, *others, *figures, "stock_handshake"])
    assert repr(pyrocache.DEFAULT_TTL) == "DEFAULT_TTL"
    for name in set(pyrocache.__all__) - {"DEFAULT_TTL"}:
        assert getattr(pyrocache, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Cache'"):
        pyrocache.Cache  # noqa: B018


def test_every_error_is_in_the_tree() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.PyroCacheError)
        assert name in (errors.__doc__ or "")


def test_a_value_that_does_not_pickle_is_an_error_of_pickle() -> None:
    assert issubclass(errors.SerializationError, pickle.PickleError)
    assert pyrocache.CorruptValue is errors.CorruptValue
    assert type(pickle.loads(pickle.dumps(errors.CorruptValue("why")))) is errors.CorruptValue
    assert {"CorruptValue", "SerializationError"} <= set(dir(errors))
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        errors.Missing  # noqa: B018


def test_a_node_never_reaches_the_client_or_pickle_of_ours() -> None:
    loaded = modules_after("import pyrocache.node.process")
    assert "pyrocache.node.process" in loaded
    assert not [name for name in loaded if name.startswith("pyrocache.client")]
    assert not loaded & {"pickle", "_pickle", "pyrocache.pickle_errors"}


def test_a_client_never_reaches_the_node() -> None:
    loaded = modules_after("import pyrocache.client.client")
    assert not [name for name in loaded if name.startswith("pyrocache.node")]


@pytest.mark.parametrize("module", ["pyrocache.node.process", "pyrocache.nameserver.process"])
def test_a_server_never_reads_settings(module: str) -> None:
    assert "pyrocache.settings" not in modules_after(f"import {module}")


def test_a_client_without_settings_imports_nothing_to_read_them(tmp_path: Path) -> None:
    statement = f"import os; os.chdir({str(tmp_path)!r}); import pyrocache; pyrocache.PyroCacheClient()"
    loaded = modules_after(statement)
    assert "pyrocache.settings" in loaded
    assert not loaded & {
        "tomllib",
        "pyrocache.settings.file",
        "pyrocache.settings.table",
        "pyrocache.settings.reading",
    }


def test_importing_the_package_imports_next_to_nothing() -> None:
    loaded = modules_after("import pyrocache")
    assert not loaded & {"Pyro5", "msgpack", "xxhash", "typer", "rich", "pickle"}


RARELY_NEEDED = {
    "asyncio",
    "concurrent.futures",
    "decimal",
    "difflib",
    "encodings.idna",
    "fractions",
    "hashlib",
    "hmac",
    "ipaddress",
    "json",
    "logging",
    "multiprocessing",
    "numbers",
    "pathlib",
    "platform",
    "shlex",
    "ssl",
    "subprocess",
    "tempfile",
    "tomllib",
    "traceback",
    "urllib",
    "uuid",
    "Pyro5",
    "pyrocache.aio",
    "pyrocache.cli",
    "pyrocache.client.features.compute",
    "pyrocache.client.features.entries",
    "pyrocache.client.features.locks",
    "pyrocache.client.features.memoize",
    "pyrocache.client.keys.content",
    "pyrocache.client.stats",
    "pyrocache.local",
    "pyrocache.nameserver",
    "pyrocache.node",
    "pyrocache.runtime.tls",
    "pyrocache.server",
    "pyrocache.server_config",
}


def test_importing_the_client_imports_nothing_that_is_rarely_needed() -> None:
    before = modules_after("pass")  # what an environment's .pth files import
    assert not (modules_after("from pyrocache import PyroCacheClient") - before) & RARELY_NEEDED


@pytest.mark.parametrize(
    ("settings", "imported"),
    [
        ("authenticate=False", {"ipaddress", "logging"}),  # it is warned of
        ("", {"hashlib", "hmac"}),
        ("serializer='json'", {"hashlib", "hmac", "json", "json.decoder"}),
    ],
)
def test_a_new_client_imports_what_its_calls_need(settings: str, imported: set[str]) -> None:
    # Not at the first call, which would take longer.
    loaded = modules_after(f"import pyrocache; pyrocache.PyroCacheClient({settings})")
    assert imported <= loaded
    warned = {"logging", "traceback"}  # where there is no place for a secret file, for example
    assert not loaded & (RARELY_NEEDED - imported - warned - modules_after("pass"))


def test_the_settings_of_servers_are_also_names_of_config() -> None:
    from pyrocache import config, server_config

    assert config.NodeConfig is server_config.NodeConfig
    assert config.NameServerConfig is server_config.NameServerConfig
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        config.Missing  # noqa: B018


@pytest.mark.parametrize("module", ["pyrocache.testing", "pyrocache.client.client"])
def test_docstring_examples(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0
