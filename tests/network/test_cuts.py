"""Hosts are cut off from each other and connected again, or lose and delay packets, while a history is recorded.

What ``docs/failure-modes.md`` promises must hold: no fault of the network explains that an entry vanishes, that an old
value is read, or that a call ends otherwise than with an error of the documented tree.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter

import pytest

from tests.chaos.checker import check
from tests.chaos.history import OK, read_history
from tests.chaos.load import USERS, Settings
from tests.chaos.run import Outcome
from tests.support.deployment import Deployment, Protection, calling
from tests.support.network import Network, network
from tests.support.waiting import eventually

NODES = ["one", "two", "three"]
TIMEOUT_SECONDS = 1.0
CUT_SECONDS = 3.0
"""Longer than a lease, so that a node that is cut off from all others stops to serve."""
HEALED_SECONDS = 2.0
RECOVERY_SECONDS = 15.0
SEED = 1

NODE_NODE = ("one", "two")
CLIENT_NODE = ("user", "one")
NODE_NAMES = ("two", "names")
CLIENT_NAMES = ("user", "names")


@dataclass
class Scene:
    """A cluster of three nodes, each on a host, and processes that use it on another one.

    Attributes:
        events: when something was done, and what.
    """

    deployment: Deployment
    timeout: float
    events: list[tuple[float, str]] = field(default_factory=list)
    began_at: float = field(default_factory=time.monotonic)

    @property
    def network(self) -> Network:
        """The hosts."""
        return self.deployment.network

    def cut(self, *pairs: tuple[str, str]) -> None:
        """Cut some pairs."""
        for pair in pairs:
            self._note(f"cut {' and '.join(pair)}")
            self.network.cut(*pair)

    def heal(self, *pairs: tuple[str, str]) -> None:
        """Connect them again."""
        for pair in pairs:
            self.network.heal(*pair)
            self._note(f"healed {' and '.join(pair)}")

    def recover(self) -> None:
        """Wait until all nodes serve a new client."""
        with calling(self.network["user"], self.deployment.client("user")) as call:
            eventually(lambda: self._all_serve(call("stats")), RECOVERY_SECONDS, pause=0.1)
        self._note("all nodes serve")

    def _all_serve(self, stats: object) -> bool:
        nodes = stats.nodes.values()  # type: ignore[attr-defined]
        return len(nodes) == len(NODES) and all(node.serving for node in nodes)

    def _note(self, text: str) -> None:
        self.events.append((time.monotonic(), text))

    @contextmanager
    def load(self, processes: int = 1) -> Iterator[None]:
        """Use the cache meanwhile."""
        user, workers = self.network["user"], []
        for number in range(processes):
            settings = Settings(
                nameserver=self.deployment.nameserver,
                directory=str(self.network.shared),
                number=number,
                processes=processes,
                seed=SEED,
                timeout=self.timeout,
            )
            command = ("-W", "ignore", "-m", "tests.chaos.load", settings.to_json())
            workers.append(user.start(*command, stdin=-1))
        last = [self.network.shared / f"{number}.{USERS - 1}.jsonl" for number in range(processes)]
        eventually(lambda: all(path.exists() and path.stat().st_size for path in last), 20.0)
        yield
        for worker in workers:
            said = worker.communicate(timeout=20.0)[0]
            assert not worker.returncode, said

    def judge(self) -> Outcome:
        """Return what the checker finds."""
        calls = read_history(self.network.shared)
        violations = check(calls, (), self.timeout)
        return Outcome(["network"], calls, self.events, violations, [], self.began_at)


@contextmanager
def running(timeout: float) -> Iterator[Scene]:
    """Run a cluster."""
    with network("names", *NODES, "user") as hosts:
        protection = Protection(tls=False)
        protection.prepare(hosts)
        deployment = Deployment(hosts, protection, attrgetter("ipv4"))
        deployment.start_nameserver("names")
        deployment.start_nodes(NODES)
        yield Scene(deployment, timeout)


def check_history(scene: Scene) -> Outcome:
    """Fail if a promise was broken, or if nothing was done. Return what was done."""
    outcome = scene.judge()
    print(outcome.summary())
    if not outcome.good:
        pytest.fail(outcome.report(), pytrace=False)
    return outcome


def test_cuts_break_no_promise() -> None:
    with running(TIMEOUT_SECONDS) as scene:
        with scene.load():
            for pairs in ([NODE_NODE, NODE_NAMES], [CLIENT_NODE, CLIENT_NAMES]):
                scene.cut(*pairs)
                time.sleep(1.0)
                scene.heal(*pairs)
            scene.recover()
        outcome = check_history(scene)
    assert sum(call.outcome == OK for call in outcome.calls) > 100
