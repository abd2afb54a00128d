"""``python -m tests.chaos --fault NAME --seconds N --seed N``."""

from __future__ import annotations

import argparse
import random
import signal
import sys

from tests.chaos.faults import FAULTS
from tests.chaos.run import CLIENTS, run
from tests.support.processes import default_signals


def main() -> int:
    """Run what the command line says. Return the exit status: 1 if anything was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="A history checker with real faults."
    )
    parser.add_argument(
        "--fault", default="all", help="NAME; NAME+NAME for both at once; all for one after the other"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each fault is repeated")
    parser.add_argument("--seed", type=int, default=random.randrange(2**16))
    parser.add_argument("--clients", choices=CLIENTS, default="both", help="of the load; default: both kinds")
    parser.add_argument("--list", action="store_true", help="list the faults")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{name:12} {fault.about}" for name, fault in FAULTS.items()))
        return 0
    runs = [[name] for name in FAULTS] if arguments.fault == "all" else [arguments.fault.split("+")]
    for name in runs[0]:
        if name not in FAULTS:
            parser.error(f"{name!r} is no fault; see --list")
    default_signals()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended
    print(f"seed {arguments.seed}", flush=True)
    outcomes = []
    for names in runs:
        outcomes.append(run(names, arguments.seconds, arguments.seed, arguments.clients))
        print(outcomes[-1].report(), flush=True)
    if len(outcomes) > 1:
        print("\n".join(["", *(outcome.summary() for outcome in outcomes)]))
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
