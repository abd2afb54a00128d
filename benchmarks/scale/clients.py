"""Many clients of a simulated cluster: real routers, each in a greenlet that waits on the cluster's clock.

A node answers with its real guard and dispatcher. A reply with a view is parsed once, and the CPU time of that is
charged to each client that gets it. The name server answers one query after the other. Each takes the CPU time that was
measured for it, and those beyond the limits of the real name server are refused.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any
from unittest import mock

from greenlet import getcurrent, greenlet

from benchmarks.scale.cluster import Cluster, silence
from benchmarks.scale.wire import MeteredDirectory, answer
from pyrocache.client.routing import views
from pyrocache.client.routing.router import Router
from pyrocache.client.routing.views import Views
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import view_from_wire
from pyrocache.errors import NameServerUnavailable, PyroCacheError
from pyrocache.nameserver.process import _LIMITS
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import Listing, WatchedLookUp
from pyrocache.net.failures import Refused
from pyrocache.net.membership import Membership
from pyrocache.protocol.commands import GET, Command
from pyrocache.protocol.framing import HEADER_BYTES
from pyrocache.protocol.messages import UNUSUAL, CallPacker, unpack_result
from pyrocache.protocol.refusals import STALE_VIEW, unpack_refusal

CLIENTS = "clients"
TIMEOUT_SECONDS = 5.0


class Queue:
    """The name server's one processor, as all clients together use it: queries wait, or are refused.

    Attributes:
        asked, refused: the number of queries.
        longest: the most queries that waited.
    """

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._free_at = 0.0
        self.asked = self.refused = self.longest = 0
        self._directory = MeteredDirectory(crowd.cluster.server, CLIENTS, keep=False)
        self._listing: Listing | None = None

    def listing(self, timeout: float = TIMEOUT_SECONDS) -> Listing:
        """Return the listing once it is this query's turn."""
        crowd, server = self._crowd, self._crowd.cluster.server
        self.asked += 1
        now = crowd.cluster.clock.now
        seconds = server.listing_seconds + crowd.handshake_seconds
        waiting = round(max(0.0, self._free_at - now) / seconds) if seconds else 0
        self.longest = max(self.longest, waiting)
        if waiting >= _LIMITS.max_queued_calls:
            self.refused += 1
            error = NameServerUnavailable("The name server has too much to do.")
            error.overloaded = True
            raise error
        self._free_at = max(self._free_at, now) + seconds
        crowd.sleep(self._free_at - now)
        return self._directory.listing()


class Crowd:
    """Clients of one cluster.

    Args:
        size: their number.
        handshake_seconds: CPU time of a handshake at the name server.
        seed: of their pauses and keys.

    Attributes:
        outcomes: how their calls have ended.
        queue: the name server.
    """

    def __init__(self, cluster: Cluster, size: int, handshake_seconds: float = 0.0, seed: int = 1) -> None:
        self.cluster = cluster
        self.handshake_seconds = handshake_seconds
        self.random = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.queue = Queue(self)
        self._views: dict[int, tuple[ClusterView | None, float]] = {}
        self._order = count()
        self._events: list[tuple[float, int, greenlet]] = []
        self._hub = getcurrent()
        self._packers: dict[str, CallPacker] = {}
        self.clients = [_Router(self) for _ in range(size)]

    @property
    def failed(self) -> int:
        """The number of calls that raised."""
        good = ("answered", "slower than 50 ms")
        return sum(number for outcome, number in self.outcomes.items() if outcome not in good)

    def settle(self, view: ClusterView) -> None:
        """Let all clients know ``view``."""
        for client in self.clients:
            client._membership.view = view

    def sleep(self, seconds: float) -> None:
        """Let others run, in the greenlet of a client."""
        self._at(self.cluster.clock.now + seconds, getcurrent())
        self._hub.switch()

    def start(self, per_second: float, until: Callable[[], bool], within: float) -> None:
        """Let each client get ``per_second`` random keys, at random times, for as long as ``until`` is False.

        Args:
            within: the first requests are spread over so many seconds.
        """
        for number, client in enumerate(self.clients):
            begun = greenlet(self._work)
            begun.switch(client, per_second, until, within * (number + 1) / len(self.clients))

    def run(self, seconds: float) -> None:
        """Let clients and nodes run for some time."""
        clock = self.cluster.clock
        until = clock.now + seconds
        with mock.patch.object(views, "view_from_wire", self._view_from_wire):
            while self._events and self._events[0][0] <= until:
                at, _, sleeper = heapq.heappop(self._events)
                self.cluster.run(max(0.0, at - clock.now))
                sleeper.switch()
        self.cluster.run(max(0.0, until - clock.now))

    def close(self) -> None:
        """End all clients, in the middle of what they do."""
        for _, _, sleeper in self._events:
            sleeper.throw()
        self._events.clear()

    def ask(self, member: Member, command: Command, arguments: tuple[Any, ...]) -> Any:
        """Make a call of one client to a node."""
        meter, node = self.cluster.meter, self.cluster.nodes.get(member.identity)
        if node is None or node.dead:
            raise silence(member)
        packer = self._packers.get(member.name) or self._packers.setdefault(
            member.name, CallPacker(member.name)
        )
        with meter.part(CLIENTS):
            request = packer.pack(command.name, arguments, 1)
        assert isinstance(request, bytes)
        with meter.part("members asked by clients"):
            reply = answer(node.dispatcher, request)
        with meter.part(CLIENTS):
            result = unpack_result(reply, 1) if len(reply) < 2**16 else UNUSUAL
            refusal = None
            if result is UNUSUAL or (isinstance(result, dict) and result.get("__exception__")):
                refusal = unpack_refusal(reply[HEADER_BYTES:])
        if refusal is None:
            meter.count("clients: get", len(request) + len(reply))
            return result
        kind = "a view" if refusal.code == STALE_VIEW else refusal.code
        meter.count(f"clients: refused with {kind}", len(request) + len(reply))
        raise Refused(refusal)

    def _at(self, at: float, sleeper: greenlet) -> None:
        heapq.heappush(self._events, (at, next(self._order), sleeper))

    def _work(self, client: _Router, per_second: float, until: Callable[[], bool], first: float) -> None:
        self.sleep(first)
        clock = self.cluster.clock
        while not until():
            key = self.random.randbytes(12)
            began = clock.now
            try:
                client.call(GET, key, (), Deadline(TIMEOUT_SECONDS, clock))
                self.outcomes["answered"] += 1
            except PyroCacheError as error:
                self.outcomes[type(error).__name__] += 1
            self.outcomes["slower than 50 ms"] += clock.now - began > 0.05
            self.sleep(self.random.expovariate(per_second))

    def _view_from_wire(self, data: Any) -> ClusterView | None:
        if data is None:
            return None
        read = self._views.get(data["number"])
        if read is None:
            began = time.process_time()
            view = view_from_wire(data)
            read = self._views[data["number"]] = view, time.process_time() - began
        self.cluster.meter.charge(CLIENTS, read[1])
        return read[0]


class _Router(Router):
    """The router of one client."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        super().__init__(
            crowd.queue,  # type: ignore[arg-type]
            sleep=crowd.sleep,
            jitter=crowd.random.random,
            clock=crowd.cluster.clock,
        )

    def _connect(self, view: ClusterView) -> None:
        self._connections = self._pinning = _Nodes(self._crowd)  # type: ignore[assignment]
        nameserver = WatchedLookUp(self._directory)
        self._membership = _Membership(self._crowd, nameserver)
        self._membership.view = view
        self.views = Views(self._membership, nameserver, self._clock, self._nameserver, sleep=self._sleep)

    def knows(self, number: int) -> bool:
        """Whether it has view ``number`` or a newer one."""
        return self._membership.view.number >= number

    @property
    def known_at(self) -> float:
        """When this client got its view."""
        assert isinstance(self._membership, _Membership)
        return self._membership.known_at


class _Membership(Membership):
    """Notes when the view was replaced."""

    def __init__(self, crowd: Crowd, lookup: Callable[[float], Listing]) -> None:
        self._crowd = crowd
        super().__init__(lookup)

    @property
    def view(self) -> ClusterView:
        """The latest view."""
        return self._view

    @view.setter
    def view(self, view: ClusterView) -> None:
        self._view = view
        self.known_at = self._crowd.cluster.clock.now


class _Nodes:
    """The connections of one client, with what `Router` uses of `Connections`."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd

    def call(
        self,
        member: Member,
        command: Command,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        largest_value: int = 0,
    ) -> Any:
        """Make a call; see `Connections.call`."""
        return self._crowd.ask(member, command, arguments)

    def exchange(self, requests: Sequence[Any], deadline: Deadline) -> Iterator[tuple[int, Any]]:
        """Calls to several nodes are not simulated."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Nothing is held."""

    close = disconnect = abandon
