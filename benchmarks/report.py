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

This page compares pyrocache with four alternatives on one machine: redis-py (with hiredis) and redis-server; pymemcache
and memcached; a plain dict behind a stock Pyro5 proxy and daemon; the dict of a `multiprocessing.Manager`. The
benchmarks write this page from their results, including the results in which pyrocache is slower.

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
## What falls short, and why

- **Batches over three nodes** are slower than one Redis (`get_many` and `set_many` of 1000 keys). Most of a
  `get_many` is `pickle.loads` itself; finding the owners, the keys' bytes and sending take about a tenth each. What
  three nodes add to one is in the tables: three messages wake three processes, whose caches are cold by then, on two
  cores that the client needs too: about 150 µs of CPU time a node at either end. With one node, `get_many` is about
  level with Redis. Tried: columns instead of pairs, checks and look-ups that run in C, one pickler for all values,
  replies decoded while other nodes still work. What is left would take C code for routing and for a node's table, or
  more cores. A `set_many` costs a node more than Redis, as each entry is two Python objects, a place in a table and
  one in the order of use; stock Pyro5 with a plain dict, which bounds and orders nothing, shows the price of that.
  A profile of `get_many` (py-spy, µs of 1318): `pickle.loads` 732, owners 117, keys' bytes 104, sending 101, placing
  values 59, waiting and receiving 81, the rest 124. A node spends two thirds of its time for a small `get` in the
  kernel, half of that on waking and being woken (perf); the interpreter takes 27 %.
- **Eight clients of one node** do fewer calls than with memcached, and of `set` fewer than wanted: clients and server
  share two cores, so what counts is CPU time a call, and memcached stores in C. How much it is varies from run to run
  (`get` 0.8 to 1.0 of pymemcache, `set` 0.7 to 0.9), with how fast the machine is at the moment for either.
- **The store alone** is slower than cachetools, which neither counts bytes nor expires by itself, and much slower than
  what is written in Rust. Of the time of a `get` of a client it is a twentieth, of a `set` that evicts a fifth.
- **`set` of a 1 MB array** takes twice as long as with Redis and memcached, which write into memory that they have. A
  node takes fresh pages for it, and a page fault costs 2 µs on a virtual machine such as this one. From 4 MiB on huge
  pages make up for that.
- **32 clients on two cores** gain less than 8: what they wait for is mostly the processor.
- Both ends of a connection look for microseconds before they sleep, which the CPU time of a single client's calls
  includes. Beside processes that compute all the time they sleep at once, and the ratios are nearer to 1.
- `Manager` and stock Pyro5 serve a dict that neither bounds, nor expires, nor evicts anything.
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
