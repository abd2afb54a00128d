"""Somebody on the path between a client and all servers: what it can read and change, and what ends instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from pyrocache import AuthenticationError, PyroCacheError, TamperedValue
from pyrocache.config import TLS
from tests.support.certificates import new_certificates
from tests.support.deployment import PORT, Deployment, Protection, calling
from tests.support.man_in_the_middle import ManInTheMiddle
from tests.support.network import addresses_of, network
from tests.support.waiting import eventually

SERVER, USER, FRONT, BACK = "server", "user", "front", "back"
TRUE, FALSE = "saturn, the true value", "uranus, the false one."
assert len(TRUE) == len(FALSE)


def exchange(data: bytes) -> bytes:
    """Replace the value by another one of the same length."""
    return data.replace(TRUE.encode(), FALSE.encode())


def spoil(data: bytes) -> bytes:
    """Change one bit, of whatever passes."""
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.fixture(scope="module")
def plain() -> Iterator[Deployment]:
    """Give a cluster without TLS."""
    with deployed(tls=False) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def secure() -> Iterator[Deployment]:
    """Give a cluster with TLS."""
    with deployed(tls=True) as deployment:
        yield deployment


@contextmanager
def deployed(tls: bool) -> Iterator[Deployment]:
    """Run a name server and a node on one host, whose packets from the user's host go astray."""
    with network(SERVER, USER, FRONT, BACK, front=addresses_of(1)) as hosts:
        protection = Protection(tls)
        protection.prepare(hosts)
        deployment = Deployment(hosts, protection, attrgetter("ipv4"))
        deployment.start_all(SERVER)
        hosts.divert(USER, SERVER, FRONT)
        yield deployment


@contextmanager
def between(deployment: Deployment, pose: TLS | None = None) -> Iterator[ManInTheMiddle]:
    """Stand between the user and all servers."""
    hosts = deployment.network
    with calling(hosts[BACK], deployment.client(BACK)) as call:
        ports = [PORT, *(node.port for node in call("nodes"))]
    with ManInTheMiddle(hosts[FRONT], hosts[BACK], hosts[SERVER].ipv4, ports, pose) as man:
        yield man


@contextmanager
def user(deployment: Deployment, **options: Any) -> Iterator[Callable[..., Any]]:
    """Give a function that makes a call of a client of the user."""
    with calling(deployment.network[USER], deployment.client(USER, timeout=2.0, **options)) as call:
        yield call


def test_without_tls_it_reads_and_changes_values(plain: Deployment) -> None:
    with between(plain) as man, user(plain) as call:
        call("set", "planet", TRUE)
        man.changes = exchange
        assert call("get", "planet") == FALSE
    assert TRUE.encode() in man.requests
    assert TRUE.encode() in man.replies


def test_a_signed_value_that_it_changes_is_refused(plain: Deployment, tmp_path: Path) -> None:
    key = tmp_path / "signing-key"
    key.write_text(f"{'5e' * 32}\n")
    key.chmod(0o600)
    with between(plain) as man, user(plain, signing_key_file=str(key)) as call:
        call("set", "planet", TRUE)
        assert call("get", "planet") == TRUE
        man.changes = exchange
        with pytest.raises(TamperedValue):
            call("get", "planet")
    assert TRUE.encode() in man.requests, "it is signed, and not encrypted"


def test_with_tls_it_reads_nothing_and_whatever_it_changes_ends_the_connection(secure: Deployment) -> None:
    with between(secure) as man, user(secure) as call:
        call("set", "planet", TRUE)
        assert call("get", "planet") == TRUE
        man.changes = spoil
        for _ in range(3):
            with pytest.raises(PyroCacheError):
                call("get", "planet")
        man.changes = bytes
        assert call("get", "planet") == TRUE
    assert man.requests
    assert man.replies
    for seen in (man.requests, man.replies):
        assert TRUE.encode() not in seen
        assert b"planet" not in seen


def test_without_a_certificate_of_the_server_it_is_refused(secure: Deployment, tmp_path: Path) -> None:
    hosts = secure.network
    other_authority = new_certificates(tmp_path).server(hosts[SERVER].ipv4)
    other_host = secure.protection.authority(hosts).server("thief.example")
    for pose in (other_authority, other_host):
        with between(secure, pose) as man, user(secure) as call:
            with pytest.raises(PyroCacheError, match="certificate"):
                call("get", "planet")
            eventually(lambda: man.refused > 0)
        assert not man.requests, "the client has sent nothing"


def test_with_a_certificate_of_the_server_it_cannot_pass_the_proof_on(secure: Deployment) -> None:
    """The proof of the secret is for the certificate, too."""
    another_one = secure.protection.authority(secure.network).server(f"{addresses_of(1)[0]},again.example")
    with between(secure, another_one) as man, user(secure) as call, pytest.raises(AuthenticationError):
        call("get", "planet")
    assert man.requests
    assert b"planet" not in man.requests
