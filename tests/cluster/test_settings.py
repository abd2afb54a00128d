"""Name server, nodes, commands and clients that have their settings from one file, and from variables."""

from __future__ import annotations

import json
import os
import socket
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyrocache import TLS, LocalCluster, PyroCacheClient
from tests.support.background import background
from tests.support.certificates import Certificates
from tests.support.commands import run
from tests.support.forked import A_USER, as_root
from tests.support.processes import free_port

CLI = ("-m", "pyrocache")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Path]:
    """A directory with a settings file, and a cluster with TLS that was started there, without an option."""
    project = tmp_path_factory.mktemp("project")
    (project / "certificates").symlink_to(Path(certificates.server().ca or "").parent)
    port = free_port()
    (project / "pyrocache.toml").write_text(f"""
        nameserver = "127.0.0.1:{port}"
        secret_file = "secrets/of this project"
        [tls]
        ca = "certificates/ca.pem"
        cert = "certificates/cert.pem"
        key = "certificates/key.pem"
        [name_server]
        port = {port}
        storage = "sql:names.db"
        [node]
        max_memory = "32MiB"
        lease_seconds = 1
        heartbeat_seconds = 0.1
        max_unproven = 8
        [client]
        ttl_seconds = 600
        serializer = "json"
    """)
    made = run(*CLI, "secret", cwd=project)
    assert made.out.splitlines() == [f"{project}/secrets/of this project", "1 key"]
    inner = project / "inner"
    inner.mkdir()
    nameserver = background(project / "out", *CLI, "nameserver", ready="Name server ready", cwd=project)
    with nameserver, background(project / "out", *CLI, "nodes", "-n", "1", ready="ready", cwd=inner):
        yield project


def nameserver_of(project: Path) -> str:
    return str(tomllib.loads((project / "pyrocache.toml").read_text())["nameserver"])


def test_a_file_alone_makes_a_cluster(project: Path) -> None:
    status = run(*CLI, "status", "--json", cwd=project)
    (node,) = json.loads(status.out)["nodes"]
    assert node["max_bytes"] == 32 * 2**20
    assert (project / "names.db").exists()
    assert run(*CLI, "ping", cwd=project / "inner").out == "1 node answers.\n"
    doctor = run(*CLI, "doctor", cwd=project)
    assert f"({project}/pyrocache.toml) answers" in doctor.out


def test_a_script_next_to_the_file_needs_no_argument(project: Path) -> None:
    script = """
from pyrocache import PyroCacheClient
with PyroCacheClient() as cache:
    cache.set("from", ["a", "script"])
    print(cache.get("from"), 500 < cache.ttl("from") <= 600, cache._context.config.serializer)
"""
    told = run("-c", script, cwd=project / "inner")
    assert told.err == ""
    assert told.out == "['a', 'script'] True json\n"


@pytest.mark.full
def test_commands_work_with_entries_as_the_file_says(project: Path) -> None:
    assert run(*CLI, "set", "greeting", "Hello", cwd=project).status == 0
    read = "import pyrocache; print(500 < pyrocache.PyroCacheClient().ttl('greeting') <= 600)"
    assert run("-c", read, cwd=project).out == "True\n"
    assert run(*CLI, "get", "greeting", cwd=project).out == "'Hello'\n"


def test_a_variable_counts_more_than_the_file_and_an_option_more_than_both(
    project: Path, shared_cluster: LocalCluster
) -> None:
    own = os.path.join(os.environ["XDG_CONFIG_HOME"], "pyrocache", "secret")
    elsewhere = {
        "PYROCACHE_NAMESERVER": shared_cluster.nameserver,
        "PYROCACHE_SECRET_FILE": own,
        "PYROCACHE_NO_TLS": "1",
    }
    assert run(*CLI, "ping", cwd=project, **elsewhere).out == "3 nodes answer.\n"
    file = project / "pyrocache.toml"
    back = ("--nameserver", nameserver_of(project), "--secret-file", str(project / "secrets/of this project"))
    back += ("--tls-ca", str(project / "certificates/ca.pem"))
    assert run(*CLI, "ping", *back, cwd=project, **elsewhere).out == "1 node answers.\n"
    assert run(*CLI, "--config", str(file), "ping").out == "1 node answers.\n"


def test_a_setting_without_an_option_reaches_the_nodes(project: Path) -> None:
    """The file has a limit of 8 connections that have proved nothing. One more closes the oldest."""
    tls = TLS(ca=str(project / "certificates/ca.pem"))
    secret_file = project / "secrets/of this project"
    with PyroCacheClient(nameserver_of(project), secret_file=secret_file, tls=tls) as cache:
        (node,) = cache.nodes()
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection((node.host, node.port))) for _ in range(9)]
        idle[0].settimeout(3.0)  # without the setting, it would be closed after 5 seconds
        assert idle[0].recv(1) == b""


def test_a_name_server_that_nodes_start_has_its_settings(tmp_path: Path) -> None:
    variables = {
        "PYROCACHE_NAMESERVER": f"127.0.0.1:{free_port()}",
        "PYROCACHE_NAME_SERVER_STORAGE": "sql:names.db",
    }
    with background(
        tmp_path / "out", *CLI, "nodes", "-w", "-n", "1", ready="ready", cwd=tmp_path, **variables
    ):
        assert (tmp_path / "names.db").exists()


def test_a_cluster_in_a_program_and_its_clients_read_no_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyrocache.toml").write_text(
        "nameserver = '127.0.0.1:1'\n[tls]\nca = 'nowhere'\n[node]\nmax_memory = '64KiB'\n[client]\nttl_seconds = 5\n"
    )
    monkeypatch.chdir(tmp_path)
    with LocalCluster(nodes=1) as cluster:
        cache = cluster.client()
        cache.set("key", "value")
        assert cache.ttl("key") == float("inf")
        assert cache.stats().nodes["cache.node.1"].max_bytes == 2**30


@as_root
def test_a_foreign_file_does_not_decide_where_a_client_connects(
    tmp_path: Path, shared_cluster: LocalCluster
) -> None:
    foreign = tmp_path / "pyrocache.toml"
    foreign.write_text(f"nameserver = '{shared_cluster.nameserver}'\n")
    os.chown(foreign, A_USER, A_USER)
    script = "import pyrocache; pyrocache.PyroCacheClient().ping()"
    told = run("-c", script, cwd=tmp_path)
    assert told.status == 1
    assert told.err.splitlines()[-1].startswith(
        f"pyrocache.errors.ConfigurationError: The settings file {foreign} belongs to the user {A_USER}"
    )
    assert run("-c", script, cwd=tmp_path, PYROCACHE_CONFIG=str(foreign)).status == 0


def test_a_client_keeps_its_settings_in_another_directory(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    with PyroCacheClient() as cache:
        monkeypatch.chdir(tmp_path)
        cache.set("kept", 1)
        assert cache.get("kept") == 1
