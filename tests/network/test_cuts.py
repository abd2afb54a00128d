"""Hosts are cut off from each other and connected again, or lose and delay packets, while a history is recorded.

What ``docs/failure-modes.md`` promises must hold: no fault of the network explains that an entry vanishes, that an old
value is read, or that a call ends otherwise than with one of our errors. And it ends: all nodes serve again.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from typing import Any, TypeVar

import pytest

from pyrocache import NameServerUnavailable, NodeUnavailable
from pyrocache.config import DEFAULT_TIMEOUT_SECONDS
from tests.chaos.checker import check
from tests.chaos.history import MAYBE, Call, read_history
from tests.chaos.load import USERS, Settings
from tests.chaos.run import Outcome
from tests.support.deployment import TLS_TOO, Deployment, Protection, calling
from tests.support.network import Network, network
from tests.support.waiting import eventually

_T = TypeVar("_T")
Pair = tuple[str, str]

NODES = ["one", "two", "three"]
NAMES, USER = "names", "user"
"""The hosts: each node, the name server, and the clients have one."""

NODE_NODE: Pair = ("one", "two")
CLIENT_NODE: Pair = (USER, "one")
NODE_NAMES: Pair = ("two", NAMES)
CLIENT_NAMES: Pair = (USER, NAMES)
ALONE: list[Pair] = [("two", "one"), ("two", "three"), ("two", NAMES)]
"""The cuts after which a node has no lease, although clients reach it."""

QUICK_SECONDS = 1.0  # the timeout of clients where a cut is to make calls fail
LOSS = 0.1
DELAY_SECONDS = 0.1
"""Of each packet in each direction, as with ``tc qdisc add ... netem delay 100ms loss 10%`` on each host: a round trip
takes 0.2 s, and arrives in 81 of 100 cases."""

CUT_SECONDS = 3.0  # longer than a lease
STEADY_SECONDS = 1.0  # without a fault, between two
RECOVERY_SECONDS = 15.0
SEED = 1


@dataclass
class Scene:
    """A cluster, and processes that use it.

    Attributes:
        deployment: the cluster.
        users: the hosts on which a process uses it.
        timeout: of its clients.
        events: when something was done, and what.
    """

    deployment: Deployment
    users: Sequence[str]
    timeout: float
    events: list[tuple[float, str]] = field(default_factory=list)
    began_at: float = field(default_factory=time.monotonic)

    @property
    def network(self) -> Network:
        """The hosts."""
        return self.deployment.network

    @contextmanager
    def cut(self, *pairs: Pair) -> Iterator[None]:
        """Cut some pairs meanwhile."""
        for pair in pairs:
            self._note(f"cut {' and '.join(pair)}")
            self.network.cut(*pair)
        yield
        for pair in pairs:
            self.network.heal(*pair)
            self._note(f"healed {' and '.join(pair)}")

    @contextmanager
    def bad_network(self) -> Iterator[None]:
        """Delay and lose packets meanwhile."""
        self._note("delay and loss")
        self.network.delay(DELAY_SECONDS)
        self.network.lose(LOSS)
        yield
        self.network.lose(0.0)
        self.network.delay(0.0)
        self._note("no delay and no loss")

    def serving(self) -> list[str]:
        """Return the names of the nodes that say to a new client that they serve; none if it finds no name server."""
        user = self.users[-1]
        with calling(self.network[user], self.deployment.client(user)) as call:
            try:
                stats = call("stats")
            except NameServerUnavailable:
                return []
            return sorted(name for name, node in stats.nodes.items() if node.serving)

    def recover(self) -> None:
        """Wait until all nodes serve."""
        eventually(lambda: len(self.serving()) == len(NODES), RECOVERY_SECONDS, pause=0.1)
        self._note("all nodes serve")

    @contextmanager
    def load(self) -> Iterator[None]:
        """Use the cache meanwhile, from one process on each host of the users."""
        processes = []
        for number, host in enumerate(self.network[name] for name in self.users):
            settings = Settings(
                nameserver=self.deployment.nameserver,
                directory=str(self.network.shared),
                number=number,
                processes=len(self.users),
                seed=SEED,
                timeout=self.timeout,
                tls=asdict(tls) if (tls := self.deployment.protection.settings(host)) else tls,
            )
            command = ("-W", "ignore", "-m", "tests.chaos.load", settings.to_json())
            processes.append(host.start(*command, stdin=subprocess.PIPE))
        last = [self.network.shared / f"{number}.{USERS - 1}.jsonl" for number in range(len(self.users))]
        eventually(lambda: all(path.exists() and path.stat().st_size for path in last), 20.0)
        yield
        for process in processes:
            said = process.communicate(timeout=20.0)[0]  # ends its input
            assert not process.returncode, said

    def judge(self) -> Sequence[Call]:
        """Fail if a promise was broken. Return the history."""
        calls = read_history(self.network.shared)
        violations = check(calls, (), self.timeout)
        outcome = Outcome(["network"], calls, self.events, violations, [], self.began_at)
        print(outcome.summary())
        if not outcome.good:
            pytest.fail(outcome.report(), pytrace=False)
        return calls

    def _note(self, text: str) -> None:
        self.events.append((time.monotonic(), text))


@contextmanager
def running(
    timeout: float,
    nodes: Sequence[str] = NODES,
    names: str = NAMES,
    users: Sequence[str] = (USER,),
    tls: bool = False,
) -> Iterator[Scene]:
    """Run a cluster with its parts on these hosts."""
    with network(*dict.fromkeys((names, *nodes, *users))) as hosts:
        protection = Protection(tls)
        protection.prepare(hosts)
        deployment = Deployment(hosts, protection, attrgetter("ipv4"))
        deployment.start_nameserver(names)
        deployment.start_nodes(nodes)
        yield Scene(deployment, users, timeout)


def failed(calls: Sequence[Call]) -> Counter[Any]:
    """Return how many calls have raised, by the name of the error."""
    return Counter(call.error for call in calls if call.outcome == MAYBE)


@pytest.mark.full
def test_cuts_loss_and_delay_break_no_promise() -> None:
    with running(DEFAULT_TIMEOUT_SECONDS) as scene:
        with scene.load():
            with scene.cut(NODE_NODE, NODE_NAMES):
                time.sleep(1.0)
            with scene.cut(CLIENT_NODE, CLIENT_NAMES):
                time.sleep(1.0)
            with scene.bad_network():
                time.sleep(2.0)
            scene.recover()
        calls = scene.judge()
    assert len(calls) - sum(failed(calls).values()) > 100


@pytest.mark.full
def test_long_cuts_of_each_kind_break_no_promise() -> None:
    with running(QUICK_SECONDS) as scene:
        with scene.load():
            for pair, serving in ((NODE_NODE, 3), (CLIENT_NODE, 2), (NODE_NAMES, 3), (CLIENT_NAMES, 0)):
                with scene.cut(pair):
                    time.sleep(CUT_SECONDS)
                    assert len(scene.serving()) == serving
                scene.recover()
                time.sleep(STEADY_SECONDS)
        calls = scene.judge()
    assert failed(calls)


@pytest.mark.full
def test_a_node_that_is_cut_off_from_all_others_stops_to_serve_and_loses_nothing() -> None:
    with running(QUICK_SECONDS) as scene:
        with scene.load():
            for _ in range(3):
                with scene.cut(*ALONE):
                    eventually(lambda: len(scene.serving()) == len(NODES) - 1, RECOVERY_SECONDS)
                    time.sleep(CUT_SECONDS)
                scene.recover()
                time.sleep(STEADY_SECONDS)
        scene.judge()


@pytest.mark.full
def test_three_hosts_with_all_parts_on_each_may_be_cut_in_turn() -> None:
    with running(QUICK_SECONDS, NODES, NODES[0], NODES) as scene:
        with scene.load():
            for pair in (("one", "two"), ("two", "three"), ("three", "one")):
                with scene.cut(pair):
                    time.sleep(CUT_SECONDS)
                scene.recover()
                time.sleep(STEADY_SECONDS)
        scene.judge()


@pytest.mark.full
@pytest.mark.parametrize("tls", TLS_TOO)
def test_with_loss_and_delay_most_calls_succeed_and_nodes_keep_their_leases(tls: bool) -> None:
    with running(DEFAULT_TIMEOUT_SECONDS, tls=tls) as scene:
        with scene.load():
            with scene.bad_network():
                time.sleep(20.0)
            scene.recover()
        calls = scene.judge()
    errors = failed(calls)
    print(errors)
    assert sum(errors.values()) < len(calls) / 4


@pytest.mark.full
@pytest.mark.parametrize("tls", [TLS_TOO[-1]])  # it takes one more round trip for each connection
def test_a_cluster_is_made_and_used_again_over_long_ways(tls: bool) -> None:
    with network(NAMES, *NODES, USER) as hosts:
        protection = Protection(tls)
        protection.prepare(hosts)
        deployment = Deployment(hosts, protection, attrgetter("ipv4"))
        deployment.start_nameserver(NAMES)
        hosts.delay(DELAY_SECONDS)
        for node in NODES:
            deployment.start_nodes([node])
        with calling(hosts[USER], deployment.client(USER)) as call:
            for number in range(10):
                call("set", number, number)
            hosts.cut(*CLIENT_NODE)
            read = lambda: [call("get", number) for number in range(10)]  # noqa: E731
            with pytest.raises(NodeUnavailable):  # from now on, the client doubts the node
                read()
            hosts.heal(*CLIENT_NODE)
            assert eventually(lambda: succeeds(read), 30.0) == list(range(10))


def succeeds(function: Callable[[], _T]) -> _T | None:
    """Return the result of a call, None if the node did not answer."""
    try:
        return function()
    except NodeUnavailable:
        return None
