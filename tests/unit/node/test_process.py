"""The tuning of a node process, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc, sys
from pyrocache.node.process import tune
tune()
print(gc.get_threshold()[1], sys.getswitchinterval())
one = b"x" * 20 * 2**20
del one  # by default, glibc takes blocks of up to this size from the heap from now on
blocks, between = [], []
for _ in range(64):
    blocks.append(b"x" * 2**21)
    between.append(b"x" * 1000)
def resident():
    return int(open("/proc/self/statm").read().split()[1])
before = resident()
del blocks
print(before - resident())
"""


def test_one_call_tunes_the_collector_the_switch_interval_and_malloc() -> None:
    output = subprocess.check_output([sys.executable, "-c", CODE], text=True)
    collector, freed = output.splitlines()
    assert collector == "10 0.001"
    if sys.platform == "linux":
        assert int(freed) * 4096 > 100 * 2**20, "large blocks are given back one by one"
