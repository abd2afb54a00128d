"""The cluster that a run harms, and the record of what may be lost by that.

Each method does one harm, and notes it. Where one copy and a dead node, or a move, explain that entries vanish, it adds
a `Loss` for the keys concerned: a key belongs to the node that ranks first for it, by the nodes' names alone. Killed
nodes stay members. Everything listens on loopback and ends with the run.

Thread safety: two faults may use one `Scene` at once; each claims the node that it harms.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pyrocache import LocalCluster, PyroCacheError
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.local import LocalNode
from pyrocache.runtime.child_process import ChildProcess, start_nameserver, start_node
from tests.chaos.cutter import Cutter
from tests.chaos.history import Loss, Recorder
from tests.chaos.load import CHILDREN_COUNTERS, COUNTERS, REGISTERS, SWEPT, SWEPT_NAME, USERS, Settings
from tests.support.processes import ROOT, environment
from tests.support.waiting import eventually

LEASE_SECONDS = 2.0
TIMEOUT_SECONDS = 1.0
_SLACK_SECONDS = LEASE_SECONDS + 0.5
"""How long after a node has joined or left its keys may still be lost: an old owner may serve until its lease ends."""
AT_A_PORT, LISTED = OTHERS = ("the other cluster's ", "the listed cluster's ")
"""Before the names of another cluster's keys, in histories: of one at a dead node's port, and of one that the name
server lists. A node that joins may find that cluster in the listing."""
_TAKE_SECONDS = 0.02
_MEMORY = 256 * 2**20


class Scene:
    """A `LocalCluster`, its load, and what happened to it.

    Args:
        seed: of all choices.
        directory: where the histories go.

    Attributes:
        end_at: when the faults are to end (monotonic seconds); set by the run.
        keys: all keys whose loss is recorded.
        losses: as the checker takes them.
        events: when something was done, and what.
        ended: nodes that ended although nothing was done to them.
    """

    def __init__(self, seed: str, directory: Path) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        self.losses: list[Loss] = []
        self.events: list[tuple[float, str]] = []
        self.ended: list[str] = []
        self.end_at = float("inf")
        self.keys = [
            *(*REGISTERS, *COUNTERS, *CHILDREN_COUNTERS, *SWEPT),
            *(other + key for other in OTHERS for key in REGISTERS),
        ]
        self.nameserver_lock = threading.Lock()  # held by the fault that harms the name server
        self._condition = threading.Condition()  # guards: _claimed, _changing, losses
        self._claimed: list[LocalNode] = []
        self._changing: list[str] = []
        self._killed: set[int] = set()  # processes whose end is known
        self._recorders: list[Recorder] = []
        self._workers: list[subprocess.Popen[bytes]] = []
        self._others: list[ChildProcess] = []
        self._stack = contextlib.ExitStack()
        self.cluster = LocalCluster(3, max_memory=_MEMORY)
        self._stack.callback(self.cluster.stop)
        self.cutter = Cutter(self.random)
        self._stack.callback(self.cutter.stop)
        self._names = {node.name for node in self.cluster.nodes}
        cache = self._stack.enter_context(self.cluster.client())
        swept = cache.namespace(SWEPT_NAME)
        self._encoded = {
            key: (swept if key in SWEPT else cache)._context.encode_key(key.rpartition("cluster's ")[2])
            for key in self.keys
        }
        for node in self.cluster.nodes:
            self._listen(node)

    # The load --------------------------------------------------------------------------------------------

    def start_load(
        self, processes: int, *, asyncio: float, proxied: bool, forks: bool, renew_seconds: float
    ) -> None:
        """Start the processes that use the cache. ``asyncio`` is the part of them with the asyncio client."""
        for number in range(processes):
            settings = Settings(
                nameserver=self.cluster.nameserver,
                directory=str(self.directory),
                number=number,
                processes=processes,
                seed=self.random.randrange(2**32),
                timeout=TIMEOUT_SECONDS,
                proxied=proxied and number % 2 == 0,
                forks=forks,
                renew_seconds=renew_seconds,
                asyncio=number >= processes * (1 - asyncio),
            )
            self._workers.append(
                subprocess.Popen(
                    [sys.executable, "-W", "ignore", "-m", "tests.chaos.load", settings.to_json()],
                    stdin=subprocess.PIPE,
                    cwd=ROOT,
                    env=environment(),
                    process_group=0,  # Ctrl-C reaches this process alone, which ends the others
                )
            )
        last = [self.directory / f"{number}.{USERS - 1}.jsonl" for number in range(processes)]
        eventually(lambda: all(path.exists() and path.stat().st_size for path in last), 20.0)

    def stop_load(self) -> None:
        """End it, and wait until the histories are written. Raises `RuntimeError` if a process failed."""
        for recorder in self._recorders:
            recorder.close()
        workers, self._workers = self._workers, []
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.close()
        for worker in workers:
            try:
                worker.wait(20.0)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        if statuses := [worker.returncode for worker in workers if worker.returncode]:
            raise RuntimeError(f"A process of the load ended with {statuses}; its history is not complete.")

    @property
    def load_pids(self) -> list[int]:
        """Return the processes of the load."""
        return [worker.pid for worker in self._workers]

    def recorder(self, purpose: str) -> Recorder:
        """Return a new recorder, for calls that a fault makes by itself."""
        client = f"{purpose} {len(self._recorders)}"
        self._recorders.append(Recorder(self.directory / f"{client}.jsonl", client, TIMEOUT_SECONDS))
        return self._recorders[-1]

    # Time ------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Record what is done now."""
        self.events.append((time.monotonic(), text))

    @property
    def over(self) -> bool:
        """Return whether no further fault is to begin."""
        return time.monotonic() >= self.end_at

    def wait(self, seconds: float) -> None:
        """Wait, but not beyond the end of the run."""
        time.sleep(max(0.0, min(seconds, self.end_at - time.monotonic())))

    # Nodes -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def claimed(self, wanted: LocalNode | None = None) -> Iterator[LocalNode]:
        """Wait for a node, or that one, which no other fault harms. It runs afterwards, unless it has left."""
        with self._condition:
            while not (free := [node for node in self._free() if wanted is None or node is wanted]):
                self._condition.wait()
            node = self.random.choice(free)
            self._claimed.append(node)
        try:
            yield node
        finally:
            self._release(node)

    def _release(self, node: LocalNode) -> None:
        try:
            node._process.signal(signal.SIGCONT)
            if not node.alive and node in self.cluster.nodes:
                self.restart(node)
        finally:
            with self._condition:
                self._claimed = [other for other in self._claimed if other is not node]
                self._condition.notify_all()

    def losing_all(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Note what is done, and that any entry may vanish meanwhile and for a while after."""
        return self._vanishing(self.keys, what)

    def keys_of(self, name: str) -> frozenset[str]:
        """Return the keys that a node has if it is a member, or more."""
        with self._condition:
            living = {node.name for node in self.cluster.nodes if node.alive}
            others = living - {*self._changing, name}
        view = ClusterView(Member(member, "127.0.0.1", 1) for member in (*others, name))
        return frozenset(key for key, encoded in self._encoded.items() if view.owner(encoded).name == name)

    def kill(self, node: LocalNode) -> None:
        """Kill a node."""
        with self._losing(node.name, f"kill {node.name}", slack=0.0):
            self._killed.add(node.pid)
            node._process.kill()

    def restart(self, node: LocalNode) -> None:
        """Start a dead node again under its name."""
        with self._losing(node.name, f"restart {node.name}"):
            try:
                self.cluster.restart(self.cluster.nodes.index(node))
            except PyroCacheError as error:
                self.note(f"no restart: {error}")  # `watch` tries again
                return
        self._listen(node)

    def pause(self, node: LocalNode) -> None:
        """Suspend a node."""
        node._process.pause()
        self.note(f"stop {node.name}")

    def resume(self, node: LocalNode) -> None:
        """Continue a node."""
        self.note(f"continue {node.name}")
        node._process.signal(signal.SIGCONT)

    def join(self) -> LocalNode | None:
        """Start one more node, which should take the name after all others. Return it; None if it could not join."""
        expected = f"cache.node.{max(int(node.name.rpartition('.')[2]) for node in self.cluster.nodes) + 1}"
        with self._losing(expected, f"join of {expected}"):
            try:
                node = self.cluster.add_node()
            except PyroCacheError as error:
                self.note(f"no join of {expected}: {error}")
                return None
        self.note(f"{node.name} has joined")
        self._listen(node)
        return node

    def leave(self, node: LocalNode | None) -> None:
        """Shut a node down, unless it took the name of one of the first. Takes what `join` returns."""
        if node is None or node.name in self._names:
            return
        with self.claimed(node), self._losing(node.name, f"leave of {node.name}"):
            node._process.terminate()
            node._process.wait()
            self.cluster.nodes.remove(node)

    def take_over(self, node: LocalNode) -> bool:
        """Start another node under the name of one that is silent or dead. Return whether it got the name."""
        with self._losing(node.name, f"take-over of {node.name}"):
            settings = {"nameserver": self.cluster.nameserver, "name": node.name, "max_memory": _MEMORY}
            process = start_node(settings, quiet=True)
            self._others.append(process)
            try:
                ready = process.wait_until_ready()
            except PyroCacheError as error:
                self.note(f"no take-over: {error}")
                return False
        self.note(f"{node.name} is taken over")
        old, node._process = node._process, process
        self._others.append(old)
        node.pid, node.address = ready["pid"], f"{ready['host']}:{ready['port']}"
        self._listen(node)
        return True

    def watch(self) -> None:
        """Note nodes that have ended by themselves, and start them again."""
        with self._condition:
            dead = [node for node in self._free() if not node.alive]
            self._claimed += dead
        for node in dead:
            if node.pid not in self._killed:
                self._killed.add(node.pid)
                self.ended.append(node.name)
                self.note(f"{node.name} has ended by itself")
            if any(other.name == node.name for other in self.cluster.nodes if other is not node):
                self.cluster.nodes.remove(node)  # another one has its name
            self._release(node)

    # The name server -------------------------------------------------------------------------------------

    def kill_nameserver(self) -> None:
        """Kill it."""
        self.note("kill the name server")
        self.cluster.kill_nameserver()

    def start_nameserver(self) -> None:
        """Start it again without its entries, and do not wait for the nodes."""
        self.cluster.kill_nameserver()
        host, _, port = self.cluster.nameserver.rpartition(":")
        process = start_nameserver(host=host, port=int(port), quiet=True)
        self.cluster._nameserver_process = process
        process.wait_until_ready()
        self.note("the name server is empty")

    @property
    def nameserver_process(self) -> ChildProcess:
        """Return its process."""
        return self.cluster._nameserver_process

    # Other processes -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def other_cluster(self, name: str = "", port: int = 0) -> Iterator[str]:
        """Run another cluster, whose nodes have the same names. Yield the address of its name server.

        Args:
            name, port: where that one of its nodes listens.
        """
        nameserver = start_nameserver(quiet=True)
        self._others.append(nameserver)
        address = nameserver.wait_until_ready()["address"]
        nodes = []
        for number in range(1, 4):
            ours = f"cache.node.{number}"
            settings = {"nameserver": address, "name": ours, "port": port if name == ours else 0}
            nodes.append(start_node({**settings, "max_memory": _MEMORY}, quiet=True))
        self._others += nodes
        for node in nodes:
            node.wait_until_ready()
        self.note("there is another cluster")
        try:
            yield address
        finally:
            for process in (*nodes, nameserver):
                process.kill()
            self.note("the other cluster is gone")

    @contextlib.contextmanager
    def without_descriptors(self, pids: Sequence[int]) -> Iterator[None]:
        """Leave these processes no free descriptors, also where they close some meanwhile."""
        before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
        over = threading.Event()

        def take_all() -> None:
            while not over.wait(_TAKE_SECONDS):
                for pid, (_, hard) in before.items():
                    _limit_descriptors(pid, _first_free(pid), hard)

        thread = threading.Thread(target=take_all)
        thread.start()
        self.note(f"no descriptors for {pids}")
        try:
            yield
        finally:
            over.set()
            thread.join()
            for pid, limits in before.items():
                _limit_descriptors(pid, *limits)
            self.note("descriptors again")

    def close(self) -> None:
        """End all processes."""
        self.end_at = 0.0
        for worker in self._workers:
            worker.kill()
            worker.wait()
        for process in (*(node._process for node in self.cluster.nodes), *self._others):
            process.kill()
        self._stack.close()

    def _free(self) -> list[LocalNode]:
        claimed = {id(node) for node in self._claimed}
        return [node for node in self.cluster.nodes if id(node) not in claimed]

    def _listen(self, node: LocalNode) -> None:
        self.cutter.listen(int(node.address.rpartition(":")[2]))

    @contextlib.contextmanager
    def _losing(self, name: str, what: str, slack: float = _SLACK_SECONDS) -> Iterator[None]:
        """Note what is done, and that the keys of a node may vanish meanwhile and ``slack`` seconds longer."""
        keys = self.keys_of(name)
        with self._condition:
            self._changing.append(name)
        try:
            with self._vanishing(keys, what, slack):
                yield
        finally:
            with self._condition:
                self._changing.remove(name)

    @contextlib.contextmanager
    def _vanishing(self, keys: Iterable[str], what: str, slack: float = _SLACK_SECONDS) -> Iterator[None]:
        self.note(what)
        start = time.monotonic()
        try:
            yield
        finally:
            with self._condition:
                self.losses.append(Loss(start, time.monotonic() + slack, frozenset(keys)))


def _first_free(pid: int) -> int:
    """Return the lowest descriptor that a process does not use."""
    try:
        used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    except FileNotFoundError:  # it has ended
        return 0
    return next(number for number in range(len(used) + 1) if number not in used)


def _limit_descriptors(pid: int, soft: int, hard: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
