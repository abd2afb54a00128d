"""``python -m tests.model``: a search by hand. Without a scenario, list them."""

from __future__ import annotations

import argparse
import time

from tests.model.broken import MISTAKES, SPARE
from tests.model.cluster import World
from tests.model.scenarios import HUGE, LARGER, SCENARIOS, Scenario

ALL: dict[str, Scenario] = {**SCENARIOS, **LARGER, **HUGE, **MISTAKES, **SPARE}


def main() -> int:
    """Search, and print what was found. Return the exit status: 1 for a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--scenario", choices=ALL, metavar="NAME")
    parser.add_argument(
        "--faults", type=int, help="in place of the scenario's number; not for one with a plan"
    )
    parser.add_argument("--steps", type=int, default=-1, help="the number of ticks; -1: no limit")
    parser.add_argument(
        "--walks", type=int, default=0, help="take so many random walks, of 15 x --steps steps"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, default=10_000_000, help="the number of states to visit at most")
    arguments = parser.parse_args()
    if arguments.scenario is None:
        print("\n".join(ALL))
        return 0
    model, search = ALL[arguments.scenario].search(arguments.faults, arguments.steps)
    if arguments.walks and arguments.steps < 0:
        parser.error("--walks needs --steps")
    began = time.process_time()
    if arguments.walks:
        found = search.walks(arguments.walks, 15 * arguments.steps, arguments.seed, _is_fault)
    else:
        found = search.everything(arguments.limit)
    for label in found.trace:
        print("  " + model.describe(label))
    outcome = found.violation or ("no violation, nothing left" if found.complete else "no violation so far")
    print(
        f"{arguments.scenario}: {outcome}; {found.states} states in {time.process_time() - began:.1f} s of CPU"
    )
    return 1 if found.violation else 0


def _is_fault(before: World, after: World) -> bool:
    return after.faults < before.faults


if __name__ == "__main__":
    raise SystemExit(main())
