"""The files in examples/deployment: their command lines, settings and limits are what this version has."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pyrocache.cli.commands import app
from pyrocache.config import NodeConfig, parse_size
from pyrocache.settings import file
from pyrocache.settings.table import by_variable, settings

FILES = Path(__file__).resolve().parents[2] / "examples" / "deployment"
MIB = 2**20

pytestmark = pytest.mark.skipif(not FILES.exists(), reason="the tests run without the project around them")

UNITS = ["pyrocache-nameserver.service", "pyrocache-nodes.service"]


def unit(name: str) -> dict[str, str]:
    """The settings of a unit; of those that are given twice, the last."""
    lines = (FILES / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def documents(name: str) -> list[Any]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((FILES / name).read_text(encoding="utf-8")))


def manifest(kind: str, name: str) -> Any:
    (found,) = (
        one for one in documents("kubernetes.yaml") if one["kind"] == kind and one["metadata"]["name"] == name
    )
    return found


def container(name: str) -> Any:
    (only,) = manifest("StatefulSet", name)["spec"]["template"]["spec"]["containers"]
    return only


def services() -> dict[str, Any]:
    (compose,) = documents("compose.yaml")
    found: dict[str, Any] = compose["services"]
    return found


def parsed(words: list[str]) -> Any:
    """What a command line means. Fails if it is none."""
    program: Any = typer.main.get_command(app)
    if words[0] == "--config":
        words = words[2:]
    return program.commands[words[0]].make_context(words[0], words[1:]).params


def in_shell(command: list[str], **variables: str) -> list[str]:
    """The words of a command that a shell is to become."""
    assert command[:2] == ["sh", "-c"]
    (line,) = command[2:]
    shown = subprocess.run(
        ["sh", "-c", line.replace("exec pyrocache", 'printf "%s\\n"')],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.splitlines()


def needed(nodes: int, max_memory: str | int, *, beside: int = 64 * MIB) -> float:
    """The memory that docs/deployment.md says nodes of one command need."""
    return nodes * (1.3 * parse_size(max_memory) + 64 * MIB) + beside


def test_settings_are_valid() -> None:
    content = file.read(str(FILES / "pyrocache.toml"), explicit=True)
    assert content is not None
    for table, values in content.values.items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            setting = settings()[f"{table}.{name}".strip(".")]
            setting.check(value, variable=False, directory="/etc/pyrocache")


@pytest.mark.parametrize("name", UNITS)
def test_units_run_commands_that_exist(name: str) -> None:
    program, *words = shlex.split(unit(name)["ExecStart"])
    assert program == "/opt/pyrocache/bin/pyrocache"
    parsed(words)


def test_a_unit_allows_the_memory_that_its_nodes_need() -> None:
    nodes = parsed(shlex.split(unit(UNITS[1])["ExecStart"])[1:])["nodes"]
    content = file.read(str(FILES / "pyrocache.toml"), explicit=True)
    assert content is not None
    limit = parse_size(unit(UNITS[1])["MemoryMax"] + "iB")  # systemd's suffixes are powers of 1024
    assert needed(nodes, content.values["node"]["max_memory"]) <= limit


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_allows_as_many_descriptors_as_connections(name: str) -> None:
    assert int(unit(name)["LimitNOFILE"]) > NodeConfig().max_connections + 1010 * 2


def test_unix_sockets_are_where_other_programs_find_them() -> None:
    nodes = unit(UNITS[1])
    assert nodes["Environment"] == f"TMPDIR=/run/{nodes['RuntimeDirectory']}"
    assert nodes["RuntimeDirectoryMode"] == "0700"


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_units_and_finds_them_hardened(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for one in UNITS:  # with a program that exists here
        text = (FILES / one).read_text(encoding="utf-8")
        (tmp_path / one).write_text(text.replace("/opt/pyrocache/bin/pyrocache", "/bin/true"))
    verified = _systemd("verify", "--man=no", str(tmp_path / name))
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = _systemd("security", "--offline=yes", "--threshold=20", str(tmp_path / name))  # 2.0 of 10
    assert judged.returncode == 0, judged.stdout.splitlines()[-1]


def _systemd(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words], capture_output=True, text=True, timeout=20, check=False
    )


def test_compose_runs_commands_that_exist() -> None:
    found = services()
    for name in ("nameserver", "node1", "node2"):
        given = parsed(found[name]["command"])
        assert given["advertise"] == name, "others find it by the name of the service"
    for name in ("node1", "node2"):
        test = found[name]["healthcheck"]["test"]
        assert test[:2] == ["CMD", "pyrocache"]
        assert parsed(test[2:])["nodes"] == [parsed(found[name]["command"])["name"]]
    compile(found["worker"]["command"][0].replace("$$", "$"), "compose.yaml", "exec")
    assert found["nameserver"]["environment"]["PYROCACHE_NAMESERVER"] == "nameserver:9090"


def test_compose_allows_the_memory_that_its_nodes_need() -> None:
    for name in ("node1", "node2"):
        given = parsed(services()[name]["command"])
        limit = parse_size(services()[name]["mem_limit"] + "ib")
        assert needed(given["nodes"], given["max_memory"], beside=128 * MIB) <= limit


def test_a_pod_keeps_the_name_of_its_node() -> None:
    node = container("cache")
    for pod, name in (("cache-0", "cache.node.1"), ("cache-11", "cache.node.12")):
        variables = {"POD_NAME": pod, "POD_IP": "192.0.2.7"}
        given = parsed(in_shell([*node["command"], *node["args"]], **variables))
        assert (given["name"], given["nodes"], given["host"]) == (name, 1, "192.0.2.7")
        assert given["advertise"] == f"{pod}.cache.default.svc"
        assert given["port"] == node["ports"][0]["containerPort"]
        probe = in_shell(node["readinessProbe"]["exec"]["command"], **variables)
        assert parsed(probe)["nodes"] == [name]
    assert "livenessProbe" not in node


def test_the_pod_of_the_name_server_advertises_its_service() -> None:
    nameserver = container("pyrocache-nameserver")
    given = parsed([word.replace("$(POD_IP)", "192.0.2.7") for word in nameserver["args"]])
    data = manifest("ConfigMap", "pyrocache")["data"]
    assert data["PYROCACHE_NAMESERVER"] == f"{given['advertise']}:{given['port']}"
    assert given["advertise"].split(".")[0] == manifest("Service", "pyrocache")["metadata"]["name"]


def test_kubernetes_allows_the_memory_that_a_node_needs() -> None:
    node = container("cache")
    given = parsed(in_shell([*node["command"], *node["args"]], POD_NAME="cache-0", POD_IP="192.0.2.7"))
    limit = parse_size(node["resources"]["limits"]["memory"] + "B")
    assert needed(1, given["max_memory"], beside=128 * MIB) <= limit


@pytest.mark.parametrize("name", ["cache", "pyrocache-nameserver"])
def test_pods_can_read_the_secret_and_nobody_else_can(name: str) -> None:
    spec = manifest("StatefulSet", name)["spec"]["template"]["spec"]
    (volume,) = (volume["projected"] for volume in spec["volumes"] if "projected" in volume)
    assert volume["defaultMode"] == 0o440
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"] != 0
    assert spec["enableServiceLinks"] is False, "or $PYROCACHE_PORT is something else"


def test_variables_are_settings() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in _all_files())
    own = {"PYROCACHE_UID", "PYROCACHE_GID", "PYROCACHE_PORT"}
    assert set(re.findall(r"PYROCACHE_[A-Z_]+", text)) - own <= set(by_variable())


def _all_files() -> Iterator[Path]:
    yield from FILES.iterdir()
    yield FILES.parents[1] / "docs" / "deployment.md"
