"""The tests of every verb once more, over TCP with TLS. A few of them by default."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest

from pyrocache import PyroCacheClient
from tests.contract.client import test_verbs
from tests.contract.client.test_verbs import kinds
from tests.support.certificates import Certificates
from tests.support.tls_cluster import TlsCluster, tls_cluster

BY_DEFAULT = {
    "test_add_stores_only_where_nothing_is",
    "test_a_version_is_good_until_the_entry_changes",
}
NEEDS_ANOTHER_CLUSTER = {"cluster", "shared_cluster"}

__all__ = ["kinds"]


@pytest.fixture(scope="module")
def running(certificates: Certificates) -> Iterator[TlsCluster]:
    with tls_cluster(certificates, nodes=3) as cluster:
        yield cluster


@pytest.fixture
def cache(client_class: type[PyroCacheClient], running: TlsCluster) -> Iterator[PyroCacheClient]:
    """A client of a cluster with TLS, which is empty."""
    with client_class(running.nameserver, transport="tcp", tls=running.client_tls) as client:
        client.clear()
        client.namespace("shop").clear()
        yield client


def _again(name: str, function: FunctionType) -> Any:
    """Return the same test for the fixtures of this module."""
    copy = FunctionType(
        function.__code__, function.__globals__, name, function.__defaults__, function.__closure__
    )
    copy.__dict__.update(function.__dict__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy if name in BY_DEFAULT else pytest.mark.full(copy)


for _name, _function in list(vars(test_verbs).items()):
    if isinstance(_function, FunctionType) and _name.startswith("test_"):
        _wanted = set(inspect.signature(_function).parameters)
        if "cache" in _wanted and not _wanted & NEEDS_ANOTHER_CLUSTER:
            globals()[_name] = _again(_name, _function)


def test_enough_is_tested_here() -> None:
    tests = [name for name in globals() if name.startswith("test_")]
    assert set(tests) > BY_DEFAULT
    assert len(tests) > 40
