"""Two neighbouring versions work together; others say which side to upgrade.

The older of the two neighbours is a commit of this repository. Versions that are too far apart are this one with
another number of the protocol.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrocache import AsyncPyroCacheClient, HotKey, PyroCacheClient, __version__
from pyrocache.errors import NameServerUnavailable, ProtocolMismatch, RemoteError
from pyrocache.protocol.handshake import PROTOCOL
from tests.support.async_verbs import use_all
from tests.support.commands import call
from tests.support.loops import run_cleanly
from tests.support.processes import ROOT, free_address
from tests.support.versions import Client, Version, drain, of_commit, with_protocol
from tests.support.waiting import eventually

BEFORE = "179b2e5bd792a2f25df73182f9a24db6499a3fc1"
"""The last commit of the version before this one."""

KEYS = 60
MOST_ROUNDS = 5000


@pytest.fixture(scope="module")
def place_of_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return of_commit(BEFORE, tmp_path_factory.mktemp("before"))


@pytest.fixture
def before(place_of_before: Path) -> Iterator[Version]:
    """The version before."""
    version = Version(place_of_before)
    yield version
    version.stop()


@pytest.fixture
def present() -> Iterator[Version]:
    """This version."""
    version = Version(ROOT)
    yield version
    version.stop()


@pytest.fixture
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Version]]:
    """Returns this version with another number of the protocol."""
    versions: dict[int, Version] = {}

    def of(protocol: int) -> Version:
        if protocol not in versions:
            place = with_protocol(protocol, tmp_path_factory.mktemp(f"protocol-{protocol}"))
            versions[protocol] = Version(place)
        return versions[protocol]

    yield of
    for version in versions.values():
        version.stop()


def use(one: Callable[..., Any], other: Callable[..., Any]) -> None:
    """Let two clients, given by what calls their methods, read what the other one wrote."""
    values = {f"key {number}": [number, "text", None, 1.5] for number in range(50)}
    for number, (writer, reader) in enumerate(((one, other), (other, one))):
        assert writer("set", "one", number, 60.0) is True
        assert reader("get", "one") == number
        assert writer("set_many", values) in (None, True, len(values))
        assert reader("get_many", list(values)) == values
        assert reader("incr", "count", 1) == 2 * number + 1
        assert writer("incr", "count", 1) == 2 * number + 2
        assert reader("delete", "one") is True
        assert writer("get", "one") is None
        assert writer("ping") == reader("ping") == 2


def calls(cache: PyroCacheClient) -> Callable[..., Any]:
    return lambda method, *arguments: getattr(cache, method)(*arguments)


def test_a_new_client_uses_old_nodes(before: Version) -> None:
    address = free_address()
    before.nodes(address, "--with-nameserver", "--nodes", "2")
    with PyroCacheClient(address) as cache:
        use(calls(cache), before.client(address).call)
        assert [node.version for node in cache.stats().nodes.values()] == ["", ""]
        assert [member.zone for member in cache.nodes()] == ["", ""]
        with pytest.raises(RemoteError, match=r"refused hot_keys"):
            cache.hot_keys()


@pytest.mark.full
def test_a_new_asyncio_client_uses_old_nodes(before: Version) -> None:
    address = free_address()
    before.nodes(address, "--with-nameserver", "--nodes", "2")

    async def main() -> None:
        async with AsyncPyroCacheClient(address, timeout=20) as cache:
            await use_all(cache)

    run_cleanly(main)


def test_an_old_client_uses_new_nodes(before: Version, present: Version) -> None:
    address = free_address()
    present.nodes(address, "--with-nameserver", "--nodes", "2", "--zone", "rack-1")
    old = before.client(address)
    with PyroCacheClient(address) as cache:
        use(calls(cache), old.call)
        assert [member.zone for member in cache.nodes()] == ["rack-1", "rack-1"]
        assert [node.version for node in cache.stats().nodes.values()] == [__version__] * 2
    assert old.call("stats").startswith("Stats of 2 nodes")


@pytest.mark.full
def test_hot_keys_are_those_of_the_nodes_that_count(before: Version, present: Version) -> None:
    address = free_address()
    before.nodes(address, "--with-nameserver", "--nodes", "1", "--name", "cache.node.1")
    present.nodes(address, "--nodes", "1", "--name", "cache.node.2")

    async def found() -> list[HotKey]:
        async with AsyncPyroCacheClient(address) as cache:
            return await cache.hot_keys(100, seconds=0)

    with PyroCacheClient(address) as cache:
        eventually(lambda: len(cache.nodes()) == 2, seconds=15.0)
        assert cache.hot_keys(seconds=0) == []
        cache.get_many(range(50))
        own = {key for key in range(50) if cache.node_for(key).name == "cache.node.2"}
        for hot in (cache.hot_keys(100, seconds=0), asyncio.run(found())):
            assert {one.key for one in hot} == own
            assert {one.node for one in hot} == {"cache.node.2"}


class Load:
    """A client of each version writes its own keys, and reads all, until `end`.

    Attributes:
        misses: the keys that were missed, since they were last looked at.
        wrong: reads of what was never written, or of less than the last value.
        errors: what was raised.
        rounds: how often all keys were written and read.
    """

    def __init__(self, new: PyroCacheClient, old: Client) -> None:
        self.misses: set[str] = set()
        self.wrong: list[str] = []
        self.errors: list[str] = []
        self.rounds = 0
        self._calls: dict[str, Callable[..., Any]] = {"new": calls(new), "old": old.call}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join()

    def more(self) -> None:
        """Wait until a whole round has been made."""
        begun = self.rounds
        eventually(lambda: self.rounds > begun + 1 or self._ending.is_set(), seconds=30.0)

    def _run(self) -> None:
        try:
            for number in range(MOST_ROUNDS):
                if self._ending.wait(0.01):
                    return
                self._round(number)
                self.rounds += 1
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")
        finally:
            self._ending.set()

    def _round(self, number: int) -> None:
        for index in range(KEYS):
            writer, reader = ("new", "old") if (index + number) % 2 else ("old", "new")
            key = f"key {index}"
            if number:
                self._read(reader, key, [index, number - 1])
            assert self._calls[writer]("set", key, [index, number]) is True
            self._read(reader, key, [index, number])

    def _read(self, reader: str, key: str, expected: list[int]) -> None:
        found = self._calls[reader]("get", key)
        if found is None:
            self.misses.add(key)
        elif found != expected:
            self.wrong.append(f"{reader} read {found} in place of {expected}")


def versions_of(cache: PyroCacheClient) -> dict[str, str]:
    return {name: node.version for name, node in cache.stats().nodes.items()}


@pytest.mark.full
def test_a_cluster_is_upgraded_and_a_node_of_it_downgraded_under_load(
    before: Version, present: Version
) -> None:
    address = free_address()
    nameserver = before.nameserver(address)
    names = ("cache.node.1", "cache.node.2", "cache.node.3")
    nodes = {name: before.nodes(address, "--nodes", "1", "--name", name) for name in names}
    with PyroCacheClient(address, timeout=10.0) as cache:
        owners = {f"key {index}": cache.node_for(f"key {index}").name for index in range(KEYS)}
        assert set(owners.values()) == set(names)
        load = Load(cache, before.client(address))

        def replace(name: str, version: Version, *options: str) -> None:
            load.more()
            load.misses.clear()
            drain(nodes[name])
            load.more()
            nodes[name] = version.nodes(address, "--nodes", "1", "--name", name, *options)
            load.more()
            assert {owners[key] for key in load.misses} <= {name}, "other keys were lost"
            assert load.misses, "the load is too small to notice anything"

        try:
            for done, name in enumerate(names, 1):
                replace(name, present, "--zone", f"zone-{name[-1]}")
                assert versions_of(cache) == {
                    one: __version__ if one in names[:done] else "" for one in names
                }
                status = present.run("status", "--nameserver", address).out.splitlines()
                assert ("version" in status[2].split()) == (done < len(names))
            load.misses.clear()
            drain(nameserver)
            load.more()
            present.nameserver(address)
            eventually(lambda: [member.name for member in cache.nodes()] == list(names), seconds=15.0)
            load.more()
            assert load.misses == set()
            assert [member.zone for member in cache.nodes()] == ["zone-1", "zone-2", "zone-3"]

            replace("cache.node.2", before)
            assert versions_of(cache) == {one: "" if one == "cache.node.2" else __version__ for one in names}
            # The old node has made the view, without zones.
            assert [member.zone for member in cache.nodes()] == ["zone-1", "", "zone-3"]
            replace("cache.node.2", present)
        finally:
            load.end()
        assert (load.errors, load.wrong) == ([], [])
        assert load.rounds < MOST_ROUNDS, "the load ended before the upgrade"
        shown = json.loads(present.run("status", "--nameserver", address, "--json").out)["nodes"]
        assert [(node["name"], node["version"], node["zone"]) for node in shown] == [
            ("cache.node.1", __version__, "zone-1"),
            ("cache.node.2", __version__, ""),
            ("cache.node.3", __version__, "zone-3"),
        ]


@pytest.mark.full
def test_who_is_too_far_away_from_the_name_server_is_told_so(
    speaking: Callable[[int], Version], present: Version
) -> None:
    address, far = free_address(), speaking(PROTOCOL + 2)
    present.nodes(address, "--with-nameserver", "--nodes", "1")
    reason = (
        f", as the server speaks protocol {PROTOCOL} and the caller protocol {PROTOCOL + 2}: "
        "upgrade pyrocache at the server."
    )
    for command in ("nodes", "status"):
        outcome = far.run(command, "--nameserver", address)
        assert outcome.status == 1
        assert outcome.sentence == f"The name server at {address} cannot be asked to list the nodes{reason}"
    with pytest.raises(RuntimeError) as raised:
        far.client(address).call("get", "key")
    assert str(raised.value) == f"NameServerUnavailable: {outcome.sentence}"


@pytest.mark.full
def test_who_is_too_far_away_from_a_node_is_told_so(
    speaking: Callable[[int], Version], present: Version
) -> None:
    """The name server is a neighbour of both."""
    address = free_address()
    speaking(PROTOCOL + 1).nameserver(address)
    speaking(PROTOCOL + 2).nodes(address, "--nodes", "1")
    reason = (
        f"as the server speaks protocol {PROTOCOL + 2} and the caller protocol {PROTOCOL}: "
        "upgrade pyrocache at the caller."
    )
    with PyroCacheClient(address) as cache:
        (node,) = cache.nodes()
        what = f"failed: no connection to cache.node.1 at {node.address} was made, {reason}"
        with pytest.raises(ProtocolMismatch) as mismatch:
            cache.get("key")
        assert str(mismatch.value) == f"get {what}"
        assert cache.stats().away == ["cache.node.1"]
    with PyroCacheClient(address, on_error="miss") as forgiving:
        assert forgiving.get("key") is None
    status = call("pyrocache", "status", "--nameserver", address)
    assert status.status == 1
    assert status.out.splitlines()[-1] == f"Warning: stats {what}"
    assert call("pyrocache", "ping", "--nameserver", address).sentence == f"ping {what}"
    outcome = present.run("nodes", "--nodes", "1", "--nameserver", address)
    assert outcome.status == 1
    assert f"This node cannot join: ping {what}\n" in outcome.err
    assert not issubclass(ProtocolMismatch, NameServerUnavailable)
