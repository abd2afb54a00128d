"""Each fault of `tests.chaos`, and pairs of them: the history of every key is one that a cache may have.

The load consists of processes with the blocking client and with the asyncio client.
"""

from __future__ import annotations

import itertools
import os
import random
import sys

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.run import run

SECONDS = 8.0
SEED = int(os.environ.get("CHAOS_SEED", "1"))  # another one finds other faults, and other pairs
PAIRS = 3
NAMES = [name for name in FAULTS if name != "none"]


def check(names: tuple[str, ...]) -> None:
    print(f"seed {SEED}; to run it again: python -m tests.chaos --fault {'+'.join(names)} --seed {SEED}")
    outcome = run(names, SECONDS, SEED)
    if not outcome.good:
        pytest.fail(outcome.report(), pytrace=False)
    assert len(outcome.calls) > 1000


pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        sys.platform != "linux", reason="needs prlimit, and loopback addresses beyond the first"
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_no_promise_is_broken_under_a_fault(name: str) -> None:
    check((name,))


@pytest.mark.parametrize("number", range(PAIRS))
def test_no_promise_is_broken_under_two_faults(number: int) -> None:
    pairs = list(itertools.combinations(NAMES, 2))
    check(random.Random(SEED).sample(pairs, PAIRS)[number])
