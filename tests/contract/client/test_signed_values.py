"""Clients with a signing key, and what others can do to them: a client without the key, and a hostile node."""

from __future__ import annotations

import enum
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyrocache import (
    ConfigurationError,
    LocalCluster,
    NotAnInt,
    PartialFailure,
    PyroCacheClient,
    SerializationError,
    TamperedValue,
)
from pyrocache.client.backend import Backend
from pyrocache.client.context import ClientContext
from pyrocache.client.routing.router import Router
from pyrocache.config import ClientConfig
from pyrocache.net.directory import Listing
from pyrocache.runtime import secret_file
from tests.support.processes import environment
from tests.support.scripted_peer import Line, ScriptedPeer

ran: list[str] = []


def run() -> str:
    ran.append("ran")
    return "evil"


class Evil:
    """Its pickle runs `run`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return run, ()


class Colour(enum.Enum):
    RED = 1


class Thing:
    """A key that is pickled."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing) and self.x == other.x

    def __hash__(self) -> int:
        return hash(self.x)


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("keys") / "signing.key")
    secret_file.make(path)
    return path


@pytest.fixture
def stranger(cache: PyroCacheClient) -> PyroCacheClient:
    """A client without the key."""
    return cache.namespace("shop")


@pytest.fixture
def signed(shared_cluster: LocalCluster, cache: PyroCacheClient, key_file: str) -> Iterator[PyroCacheClient]:
    with shared_cluster.client(namespace="shop", signing_key_file=key_file) as client:
        client.clear()
        yield client


def tampered(cache: PyroCacheClient) -> int:
    return cache.stats().client.tampered_values


def stored(cache: PyroCacheClient, key: object) -> Any:
    """Return the frame of an entry, as a node has it."""
    return cache._context.backend.get(cache._context.encode_key(key), cache._context.deadline())


def put(cache: PyroCacheClient, key: object, frame: Any) -> None:
    context = cache._context
    context.backend.set(context.encode_key(key), frame, None, context.deadline())


READS: dict[str, Callable[[PyroCacheClient], Any]] = {
    "get": lambda c: c.get("k"),
    "get touch": lambda c: c.get("k", touch_seconds=60),
    "[]": lambda c: c["k"],
    "get_with_version": lambda c: c.get_with_version("k"),
    "get_entry": lambda c: c.get_entry("k"),
    "get_many": lambda c: c.get_many(["k"]),
    "get_entries": lambda c: c.get_entries(["k"]),
    "setdefault": lambda c: c.setdefault("k", "mine"),
    "compute": lambda c: c.compute("k", lambda value: value),
    "pop": lambda c: c.pop("k"),
    "items": lambda c: list(c.items()),
    "values": lambda c: list(c.values()),
    "popitem": lambda c: c.popitem(),
    "==": lambda c: c == {},
}
every_read = pytest.mark.parametrize("read", READS.values(), ids=READS)
LOADS: dict[str, Callable[[PyroCacheClient], Any]] = {
    "get_or_set": lambda c: c.get_or_set("k", lambda: "mine"),
    "get_or_set early": lambda c: c.get_or_set("k", lambda: "mine", early=1.0),
    "get_or_set stale": lambda c: c.get_or_set("k", lambda: "mine", stale_seconds=60),
    "memoize": lambda c: c.memoize(name="k")(lambda: "mine")(),
}


def expect_tampered(read: Callable[[PyroCacheClient], Any], cache: PyroCacheClient) -> None:
    before = tampered(cache)
    with pytest.raises((TamperedValue, PartialFailure)) as raised:
        read(cache)
    errors = raised.value.errors.values() if isinstance(raised.value, PartialFailure) else [raised.value]
    assert {type(error) for error in errors} == {TamperedValue}
    assert tampered(cache) == before + 1
    assert ran == []


@every_read
def test_a_malicious_value_of_a_client_without_the_key_is_not_loaded(
    signed: PyroCacheClient, stranger: PyroCacheClient, read: Callable[[PyroCacheClient], Any]
) -> None:
    stranger["k"] = Evil()
    expect_tampered(read, signed)


@every_read
def test_a_value_of_another_key_is_not_accepted(
    signed: PyroCacheClient, stranger: PyroCacheClient, read: Callable[[PyroCacheClient], Any]
) -> None:
    signed["other"] = "secret"
    frame = stored(signed, "other")
    signed.clear()
    put(stranger, "k", frame)
    expect_tampered(read, signed)


@every_read
def test_a_signed_value_is_accepted(
    signed: PyroCacheClient, stranger: PyroCacheClient, read: Callable[[PyroCacheClient], Any]
) -> None:
    signed["k"] = {"a": 1}
    read(signed)
    assert tampered(signed) == 0
    signed["k"] = {"a": 1}
    with pytest.raises(SerializationError, match="signed"):
        stranger["k"]


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_a_forged_value_is_loaded_anew_and_replaced(
    signed: PyroCacheClient, stranger: PyroCacheClient, load: Callable[[PyroCacheClient], Any]
) -> None:
    assert load(signed) == "mine"
    [key] = signed
    stranger[key] = Evil()
    assert load(signed) == "mine"
    assert ran == []
    assert tampered(signed) >= 1
    assert signed[key] == load(signed) == "mine"


def test_as_a_miss_it_is_counted_and_never_accepted(
    shared_cluster: LocalCluster, signed: PyroCacheClient, stranger: PyroCacheClient, key_file: str
) -> None:
    signed["good"] = 1
    stranger.update({"k": Evil(), Thing(Evil()): 1})
    with shared_cluster.client(namespace="shop", signing_key_file=key_file, on_undecodable="miss") as lenient:
        assert lenient.get("k", "missing") == "missing"
        assert lenient.get_many(["k", "good"]) == {"good": 1}
        assert dict(lenient.items()) == {"good": 1}
        assert set(lenient.scan()) == {"k", "good"}  # a key of a plain type
        assert [info.key for info in lenient.scan(details=True) if info.key == "good"] == ["good"]
        assert lenient.popitem() == ("good", 1)
        figures = lenient.stats().client
        assert figures.tampered_values == figures.undecodable >= 6
    assert ran == []


def test_a_malicious_key_is_not_loaded(signed: PyroCacheClient, stranger: PyroCacheClient) -> None:
    for key in (Thing(Evil()), ("a", Thing(1)), Colour.RED):
        stranger.clear()
        stranger[key] = 1
        for look in (
            list,
            lambda c: list(c.scan(details=True)),
            lambda c: list(c.items()),
            lambda c: c.popitem(),
        ):
            with pytest.raises(TamperedValue, match="A key in namespace 'shop'"):
                look(signed)
    assert ran == []


def test_keys_that_name_classes_are_not_shared_with_other_clients(
    signed: PyroCacheClient, stranger: PyroCacheClient
) -> None:
    keys = [Thing(1), Colour.RED, ("a", Thing((1, Colour.RED))), frozenset({Thing(1), 2})]
    signed.update({key: number for number, key in enumerate(keys)})
    assert signed.get_many(keys) == {key: number for number, key in enumerate(keys)}
    assert set(signed) == set(keys)
    assert set(signed.scan(("a",))) == {keys[2]}
    assert stranger.get_many(keys) == {}
    with pytest.raises(SerializationError, match="a key is signed, and this client has no signing key"):
        list(stranger)
    assert signed.delete_many(keys) == 4


def test_memoized_calls_have_the_keys_that_they_say(signed: PyroCacheClient) -> None:
    calls = []

    @signed.memoize(name="total")
    def total(*parts: Any) -> Any:
        calls.append(parts)
        return len(parts)

    arguments = [(Colour.RED,), (Thing(1), 2), (np.arange(10_000),), ("plain",)]
    for given in arguments:
        assert total(*given) == total(*given) == len(given)
        assert signed[total.key(*given)] == len(given)
    assert len(calls) == len(arguments)
    assert len(list(signed)) == len(arguments)
    assert all(total.invalidate(*given) for given in arguments)
    assert len(signed) == 0


def test_counters_are_for_namespaces_that_ask_for_them(
    signed: PyroCacheClient, stranger: PyroCacheClient
) -> None:
    with pytest.raises(ConfigurationError, match=r"counters=True"):
        signed.incr("n")
    with pytest.raises(ConfigurationError):
        signed.decr("n")
    assert len(signed) == 0
    stranger.incr("n")
    with pytest.raises(TamperedValue, match=r"counters=True"):
        signed.get("n")
    signed["m"] = 1
    with pytest.raises(NotAnInt):
        stranger.incr("m")

    counts = signed.namespace("counts", counters=True)
    counts.clear()
    assert counts.incr("n") == 1
    counts["n"] = 5
    assert counts.incr("n", 2) == counts["n"] == 7
    counts["text"] = "signed"
    outside = stranger.namespace("counts")
    outside.incr("n")
    assert counts["n"] == counts.namespace("inner").namespace("n", counters=False).get("n", 8) == 8
    outside["text"] = "forged"
    with pytest.raises(TamperedValue, match="namespace \\('shop', 'counts'\\)"):
        counts["text"]
    assert counts.namespace("inner").incr("n") == 1
    counts.namespace("inner").clear()


def test_large_arrays_come_back_aligned(signed: PyroCacheClient) -> None:
    array = np.arange(200_000, dtype=np.float64)
    signed["array"] = array
    again = signed["array"]
    assert np.array_equal(again, array)
    assert again.flags.aligned
    assert again.flags.writeable


def test_a_client_in_another_process_reads_the_file_by_its_path(
    shared_cluster: LocalCluster, cache: PyroCacheClient, key_file: str, tmp_path: Path
) -> None:
    directory, name = os.path.split(key_file)
    here = os.getcwd()
    os.chdir(directory)
    try:
        client = shared_cluster.client(namespace="shop", signing_key_file=Path(name))
    finally:
        os.chdir(here)
    client["k"] = "value"
    state = pickle.dumps(client)
    for key in secret_file.read(key_file).all:
        assert key.hex().encode() not in state
        assert bytes(key) not in state
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer)['k'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=state, stdout=subprocess.PIPE, env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
        cwd=tmp_path, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == b"value\n"
    client.close()


def test_a_client_without_its_file_is_not_made(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        shared_cluster.client(signing_key_file=tmp_path / "none")
    open_to_all = tmp_path / "open"
    secret_file.make(str(open_to_all))
    open_to_all.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        shared_cluster.client(signing_key_file=str(open_to_all))


def test_the_keys_are_rotated_without_a_lost_value(
    shared_cluster: LocalCluster, cache: PyroCacheClient, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        secret_file.make(str(path))
    first, second = one.read_text(), two.read_text()

    def client(*lines: str) -> PyroCacheClient:
        one.write_text("".join(lines))
        return shared_cluster.client(namespace="shop", signing_key_file=one)

    clients = [client(first), client(first, second), client(second, first), client(second)]
    for writer, reader in pairwise(clients):
        writer["k"] = "value"
        assert reader["k"] == "value"
        reader["k"] = "value"
        assert writer["k"] == "value"
    clients[0]["k"] = "value"
    with pytest.raises(TamperedValue, match="signing_key_file"):
        clients[3]["k"]
    for one_of_them in clients:
        one_of_them.close()


class Listed:
    """A name server that lists one node."""

    def __init__(self, peer: ScriptedPeer) -> None:
        self._members = (peer.member,)

    def listing(self, timeout: float = 5.0) -> Listing:
        return Listing(members=self._members)


EVIL = pickle.dumps(Evil(), 5)
KEYS = [b"\0sk", b"\0P" + EVIL]


def described(key: bytes) -> list[Any]:
    return [key, 1.0, [], None, None, 1]


def hostile(line: Line) -> None:
    """Answers with a malicious pickle where a value or a key belongs."""
    answers: dict[str, Callable[[list[Any]], Any]] = {
        "get": lambda arguments: EVIL,
        "pop": lambda arguments: EVIL,
        "setdefault": lambda arguments: EVIL,
        "get_with_version": lambda arguments: [EVIL, 1],
        "get_with_times": lambda arguments: [EVIL, 1.0, 1.0],
        "get_entry": lambda arguments: [EVIL, 1, 1.0, [], None, None, 1],
        "get_many": lambda arguments: [EVIL] * len(arguments[1]),
        "get_entries": lambda arguments: [[EVIL, 1, 1.0, [], None, None, 1]] * len(arguments[1]),
        "lease": lambda arguments: ["value", EVIL, None, None],
        "scan": lambda arguments: [0, list(map(described, KEYS)) if arguments[-1] is True else KEYS],
        "count": lambda arguments: 2,
    }
    while True:
        method, arguments = line.request()
        line.send(line.reply(answers[method](arguments) if method in answers else True))


@pytest.mark.parametrize("transform", [lambda frame: frame, lambda frame: b"S" + bytes(31) + frame])
def test_a_hostile_node_runs_no_code(
    transform: Callable[[bytes], bytes], key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "EVIL", transform(EVIL))
    peer = ScriptedPeer(hostile)
    config = ClientConfig(signing_key_file=key_file)
    cache = PyroCacheClient._of(ClientContext(config, Backend(Router(Listed(peer)))))  # type: ignore[arg-type]
    scans = {"scan": list, "details": lambda c: list(c.scan(details=True))}
    for name, read in (READS | scans).items():
        with pytest.raises((SerializationError, PartialFailure)) as raised:
            read(cache)
        assert "pyrocache" in type(raised.value).__module__, name
    for load in LOADS.values():
        assert load(cache) == "mine"
    assert ran == []
    assert cache._context.figures.tampered_values > len(READS)
    cache.close()
    peer.close()
    assert peer.failures == []
