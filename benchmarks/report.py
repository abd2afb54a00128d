"""``docs/performance.md``, written from results."""

from __future__ import annotations

import inspect
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.results import Results
from benchmarks.tables import for_markdown, tables
from benchmarks.targets import summary

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"

_INTRODUCTION = """\
# Performance

This page compares pyrocache with alternatives on one machine: redis-py and redis.asyncio (with hiredis) and
redis-server; pymemcache and memcached; a plain dict behind a stock Pyro5 proxy and daemon; the dict of a
`multiprocessing.Manager`. The benchmarks write this page from their results, including those in which pyrocache is
slower.

```console
$ pip install '.[bench]' && apt-get install redis-server memcached
$ python -m benchmarks                    # run all cases and write this page
$ python -m benchmarks --quick            # check in less than a minute that all cases run; the results are rough
$ python -m benchmarks --only single      # run one case
$ python -m benchmarks report             # write this page from the newest saved results
```
"""

_METHOD = """\
## How

- Servers and clients are processes on one machine. Loopback TCP is compared with loopback TCP, and Unix sockets with
  Unix sockets. Redis does not persist anything. Clients have the default settings of their libraries with two
  exceptions: all set `TCP_NODELAY`, and the memcached client waits for replies. Redis and memcached are written in C,
  the others in Python.
- All store the same keys (16 characters) and the same objects (dicts of `str`, `bytes`, `int` and a tuple), pickled
  with protocol 5. Pickling is part of every call.
- The contenders run in turn, in short slices; a different one begins each round. *ours/theirs* is the ratio of our
  calls per second to theirs in the same round. The table shows the median of the rounds and the quartiles. *of
  medians* is the ratio of the two medians. pyrocache is faster if a ratio is above 1.
- Latency is measured for each call, over all rounds. *calls/s* is the rate of the median round, of all clients
  together. *CPU* is the CPU time per call, of all server processes and of all client processes (including the loop
  that makes and times the calls).
- Compare ratios rather than absolute values. Two processes that communicate are several times slower when the kernel
  runs them on different cores than on the same core. This differs between contenders and changes from moment to
  moment; the quartiles are far apart where it happens. CPU time per call depends on it least.
"""

_SHORT = """\
## Where pyrocache is slower, and why

- **Batches over three nodes** (`get_many` and `set_many` of 1000 keys) are slower than one Redis server. Most of the
  time of a `get_many` is `pickle.loads`; each of the owners, the encoded keys and the sending takes about a tenth.
  With three nodes instead of one, three messages wake three processes on the two cores that the client needs as well.
  With one node, `get_many` is about as fast as Redis. A `set_many` costs a node more than Redis, because each entry
  is two Python objects, an entry in a table and a note of its use, and because each key is hashed to count the
  mutations of its partition. Already in use: columns instead of pairs, checks and look-ups that run in C, one pickler
  for all values, and decoding while other nodes still work. More speed would need C code for routing and for the
  table of a node, or more cores.
- **Eight clients of one node** make fewer calls per second than with memcached. Clients and server share two cores,
  so only the CPU time per call counts, and memcached stores in C. The ratios vary from run to run: `get` 0.7 to 1.0 of
  pymemcache and 1.3 to 1.9 of redis-py, `set` 0.55 to 0.9 and 1.35 to 2.0.
- **Signed values** take a few microseconds longer. The figures above are differences of two times which vary by more
  than that; in a quiet run they were 2.9 and 3.2 µs.
- **The store alone** is slower than cachetools, which does not count bytes, and much slower than caches written in
  Rust. A `get` of the store is a twentieth of the time of a client's `get`; a `set` that evicts is a fifth of a
  client's `set`.
- **`set` of a 1 MB array** takes twice as long as with Redis and memcached, which write into memory that they already
  have. A node uses new memory pages for it, and a page fault costs 2 µs on a virtual machine such as this one. From 4
  MiB on, huge pages compensate for that.
- **A new connection** with the proof of the secret takes 0.2 to 0.3 ms more than one without: one more round trip, and
  computation at each end. One of redis-py with a password is 1.2 (TCP) to 1.7 times (Unix) as fast. A client keeps its
  connections, so this is paid once.
- **32 clients on two cores** gain less than 8, because they mostly wait for a processor.
- Both ends of a connection spin for some microseconds before they block. The CPU time of a single client's calls
  includes this. Next to CPU-bound processes they block at once, and the ratios are nearer to 1.
- `Manager` and stock Pyro5 serve a dict without a memory limit, expiry or eviction.
"""


def markdown(results: Results) -> str:
    """The page."""
    parts = [
        _INTRODUCTION,
        "## Where",
        _where(results),
        _METHOD,
        "## Targets",
        for_markdown(summary(results, CASES), texts=4),
        _SHORT,
    ]
    for name, case in CASES.items():
        rows = [row for row in results.rows if row.case == name]
        if not rows:
            continue
        parts += [f"## {case.TITLE}", inspect.getdoc(case) or ""]
        for shown in tables(rows):
            parts += [f"**{shown.title}**", for_markdown(shown)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _where(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    lines = [
        f"{results.date[:10]}, {machine['cpus']} cores ({machine['cpu']}), {machine['memory']}, {machine['kernel']}.",
        f"{versions}.",
    ]
    if results.quick:
        lines.append("**A quick run: these figures are rough.**")
    lines += results.notes
    return "\n".join(lines)
