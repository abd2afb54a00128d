"""``python -m benchmarks replay``: its options, and which of the two runs they ask for.

Parses the command line and prints errors; `replay` uses a cluster, `comparison` simulates. An error is one sentence on
standard error and exit status 1; a wrong command line is 2; Ctrl-C is 130.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.lab import comparison, replay
from pyrocache.config import EVICTION_POLICIES
from pyrocache.errors import ConfigurationError

_POLICIES = "|".join(EVICTION_POLICIES)
_CLUSTER_OPTIONS = ("clients", "nodes", "max_memory", "eviction", "value_size", "nameserver")
_SIMULATION_OPTIONS = ("capacity", "plot")

Trace = Annotated[Path, typer.Argument(help="The trace: ARC's .lis, a key a line, or 'time id size'.")]
Limit = Annotated[int | None, typer.Option(help="Accesses to replay; all by default.", min=1)]
Clients = Annotated[int, typer.Option(help="Client processes.", min=1, max=64)]
Nodes = Annotated[int, typer.Option(help="Nodes of the local cluster.", min=1, max=64)]
MaxMemory = Annotated[
    str | None,
    typer.Option(help="Memory of each node; starts a local cluster even when another one answers."),
]
Eviction = Annotated[
    str | None,
    typer.Option(
        help="Eviction policy; starts a local cluster even when another one answers.", metavar=_POLICIES
    ),
]
ValueSize = Annotated[int, typer.Option(help="Bytes of a value, where the trace has no sizes.", min=1)]
NameServer = Annotated[
    str | None,
    typer.Option(help="Address of a running cluster's name server.", metavar="HOST:PORT", show_default=False),
]
Policy = Annotated[
    list[str] | None,
    typer.Option(
        help="Simulate eviction policies instead of using a cluster. Repeatable.", metavar=f"all|{_POLICIES}"
    ),
]
Capacity = Annotated[
    list[str] | None,
    typer.Option(
        help="With --policy: capacity in entries, or like 64MiB where the trace has sizes. Repeatable.",
        metavar="N",
    ),
]
Plot = Annotated[
    Path | None, typer.Option(help="With --policy: draw the curves into a .png or .svg.", metavar="FILE")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def replay_command(
    context: typer.Context,
    trace: Trace,
    limit: Limit = None,
    clients: Clients = 4,
    nodes: Nodes = 3,
    max_memory: MaxMemory = None,
    eviction: Eviction = None,
    value_size: ValueSize = 100,
    nameserver: NameServer = None,
    policy: Policy = None,
    capacity: Capacity = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Replay a trace of cache accesses: get, and on a miss set. With --policy, compare eviction policies on it."""
    if policy:
        _refuse(context, _CLUSTER_OPTIONS, "without --policy")
        status = comparison.run(
            trace, policies=policy, capacities=capacity, limit=limit, plot_file=plot, as_json=as_json
        )
        raise typer.Exit(status)
    _refuse(context, _SIMULATION_OPTIONS, "with --policy; add --policy all")
    status = replay.run(
        trace,
        limit=limit,
        clients=clients,
        nameserver=nameserver,
        nodes=nodes,
        max_memory=max_memory,
        eviction=eviction,
        value_size=value_size,
        as_json=as_json,
    )
    raise typer.Exit(status)


def _refuse(context: typer.Context, options: tuple[str, ...], only: str) -> None:
    """Raise `ConfigurationError` if the user gave one of ``options``, which make sense ``only`` so."""
    for option in options:
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigurationError(f"--{option.replace('_', '-')} makes sense only {only}.")
