"""Keys, values and streams: the sizes they claim, the popularity they claim, and the same each time."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("benchmarks")

from benchmarks.meta import cut  # noqa: E402
from benchmarks.workloads import batches, filling, key, share, single_calls, value, ycsb, zipfian  # noqa: E402


@pytest.mark.parametrize("kind", ["k", "k10000", "missing"])
@pytest.mark.parametrize("number", [0, 999_999_999])
def test_keys_have_16_characters(kind: str, number: int) -> None:
    assert len(key(kind, number)) == 16


@pytest.mark.parametrize("size", [63, 100, 1000, 10_000])
@pytest.mark.parametrize("number", [0, 77, 99_999])
def test_values_pickle_to_their_size(size: int, number: int) -> None:
    thing = value(size, number)
    assert not isinstance(thing, bytes | str)
    assert abs(len(pickle.dumps(thing, 5)) - size) <= max(10, size // 50)
    assert thing == value(size, number)


def test_values_differ() -> None:
    assert value(100, 1) != value(100, 2)


def test_workers_share_all_keys() -> None:
    assert sorted(number for worker in range(3) for number in share(range(10), worker, 3)) == list(range(10))
    keys = {arguments[0] for worker in range(3) for _, arguments in filling("k", 10, 100, worker, 3)}
    assert keys == {key("k", number) for number in range(10)}


def test_a_stream_of_single_calls_has_each_key_once() -> None:
    stream = single_calls("get", "k", 50, 100, 0, 1)
    assert sorted(stream) == [("get", (key("k", number),)) for number in range(50)]
    assert {len(arguments) for _, arguments in single_calls("set", "k", 50, 100, 0, 1)} == {2}


def test_batches_have_their_length() -> None:
    assert [len(keys) for _, (keys,) in batches("get_many", "k", 7, 100, 0, 1)] == [7] * 10
    assert [len(mapping) for _, (mapping,) in batches("set_many", "k", 7, 100, 0, 1)] == [7] * 10


def test_zipfian_draws_are_as_frequent_as_they_should_be() -> None:
    draws = zipfian(1000, 0.99, 200_000, seed=1)
    assert 0 <= draws.min() <= draws.max() < 1000
    expected = 1 / np.arange(1, 1001) ** 0.99
    expected /= expected.sum()
    counts = np.bincount(draws, minlength=1000) / len(draws)
    assert np.abs(counts - expected).max() < 0.005
    assert (draws == zipfian(1000, 0.99, 200_000, seed=1)).all()


@pytest.mark.parametrize(
    ("workload", "reads", "write"),
    [("A", 0.5, "set"), ("B", 0.95, "set"), ("C", 1, ""), ("F", 0.5, "update")],
)
def test_ycsb_mixes(workload: str, reads: float, write: str) -> None:
    verbs = Counter(verb for verb, _ in ycsb(workload, 100, 1000, 5000, 0, 8))
    assert verbs["get"] / 5000 == pytest.approx(reads, abs=0.03)
    assert set(verbs) <= {"get", write}


def test_workers_of_ycsb_have_the_same_favourites_and_calls_of_their_own() -> None:
    streams = [[arguments[0] for _, arguments in ycsb("C", 100, 1000, 5000, worker, 2)] for worker in (0, 1)]
    assert streams[0] != streams[1]
    favourites = {Counter(stream).most_common(1)[0][0] for stream in streams}
    assert len(favourites) == 1


def test_only_large_buckets_are_cut() -> None:
    assert cut(np.array([1, 5, 1000, 1000]), 106).tolist() == [1, 5, 50, 50]
    assert cut(np.array([1, 5]), 100).tolist() == [1, 5]
