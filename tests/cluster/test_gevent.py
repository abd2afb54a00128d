"""Under gevent, patched before or after pyrocache is imported: calls of many greenlets, and deadlines that hold."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pyrocache import LocalCluster

pytest.importorskip("gevent")

BEFORE = (
    "from gevent import monkey; monkey.patch_all()\nfrom pyrocache import PyroCacheClient, NodeUnavailable\n"
)
AFTER = (
    "from pyrocache import PyroCacheClient, NodeUnavailable\nfrom gevent import monkey; monkey.patch_all()\n"
)

USE = """
import os, signal, sys, time
import gevent

cache = PyroCacheClient(sys.argv[1], timeout=5.0)
paused = int(sys.argv[2])

def use(number):
    for turn in range(20):
        value = bytes([number]) * (300_000 if turn == 7 else turn)
        assert cache.set((number, turn), value)
        assert cache.get((number, turn)) == value
    keys = [(number, turn) for turn in range(20)]
    assert len(cache.get_many(keys)) == 20
    assert cache.get_or_set(("loaded", number), lambda: number) == number

gevent.joinall([gevent.spawn(use, number) for number in range(80)], raise_error=True)
time.sleep(1.0)  # longer than a connection is trusted without a look
assert cache.get((1, 1)) == b"\\x01"

ticks = []
def tick():
    while True:
        ticks.append(time.monotonic())
        gevent.sleep(0.01)

ticker = gevent.spawn(tick)
os.kill(paused, signal.SIGSTOP)
impatient = PyroCacheClient(sys.argv[1], timeout=0.5)
def fail(number):
    began = time.monotonic()
    try:
        impatient.get_many([(number, turn) for turn in range(20)])
    except NodeUnavailable:
        pass
    else:
        raise AssertionError("a stopped node answered")
    assert time.monotonic() - began < 1.5
gevent.joinall([gevent.spawn(fail, number) for number in range(10)], raise_error=True)
os.kill(paused, signal.SIGCONT)
assert max(later - now for now, later in zip(ticks, ticks[1:])) < 0.4, "no call blocks the others"
assert cache.get((2, 2)) == b"\\x02\\x02"
print("done")
"""


@pytest.mark.parametrize(
    "head",
    [BEFORE, AFTER],
    ids=["patched before the import", "patched after the import"],
)
@pytest.mark.full
def test_greenlets_share_a_client_and_a_stopped_node_stops_none_of_them(
    head: str, cluster: LocalCluster
) -> None:
    command = [sys.executable, "-c", head + USE, cluster.nameserver, str(cluster.nodes[0].pid)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate(timeout=60.0)
    finally:
        process.kill()
        cluster.resume(0)
    assert (process.returncode, output) == (0, "done\n")


def test_eventlet_is_refused_with_a_sentence() -> None:
    code = """
import select
del select.poll  # as eventlet does
from pyrocache import ConfigurationError, PyroCacheClient
try:
    PyroCacheClient()
except ConfigurationError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30.0).stdout
    assert "does not run under eventlet" in output
