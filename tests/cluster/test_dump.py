"""``pyrocache dump`` and ``load``: round trips between clusters, damaged files, absent nodes, processes killed."""

from __future__ import annotations

import dataclasses
import math
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyrocache import LocalCluster, PyroCacheClient
from pyrocache.cli.dump import _temporary
from pyrocache.client.dump_format import Record, Writer
from tests.support.commands import Outcome, call
from tests.support.nodes import private_cluster
from tests.support.processes import ROOT, environment


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int


@pytest.fixture(scope="module")
def source() -> Iterator[LocalCluster]:
    with private_cluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def target() -> Iterator[LocalCluster]:
    with private_cluster(nodes=1) as cluster:
        yield cluster


@pytest.fixture
def cache(source: LocalCluster) -> Iterator[PyroCacheClient]:
    with source.client() as cache:
        cache.clear()
        yield cache


@pytest.fixture
def other(target: LocalCluster) -> Iterator[PyroCacheClient]:
    with target.client() as cache:
        cache.clear()
        cache.namespace("copy").clear()
        yield cache


def pyrocache(cluster: LocalCluster, *command: str, stdin: bytes = b"") -> Outcome:
    return call("pyrocache", *command, stdin=stdin, PYROCACHE_NAMESERVER=cluster.nameserver)


def values() -> dict[Any, Any]:
    kinds: dict[Any, Any] = {
        "none": None,
        "text": "grüße",
        7: 2**80,
        ("a", 1): [1.5, {"b": b"c"}],
        b"bytes": b"",
        "array": np.arange(1000.0),
        Point(1, 2): Point(3, 4),
        "large": b"x" * 5_000_000,
        "small": b"",
    }
    return kinds | {f"key:{number}": number for number in range(10_000)}


def test_a_round_trip_to_a_cluster_with_another_number_of_nodes(
    source: LocalCluster, target: LocalCluster, cache: PyroCacheClient, other: PyroCacheClient, tmp_path: Path
) -> None:
    stored = values()
    cache.set_many(stored)
    cache.set_many({f"ttl:{number}": number for number in range(500)}, ttl_seconds=500)
    cache.set("tagged", 1, tags=["red", "blue"])
    cache.set("both", 2, 500, tags=["red"])
    cache.namespace("inner")["key"] = 1
    count, path = len(stored) + 502, tmp_path / "dump"
    memory = cache.stats().total.bytes
    told = pyrocache(source, "dump", str(path))
    assert (told.status, told.err) == (0, "")
    assert told.out.startswith(f"Dumped {count:,} entries of the root namespace, ")
    assert cache.stats().total.bytes == memory  # the entries did not become larger
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["dump"]

    told = pyrocache(target, "load", str(path))
    assert (told.status, told.err) == (0, "")
    assert told.out.startswith(f"Loaded {count:,} entries into the root namespace in ")
    assert len(other) == count
    found = other.get_many(stored)
    assert np.array_equal(found.pop("array"), stored.pop("array"))
    assert found == stored
    assert 0 < (other.ttl("ttl:1") or 0) <= 500
    assert other.ttl("text") == math.inf
    assert other.get_entry("both").tags == ("red",)
    assert 0 < other.get_entry("both").ttl_seconds <= 500
    assert other.incr("key:1") == 2  # nodes can still add to it
    assert other.invalidate_tag("red") == 2
    assert list(other.namespace("inner")) == []


def test_another_namespace_and_pipes(
    source: LocalCluster, target: LocalCluster, cache: PyroCacheClient, other: PyroCacheClient, tmp_path: Path
) -> None:
    shop = cache.namespace("shop")
    shop.clear()
    shop.set("a", 1, tags=["t"])
    path = tmp_path / "dump"
    assert pyrocache(source, "dump", "-n", "shop", str(path)).out.startswith(
        "Dumped 1 entry of namespace 'shop'"
    )
    assert pyrocache(target, "load", str(path)).out.startswith("Loaded 1 entry into namespace 'shop'")
    assert dict(other.namespace("shop").items()) == {"a": 1}
    assert pyrocache(target, "load", "-n", "copy", str(path)).status == 0
    assert other.namespace("copy").invalidate_tag("t") == 1
    assert dict(other.namespace("shop").items()) == {"a": 1}

    piped = call("pyrocache", "dump", "-", "-n", "shop", PYROCACHE_NAMESERVER=source.nameserver)
    assert piped.status == 0
    assert piped.err.startswith("Dumped 1 entry")
    data = piped.out.encode("utf-8", "surrogateescape")
    assert pyrocache(target, "load", "-", "-n", "copy", stdin=data).out.startswith("Loaded 1 entry")
    assert dict(other.namespace("copy").items()) == {"a": 1}


def test_signed_values_go_only_where_they_can_be_read(
    source: LocalCluster, target: LocalCluster, cache: PyroCacheClient, other: PyroCacheClient, tmp_path: Path
) -> None:
    key, path = str(tmp_path / "key"), str(tmp_path / "dump")
    assert call("pyrocache", "secret", "--secret-file", key).status == 0
    with source.client(signing_key_file=key) as signing:
        signing[Point(1, 2)] = Point(3, 4)
        signing["text"] = "x"
    assert pyrocache(source, "dump", path).status == 0
    refused = pyrocache(target, "load", "-n", "copy", path)
    assert refused.status == 1
    assert "are signed for the root namespace" in refused.sentence
    assert refused.sentence.endswith("load it into the root namespace.")  # nothing was stored before
    assert len(other.namespace("copy")) == 0
    assert pyrocache(target, "load", path).status == 0
    with target.client(signing_key_file=key) as signing:
        assert dict(signing.items()) == {Point(1, 2): Point(3, 4), "text": "x"}


def test_a_damaged_file_is_refused_before_anything_is_stored(
    source: LocalCluster, target: LocalCluster, cache: PyroCacheClient, other: PyroCacheClient, tmp_path: Path
) -> None:
    cache.set_many(dict.fromkeys(range(2500)))
    path = tmp_path / "dump"
    assert pyrocache(source, "dump", str(path)).status == 0
    data = path.read_bytes()
    path.write_bytes(data[:-30])
    cut = pyrocache(target, "load", str(path))
    assert (cut.status, cut.sentence) == (1, "This dump ends early: it was cut off. Make it again.")
    path.write_bytes(data[:-100] + b"x" + data[-99:])
    assert "changed or damaged" in pyrocache(target, "load", str(path)).sentence
    path.write_bytes(data.replace(b"dump 1\n", b"dump 9\n", 1))
    assert "format 9" in pyrocache(target, "load", str(path)).sentence
    assert "not a dump" in pyrocache(target, "load", str(ROOT / "README.md")).sentence
    assert len(other) == 0
    piped = pyrocache(target, "load", "-", stdin=data[:-30])
    assert piped.status == 1
    assert piped.sentence.endswith(f"Until then, {len(other):,} entries had been loaded.")
    assert len(other) == 2500


def test_what_has_expired_is_left_out(target: LocalCluster, other: PyroCacheClient, tmp_path: Path) -> None:
    path, now = tmp_path / "dump", time.time()
    prefix = other._context.prefix
    with path.open("wb") as file:
        writer = Writer(file.write, prefix)
        for key, expires_at in {"gone": now - 1, "soon": now + 900, "never": None}.items():
            frame = other._context.codec.encode(b"", key)
            writer.add(Record(other._context.encode_key(key), frame, expires_at, []))
        writer.end()
    told = pyrocache(target, "load", str(path))
    assert told.out.startswith("Loaded 2 entries ")
    assert told.out.endswith(" 1 entry had expired, and was left out.\n")
    assert sorted(other) == ["never", "soon"]
    assert 800 < (other.ttl("soon") or 0) <= 900


def test_nodes_that_are_away(
    source: LocalCluster, target: LocalCluster, cache: PyroCacheClient, tmp_path: Path
) -> None:
    cache.set_many(dict.fromkeys(range(300)))
    path = tmp_path / "dump"
    assert pyrocache(source, "dump", str(path)).status == 0
    before = path.read_bytes()
    source.pause(1)
    try:
        failed = pyrocache(source, "dump", str(path), "-t", "0.5")
        partly = pyrocache(source, "load", str(path), "-t", "0.5")
    finally:
        source.resume(1)
    assert failed.status == 1
    assert "cache.node.2" in failed.sentence
    assert (path.read_bytes(), os.listdir(tmp_path)) == (before, ["dump"])
    assert partly.status == 1
    stored = int(partly.out.split()[1])
    missing = int(partly.err.split()[0])
    assert 0 < stored < 300
    assert stored + missing == 300
    assert "entries could not be stored; the first: " in partly.err
    assert "cache.node.2" in partly.err


def has_files_without_a_name(directory: Path) -> bool:
    descriptor, name = _temporary(str(directory / "x"))
    os.close(descriptor)
    if name is not None:
        os.unlink(name)
    return name is None


@pytest.mark.parametrize(
    "ending",
    [
        "os.kill(os.getpid(), 9)",
        *(pytest.param(end, marks=pytest.mark.full) for end in ("raise KeyboardInterrupt", "sys.exit(3)")),
    ],
)
def test_a_dump_that_is_interrupted_leaves_no_file(tmp_path: Path, ending: str) -> None:
    if "kill" in ending and not has_files_without_a_name(tmp_path):
        pytest.skip("this file system has no files without a name")
    path = tmp_path / "dump"
    path.write_bytes(b"old")
    script = (
        "import os, sys\nfrom pyrocache.cli.dump import _output\n"
        f"with _output({str(path)!r}) as file:\n    file.write(bytes(10**6))\n    file.flush()\n    {ending}\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, timeout=30, check=False
    )
    assert ended.returncode != 0
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["dump"])


def test_places_where_no_file_can_be(source: LocalCluster, tmp_path: Path) -> None:
    for path, why in {
        str(tmp_path): "is a directory",
        str(tmp_path / "no" / "where"): "cannot be written: No such file",
    }.items():
        refused = pyrocache(source, "dump", path)
        assert refused.status == 1
        assert why in refused.sentence
    refused = pyrocache(source, "load", str(tmp_path / "nothing"))
    assert (refused.status, "cannot be read: No such file" in refused.sentence) == (1, True)
    assert "cannot be read" in pyrocache(source, "load", str(tmp_path)).sentence


def test_a_file_is_written_through_a_link_and_to_a_pipe(
    source: LocalCluster, cache: PyroCacheClient, tmp_path: Path
) -> None:
    cache["key"] = 1
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    assert pyrocache(source, "dump", str(tmp_path / "link")).status == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes().startswith(b"pyrocache dump 1\n")
    assert pyrocache(source, "dump", "/dev/null").status == 0
