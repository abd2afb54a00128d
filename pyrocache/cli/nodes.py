"""What ``pyrocache nodes`` does: start a name server if asked, start nodes, keep them, end them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from pyrocache.cli.supervisor import Keeper, node_settings
from pyrocache.cli.tables import print_nodes
from pyrocache.config import NodeConfig, parse_address
from pyrocache.errors import NameServerUnavailable, PyroCacheError
from pyrocache.net.directory import NameServerDirectory
from pyrocache.runtime.child_process import ChildProcess, start_nameserver, start_node
from pyrocache.runtime.stop_request import StopRequest

_LOOK_SECONDS = 0.2
_FORGOTTEN_SECONDS = 1.3  # a node's heartbeat and some


def run(config: NodeConfig, *, count: int, with_nameserver: bool) -> int:
    """Start ``count`` nodes and keep them until a signal ends this process; the exit status."""
    stop = StopRequest()
    stop.on_signals()
    keepers: list[Keeper] = []
    try:
        if not with_nameserver:
            _wait_for_those_it_forgot(config.nameserver)
        elif not _answers(config.nameserver):
            keepers += _start_nameserver(config)
        nodes = _start_nodes(config, count, keepers)
        if nodes is None:
            return 1
        print_nodes([node.answer for node in nodes if node.answer], config.max_memory)
        print("ready", flush=True)
        while not stop.requested:
            stop.wait(_LOOK_SECONDS)
            if all(node.ended.is_set() for node in nodes):
                return 1
        return 0
    finally:
        _end(keepers)


def _start_nodes(config: NodeConfig, count: int, keepers: list[Keeper]) -> list[Keeper] | None:
    """Start the nodes, the first one alone: what is wrong with it would be wrong with all. None when one fails."""
    nodes = [
        Keeper(
            "a node",
            lambda answer: start_node(node_settings(config, answer), quiet=False),
            _report,
            renamable=config.name is None,
        )
        for _ in range(count)
    ]
    for group in (nodes[:1], nodes[1:]):
        for node in group:
            keepers.append(node)
            node.start()
        for node in group:
            try:
                node.wait_until_ready()
            except PyroCacheError as error:
                if node.was_killed:
                    _report(str(error))
                return None  # else it has said why itself
    return sorted(nodes, key=_number)


def _number(node: Keeper) -> int:
    return int(node.what.rpartition(".")[2])


def _answers(nameserver: str) -> bool:
    try:
        NameServerDirectory(nameserver).members(timeout=2.0)
    except NameServerUnavailable:
        return False
    return True


def _wait_for_those_it_forgot(nameserver: str) -> None:
    """A name server that lists nobody may just have been restarted: leave nodes that run the time to enter themselves.

    Raises:
        NameServerUnavailable: there is none.
    """
    if not NameServerDirectory(nameserver).members():
        time.sleep(_FORGOTTEN_SECONDS)


def _start_nameserver(config: NodeConfig) -> list[Keeper]:
    """Start a name server; none when another command was quicker."""
    host, port = parse_address(config.nameserver)
    start = partial(_nameserver_process, host, port, config.insecure)
    keeper = Keeper("the name server", start, _report)
    keeper.start()
    try:
        keeper.wait_until_ready()
    except PyroCacheError:
        keeper.join()
        for _ in range(10):
            if _answers(config.nameserver):
                return []
            time.sleep(_LOOK_SECONDS)
        raise
    _report(f"Name server ready at {config.nameserver}.")
    return [keeper]


def _nameserver_process(host: str, port: int, insecure: bool, answer: dict[str, Any] | None) -> ChildProcess:
    return start_nameserver(host=host, port=port, insecure=insecure, quiet=answer is None)


def _end(keepers: Sequence[Keeper]) -> None:
    """End the nodes, then the name server that they leave by."""
    nodes = [keeper for keeper in keepers if keeper.what != "the name server"]
    rest = [keeper for keeper in keepers if keeper.what == "the name server"]
    for group in (nodes, rest):
        for keeper in group:
            keeper.stop()
        for keeper in group:
            keeper.join()


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
