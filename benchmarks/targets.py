"""What we want of pyrocache, beside what was measured."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from benchmarks.cases.aio import AWAITED, GATHERED, HEARTBEAT, REDIS_ASYNCIO
from benchmarks.field import MEMCACHED, OURS, REDIS, SIGNED, STOCK_PYRO, TRANSPORTS
from benchmarks.results import Results
from benchmarks.tables import Shown


@dataclass(frozen=True, slots=True)
class Target:
    """A bound, or two, for one figure.

    Attributes:
        text: what it is about.
        case, table, operation, contender, figure: where the figure is in the results.
        at_least, at_most: the bounds.
        unit: of the figure; ``×`` for a ratio to the contender.
    """

    text: str
    case: str
    table: str
    operation: str
    contender: str
    figure: str = "ratio"
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "×"

    def wanted(self) -> str:
        """The bounds as a text."""
        bounds = {"at least": self.at_least, "at most": self.at_most}
        return " and ".join(
            f"{word} {bound:g} {self.unit}" for word, bound in bounds.items() if bound is not None
        )

    def met(self, measured: float) -> bool:
        """Whether ``measured`` is within the bounds."""
        return (self.at_least is None or measured >= self.at_least) and (
            self.at_most is None or measured <= self.at_most
        )


def _of_one_client(transport: str, bounds: dict[str, float]) -> list[Target]:
    return [
        Target(
            f"{name}, 100 B, {transport}: calls/s, to {peer}",
            "single",
            f"100 B, {transport}",
            operation,
            peer,
            at_least=bound,
        )
        for name, operation in (("get", "get hit"), ("set", "set"))
        for peer, bound in bounds.items()
    ]


def _of_8_processes(bounds: dict[str, float]) -> list[Target]:
    targets = []
    for verb in ("get", "set"):
        where = ("processes", "8 processes, TCP", verb)
        for peer, bound in bounds.items():
            targets.append(
                Target(f"{verb}, 8 processes, TCP: calls/s, to {peer}", *where, peer, at_least=bound)
            )
        text = f"{verb}, 8 processes, TCP: p99 latency, to {MEMCACHED}"
        targets.append(Target(text, *where, MEMCACHED, "p99_ratio", at_most=1.5))
    return targets


def _of_batches(verb: str, bounds: dict[str, float]) -> list[Target]:
    return [
        Target(
            f"{verb}, 1000 keys, 3 nodes, TCP: calls/s, to {peer}",
            "batches",
            "1000 keys, TCP",
            verb,
            peer,
            at_least=bound,
        )
        for peer, bound in bounds.items()
    ]


_8_GETS = ("processes", "8 processes, TCP", "get")

TARGETS = [
    *_of_one_client("TCP", {REDIS: 1.3, MEMCACHED: 0.9, STOCK_PYRO: 1.8}),
    *_of_one_client("Unix", {REDIS: 1.8, MEMCACHED: 0.8}),
    *_of_8_processes({REDIS: 1.6, MEMCACHED: 0.9, STOCK_PYRO: 2.2}),
    Target("get, 8 processes, TCP: server CPU per call", *_8_GETS, OURS, "server_us", at_most=14, unit="µs"),
    Target(
        f"get, 8 processes, TCP: server CPU per call, to {MEMCACHED}",
        *_8_GETS,
        MEMCACHED,
        "server_cpu_ratio",
        at_most=1.3,
    ),
    *(
        Target(
            f"{verb}, 16 threads, TCP: calls/s, to {REDIS}",
            "threads",
            "16 threads, TCP",
            verb,
            REDIS,
            at_least=1.5,
        )
        for verb in ("get", "set")
    ),
    Target(
        f"get, awaited, TCP: calls/s, to {REDIS_ASYNCIO}",
        "aio",
        f"{AWAITED}, TCP",
        "get",
        REDIS_ASYNCIO,
        at_least=1.5,
    ),
    Target(
        f"gather of 1,000 gets, TCP: calls/s, to {REDIS_ASYNCIO}",
        "aio",
        f"{GATHERED}, TCP",
        "get",
        REDIS_ASYNCIO,
        at_least=3,
    ),
    Target(
        f"heartbeat beside 100 tasks, TCP: p99, to {REDIS_ASYNCIO}",
        "aio",
        f"{HEARTBEAT}, TCP",
        "get and set",
        REDIS_ASYNCIO,
        "p99_ratio",
        at_most=1,
    ),
    *_of_batches("get_many", {REDIS: 1.15, MEMCACHED: 2.8}),
    *_of_batches("set_many", {REDIS: 1.5, MEMCACHED: 1.3}),
    *(
        Target(
            f"get of a 16 MB array, TCP: calls/s, to {peer}",
            "arrays",
            "16 MB, TCP",
            "get",
            peer,
            at_least=bound,
        )
        for peer, bound in {REDIS: 2.0, MEMCACHED: 1.0}.items()
    ),
    *(
        Target(
            f"get of a signed value of 100 B, {transport}: longer than unsigned",
            "signing",
            f"100 B, {transport}",
            "get",
            SIGNED,
            "extra_us",
            at_most=4,
            unit="µs",
        )
        for transport in TRANSPORTS
    ),
    Target(
        "owner of a key, 3 nodes",
        "routing",
        "Owner of a key",
        "3 nodes",
        OURS,
        "lookup_us",
        at_most=0.6,
        unit="µs",
    ),
    Target(
        "owner of a key, 1000 nodes",
        "routing",
        "Owner of a key",
        "1000 nodes",
        OURS,
        "lookup_us",
        at_most=0.6,
        unit="µs",
    ),
    Target(
        "owner of a key, 1000 nodes, to 3 nodes",
        "routing",
        "Owner of a key",
        "1000 nodes",
        OURS,
        "to_3_nodes",
        0.8,
        1.2,
    ),
    Target(
        "memory beyond key and value",
        "memory",
        "Memory",
        "no expiry",
        OURS,
        "bytes_per_entry",
        at_most=200,
        unit="bytes per entry",
    ),
    Target(
        "8 busy clients beside 1000 idle ones, to 8 alone",
        "connections",
        "1000 idle connections",
        "get",
        OURS,
        "ratio",
        at_least=0.9,
    ),
    Target(
        "LocalCluster(3) to the first get",
        "start",
        "Start",
        "LocalCluster(3) to the first get",
        OURS,
        "median_ms",
        at_most=1500,
        unit="ms",
    ),
    Target(
        "import pyrocache", "start", "Start", "import pyrocache", OURS, "median_ms", at_most=60, unit="ms"
    ),
    Target(
        "import of the client",
        "start",
        "Start",
        "from pyrocache import PyroCacheClient",
        OURS,
        "median_ms",
        at_most=60,
        unit="ms",
    ),
]


def summary(results: Results, cases: Container[str]) -> Shown:
    """The targets that ``cases`` are about, with what was measured and whether they are met."""
    lines = []
    for target in TARGETS:
        if target.case not in cases:
            continue
        measured = results.figure(
            target.case, target.table, target.operation, target.contender, target.figure
        )
        if measured is None:
            lines.append([target.text, target.wanted(), "", "not measured"])
        else:
            verdict = "met" if target.met(measured) else "MISSED"
            lines.append([target.text, target.wanted(), f"{measured:.3g} {target.unit}", verdict])
    return Shown("Targets", ["", "wanted", "measured", ""], lines)
