"""`pyrocache doctor` and real clusters: one that is well, and those with one thing wrong."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from pyrocache import LocalCluster
from pyrocache.config import TLS
from pyrocache.runtime.child_process import start_nameserver, start_node
from tests.support.certificates import Certificates
from tests.support.commands import Outcome, call
from tests.support.nodes import private_cluster
from tests.support.processes import free_address


def _doctor(nameserver: str, *options: str, **variables: str) -> Outcome:
    done = call("pyrocache", "doctor", "--nameserver", nameserver, *options, **variables)
    assert done.err == ""
    return done


def _lines(done: Outcome, level: str) -> list[str]:
    return [line.removeprefix(level).strip() for line in done.out.splitlines() if line.startswith(level)]


def _advice(done: Outcome, what: str) -> str:
    """Return the line below the one about ``what``."""
    lines = done.out.splitlines()
    (index,) = (number for number, line in enumerate(lines) if what in line)
    return lines[index + 1].strip()


def test_a_cluster_that_is_well(shared_cluster: LocalCluster) -> None:
    done = _doctor(shared_cluster.nameserver)
    assert done.status == 0, done.out
    assert _lines(done, "problem") == []
    well = _lines(done, "ok")
    assert any("(--nameserver) answers in" in line and "proves the secret" in line for line in well)
    for node in shared_cluster.nodes:
        (line,) = (line for line in well if line.startswith(node.name))
        assert f"{node.address} serves" in line
        assert "over TCP and" in line
        assert "over its Unix socket" in line
    assert any(line.startswith("view: 3 nodes with view ") for line in well)
    assert any(line.startswith("memory: 3 nodes here may take ") for line in well)


def test_findings_as_json(shared_cluster: LocalCluster) -> None:
    done = call("pyrocache", "doctor", "--json", PYROCACHE_NAMESERVER=shared_cluster.nameserver)
    found = json.loads(done.out)
    assert {tuple(finding) for finding in found} == {("level", "subject", "what", "advice")}
    assert {finding["level"] for finding in found} <= {"ok", "note"}
    assert any("($PYROCACHE_NAMESERVER)" in finding["what"] for finding in found)


def test_a_dead_node_and_one_that_hangs() -> None:
    with private_cluster(nodes=3) as cluster:
        cluster.kill(0)
        cluster.pause(1)
        done = _doctor(cluster.nameserver, "--timeout", "0.5")
        dead, hanging, alive = cluster.nodes
        assert done.status == 1
        assert _advice(done, f"{dead.name}: {dead.address}: nothing listens there").endswith(
            f"pyrocache nodes remove {dead.name} --nameserver {cluster.nameserver}"
        )
        assert "Is its host up" in _advice(done, f"{hanging.address}: it did not answer within 0.5 s")
        assert any(alive.address in line for line in _lines(done, "ok"))


def test_another_secret(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    call("pyrocache", "secret", XDG_CONFIG_HOME=str(tmp_path))
    done = _doctor(shared_cluster.nameserver, XDG_CONFIG_HOME=str(tmp_path))
    assert done.status == 1
    (problem,) = _lines(done, "problem")
    assert "this server has another secret" in problem
    assert "Give all hosts the same secret file" in done.out


def test_no_secret(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    before = _refused(shared_cluster)
    done = _doctor(shared_cluster.nameserver, XDG_CONFIG_HOME=str(tmp_path), TMPDIR=str(tmp_path))
    assert done.status == 1
    assert _lines(done, "problem") == ["secret: This user has no secret file."]
    assert list(tmp_path.iterdir()) == []  # it makes none
    assert _refused(shared_cluster) == before  # nor does it ask nodes that would refuse, and log it


def _refused(cluster: LocalCluster) -> int:
    with cluster.client() as client:
        return sum(node.handshakes_refused for node in client.stats().nodes.values())


def test_no_name_server() -> None:
    address = free_address()
    done = _doctor(address)
    assert done.status == 1
    port = address.rpartition(":")[2]
    advice = f"Start one with: pyrocache nameserver --host 127.0.0.1 --port {port}"
    assert _advice(done, f"name server: {address} (--nameserver): nothing listens there") == advice


def test_a_host_name_that_does_not_exist() -> None:
    done = _doctor("nowhere.invalid:9090")
    assert done.status == 1
    assert "that host name cannot be resolved" in done.out


def test_a_name_server_that_hangs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = _doctor(f"127.0.0.1:{listener.getsockname()[1]}", "--timeout", "0.3")
    assert done.status == 1
    assert "did not answer in time" in done.out


def test_a_certificate_that_has_ended(shared_cluster: LocalCluster, certificates: Certificates) -> None:
    done = _doctor(shared_cluster.nameserver, *_options(certificates.expired()))
    assert done.status == 1
    assert "pyrocache certificates DIR --renew" in _advice(done, "certificate has expired")


@contextmanager
def _cluster(tls: TLS | None) -> Iterator[str]:
    """Run a name server and a node with these settings; yield the address of the name server."""
    settings = asdict(tls) if tls else None
    with ExitStack() as stack:
        nameserver = start_nameserver(quiet=True, tls=settings)
        stack.callback(nameserver.kill)
        address = nameserver.wait_until_ready()["address"]
        node = start_node(
            {"nameserver": address, "new_cluster": True, "tls": settings, "max_memory": 2**26}, quiet=True
        )
        stack.callback(node.kill)
        node.wait_until_ready()
        yield address


def test_a_cluster_with_tls(certificates: Certificates) -> None:
    with _cluster(certificates.expired("soon.example", days_ago=-10.5)) as address:
        well = _doctor(address, *_options(certificates.client()))
        assert well.status == 0
        assert sum("10 days from now" in line for line in _lines(well, "note")) == 2  # name server and node
        plain = _doctor(address)
        assert plain.status == 1
        assert "--tls-ca" in _advice(plain, "this server speaks TLS only")


def test_a_server_whose_certificate_has_ended(certificates: Certificates) -> None:
    nameserver = start_nameserver(quiet=True, tls=asdict(certificates.expired()))
    try:
        address = nameserver.wait_until_ready()["address"]
        done = _doctor(address, *_options(certificates.client()))
    finally:
        nameserver.kill()
    assert done.status == 1
    assert "send SIGHUP" in _advice(done, "certificate has expired")


def test_a_cluster_without_tls(certificates: Certificates, shared_cluster: LocalCluster) -> None:
    done = _doctor(shared_cluster.nameserver, *_options(certificates.client()))
    assert done.status == 1
    assert "leave tls= and --tls-ca out" in _advice(done, "it does not speak TLS")


def _options(tls: TLS) -> list[str]:
    return [f"--tls-{file}={getattr(tls, file)}" for file in ("ca", "cert", "key") if getattr(tls, file)]


@pytest.fixture(autouse=True)
def _keep_logging() -> Iterator[None]:
    """Remove the handler that the command adds, which later tests of this process would have."""
    logger = logging.getLogger("pyrocache")
    before = list(logger.handlers)
    yield
    logger.handlers[:] = before
