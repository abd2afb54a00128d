"""Streams after the figures of a key-value cache of Meta's, as CacheLib's cachebench publishes them.

``kvcache_reg_pop.json.gz`` has buckets of equally popular keys, each with its number of keys and its share of the
accesses; ``kvcache_reg_sizes.json.gz`` has upper bounds of value sizes with their weights.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.workloads import Stream, key, share, value

READS = 0.9845
READS_OF_NOTHING = 0.135

_POPULARITY = "kvcache_reg_pop.json.gz"
_SIZES = "kvcache_reg_sizes.json.gz"


@dataclass(frozen=True, slots=True)
class Mix:
    """Where the data is, and how many keys there are to be."""

    directory: Path
    keys: int


def is_there(directory: Path) -> bool:
    """Whether both files are."""
    return all((directory / name).is_file() for name in (_POPULARITY, _SIZES))


def filling(mix: Mix, worker: int, workers: int) -> Stream:
    """``set`` for a worker's share of the keys."""
    sizes = _sizes(mix)
    return [
        ("set", (key("meta", number), value(int(sizes[number]), number)))
        for number in share(range(len(sizes)), worker, workers)
    ]


def stream(mix: Mix, draws: int, worker: int, workers: int) -> Stream:
    """``draws`` calls."""
    rng = np.random.default_rng(worker + 1)
    numbers = _scattered_keys(mix)[_draws(mix, draws, rng)]
    sizes = _sizes(mix)
    operations: Stream = []
    for number, is_read, of_nothing in zip(
        numbers.tolist(), rng.random(draws) < READS, rng.random(draws) < READS_OF_NOTHING, strict=True
    ):
        if is_read:
            operations.append(("get", (key("none" if of_nothing else "meta", number),)))
        else:
            operations.append(("set", (key("meta", number), value(int(sizes[number]), number))))
    return operations


def cut(bucket_sizes: npt.NDArray[np.int64], keys: int) -> npt.NDArray[np.int64]:
    """The buckets' sizes, the largest cut to one and the same size so that about ``keys`` keys remain."""
    low, high = 1, int(bucket_sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(bucket_sizes, middle).sum() <= keys:
            low = middle
        else:
            high = middle - 1
    return np.minimum(bucket_sizes, low)


def _draws(mix: Mix, draws: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Numbers of keys, the most popular first."""
    data = _read(mix.directory / _POPULARITY)
    weights = np.array(data["popularityWeights"], dtype=float)
    sizes = cut(np.array(data["popularityBuckets"]), mix.keys)
    first = np.cumsum(sizes) - sizes
    buckets = rng.choice(len(sizes), size=draws, p=weights / weights.sum())
    return first[buckets] + (rng.random(draws) * sizes[buckets]).astype(np.int64)


def _scattered_keys(mix: Mix) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).permutation(_key_count(mix))


def _sizes(mix: Mix) -> npt.NDArray[np.int64]:
    data = _read(mix.directory / _SIZES)
    weights = np.array(data["valSizeRangeProbability"], dtype=float)
    sizes = np.array(data["valSizeRange"])
    return np.random.default_rng(0).choice(sizes, size=_key_count(mix), p=weights / weights.sum())


def _key_count(mix: Mix) -> int:
    return int(cut(np.array(_read(mix.directory / _POPULARITY)["popularityBuckets"]), mix.keys).sum())


@lru_cache
def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return data
