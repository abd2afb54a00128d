"""Keys, values and streams of operations: the same for all contenders, made before anything is timed.

An `Operation` is a verb of `clients.Client` (or ``"update"``, read then write) with its arguments. A stream is a
list of them. Streams are made in the client processes, by functions that get the number of the client and how many
there are; all randomness is seeded, so every contender and every run gets the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Operation = tuple[str, tuple[Any, ...]]
Stream = list[Operation]
StreamFactory = Callable[[int, int], Stream]

YCSB_SKEW = 0.99
YCSB_READS = {"A": 0.5, "B": 0.95, "C": 1.0, "F": 0.5}
"""Share of reads in YCSB's core workloads; the others are writes, in F reads followed by a write."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def key(kind: str, number: int) -> str:
    """A key of 16 characters."""
    return f"{kind:_<6.6}:{number:09d}"


def value(size: int, number: int) -> Any:
    """A dict, or for less than 100 bytes a tuple, that pickles (protocol 5) to ``size`` bytes or a few more."""
    rng = random.Random(number)
    if size < 100:
        return number % 256, rng.randbytes(max(1, size - 25))
    padding = size - 82
    return {
        "id": 1_000_000 + number,
        "name": "".join(rng.choices(_LETTERS, k=8)),
        "flags": (1, 2, 3),
        "text": rng.randbytes(padding // 4).hex(),
        "data": rng.randbytes(padding - padding // 4 * 2),
    }


def share(items: Sequence[Any], worker: int, workers: int) -> Sequence[Any]:
    """The part of ``items`` that one of ``workers`` takes care of."""
    return items[worker::workers]


def single_calls(verb: str, kind: str, count: int, size: int, worker: int, workers: int) -> Stream:
    """``verb`` once for each of ``count`` keys, in an order that is each worker's own."""
    numbers = list(range(count))
    random.Random(worker).shuffle(numbers)
    values = [value(size, number) for number in range(min(count, 100))] if verb == "set" else []
    return [
        (verb, (key(kind, number), values[number % len(values)]) if values else (key(kind, number),))
        for number in numbers
    ]


def filling(kind: str, count: int, size: int, worker: int, workers: int) -> Stream:
    """``set`` for a worker's share of ``count`` keys."""
    numbers = share(range(count), worker, workers)
    return [("set", (key(kind, number), value(size, number))) for number in numbers]


def batches(verb: str, kind: str, length: int, size: int, worker: int, workers: int) -> Stream:
    """Ten batches of ``length`` keys."""
    stream: Stream = []
    for batch in range(10):
        numbers = range(batch * length, (batch + 1) * length)
        if verb == "set_many":
            stream.append((verb, ({key(kind, number): value(size, number) for number in numbers},)))
        else:
            stream.append((verb, ([key(kind, number) for number in numbers],)))
    return stream


def arrays(verb: str, megabytes: int, worker: int, workers: int) -> Stream:
    """``set`` or ``get`` of one float64 array."""
    name = key("array", megabytes)
    if verb == "get":
        return [("get", (name,))]
    array = np.random.default_rng(megabytes).random(megabytes * 2**20 // 8)
    return [("set", (name, array))]


def zipfian(count: int, skew: float, draws: int, seed: int) -> npt.NDArray[np.int64]:
    """``draws`` numbers below ``count``, number i with a probability in proportion to 1 / (i + 1) ** skew."""
    cumulated = np.cumsum(1.0 / np.arange(1, count + 1) ** skew)
    uniform = np.random.default_rng(seed).random(draws) * cumulated[-1]
    return np.searchsorted(cumulated, uniform, side="right")


def ycsb(workload: str, records: int, size: int, draws: int, worker: int, workers: int) -> Stream:
    """YCSB's core workload A, B, C or F over ``records``, whose popularity is zipfian and scattered over the keys."""
    scattered = np.random.default_rng(0).permutation(records)
    numbers = scattered[zipfian(records, YCSB_SKEW, draws, seed=worker + 1)]
    reads = np.random.default_rng(1000 + worker).random(draws) < YCSB_READS[workload]
    values = [value(size, number) for number in range(100)]
    write = "update" if workload == "F" else "set"
    return [
        ("get", (key("ycsb", number),)) if read else (write, (key("ycsb", number), values[number % 100]))
        for number, read in zip(numbers.tolist(), reads.tolist(), strict=True)
    ]
