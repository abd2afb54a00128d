"""The command ``pyrocache nodes``: start nodes, and on request a name server, keep them running and end them together.

Each process has a `Supervisor`. `keeper` uses the same functions for a detached cluster.

Thread safety: runs in the main thread, which alone receives the signals that end the command.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

from pyrocache.cli.addresses import of_node
from pyrocache.cli.output import for_other_hosts, report, write
from pyrocache.cli.supervisor import Supervisor
from pyrocache.cli.tables import print_nodes
from pyrocache.config import TLS, Encryption, NodeConfig, parse_address
from pyrocache.errors import AuthenticationError, NameServerUnavailable, OutOfResources, PyroCacheError
from pyrocache.net.call_protocol import knowing
from pyrocache.net.directory import NameServerDirectory
from pyrocache.runtime.child_process import ChildProcess, start_nameserver, start_node
from pyrocache.runtime.secret import Secret
from pyrocache.runtime.service_manager import ServiceManager
from pyrocache.runtime.stop_request import StopRequest
from pyrocache.settings import in_force

_POLL_SECONDS = 0.2
_PING_SECONDS = 2.0


def run(config: NodeConfig, secret: Secret, *, count: int, with_nameserver: bool) -> int:
    """Start ``count`` nodes and keep them running until a signal ends this process. Return the exit status."""
    stop = StopRequest()
    stop.on_signals(reloads=bool(config.tls))
    manager = ServiceManager()
    nameservers: list[Supervisor] = []
    nodes: list[Supervisor] = []
    new_cluster = False
    try:
        if not with_nameserver:
            _directory(config, secret).members()  # raises if no name server answers
        elif not _answers(config, secret):
            _start_nameserver(config, secret, nameservers)
            new_cluster = bool(nameservers)
        # The first one alone: what is wrong with it would be wrong with all.
        first = replace(config, new_cluster=new_cluster)
        try:
            start_nodes(first, secret, 1, nodes)
            start_nodes(config, secret, count - 1, nodes)
        except OutOfResources:
            raise
        except PyroCacheError as error:
            if any(node.killed for node in nodes):
                report(str(error))
            return 1  # otherwise the node has said why itself
        nodes.sort(key=lambda node: int(node.what.rpartition(".")[2]))
        print_nodes([node.answer for node in nodes], config.max_memory, config.nameserver)
        write("ready")  # for scripts that wait for this line
        manager.ready(f"{count} node{'s' * (count > 1)} of the name server {config.nameserver}")
        while not stop.requested:
            stop.wait(_POLL_SECONDS)
            manager.alive()  # whatever the nodes do: their supervisors start those again that die
            if stop.reload:
                stop.reload = False
                with manager.reloading():
                    for supervisor in (*nameservers, *nodes):
                        supervisor.reload()
            if all(node.gave_up for node in nodes):
                return 1
        return 0
    finally:
        manager.stopping()
        end(nodes)
        end(nameservers)  # after the nodes, which unregister there


def start_nodes(
    config: NodeConfig,
    secret: Secret,
    count: int,
    nodes: list[Supervisor],
    report: Callable[[str], None] = report,
) -> None:
    """Start ``count`` nodes in parallel, append their supervisors to ``nodes``, and wait until all are ready.

    Args:
        report: prints what happens to them later.

    Raises:
        PyroCacheError: one did not start. The caller has to end all of them.
    """
    begin = len(nodes)
    for _ in range(count):
        # Appended one by one: if a later one cannot be started, the caller ends the earlier ones.
        start = _starter(of_node(config, len(nodes)), secret)
        ping = ping_of(config.nameserver, secret, config.tls)
        nodes.append(Supervisor("a node", start, ping, renamable=config.name is None, report=report))
    for node in nodes[begin:]:
        node.wait_until_ready()


def _starter(config: NodeConfig, secret: Secret) -> Callable[[str | None], ChildProcess]:
    """Return what starts a node, under the name that it had before if there is one."""
    started = False

    def start(name: str | None) -> ChildProcess:
        nonlocal started
        # Only for the first start: later, the name server may have been restarted, and live nodes will say so.
        new_cluster = config.new_cluster and not started
        started = True
        settings = {**asdict(config), "name": name or config.name, "new_cluster": new_cluster}
        return start_node(settings, secret=secret, quiet=False)

    return start


def _start_nameserver(config: NodeConfig, secret: Secret, nameservers: list[Supervisor]) -> None:
    """Start a name server and append it to ``nameservers``, unless another command starts one at the same time.

    Raises:
        PyroCacheError: it did not start, and no other one answers.
    """
    host, port = parse_address(config.nameserver)
    storage = in_force().get("name_server.storage", "memory")
    first = True

    def start(_: str | None) -> ChildProcess:
        nonlocal first
        # The first start may fail because another command starts one. Errors of later starts are shown.
        quiet, first = first, False
        tls = asdict(config.tls) if isinstance(config.tls, TLS) else config.tls
        return start_nameserver(host=host, port=port, tls=tls, storage=storage, secret=secret, quiet=quiet)

    ping = ping_of(config.nameserver, secret, config.tls)
    nameservers.append(Supervisor("the name server", start, ping, is_name_server=True))
    try:
        nameservers[0].wait_until_ready()
    except OutOfResources:
        raise
    except PyroCacheError:
        nameservers.pop().join()
        # The name server of the other command may still be starting.
        for _ in range(10):
            if _answers(config, secret):
                return
            time.sleep(_POLL_SECONDS)
        raise
    report(f"Name server ready at {config.nameserver}. {for_other_hosts(config.nameserver, secret)}".rstrip())


def ping_of(nameserver: str, secret: Secret, tls: Encryption = None) -> Callable[[], None]:
    """Return what raises `NameServerUnavailable` if the name server does not answer within 2 seconds."""
    caller = knowing(secret, trusting=True, tls=tls)
    return partial(NameServerDirectory(nameserver, caller=caller).ping, timeout=_PING_SECONDS)


def _answers(config: NodeConfig, secret: Secret) -> bool:
    try:
        _directory(config, secret).members(timeout=_PING_SECONDS)
    except AuthenticationError:
        raise
    except NameServerUnavailable:
        return False
    return True


def _directory(config: NodeConfig, secret: Secret) -> NameServerDirectory:
    caller = knowing(secret, trusting=True, tls=config.tls)
    return NameServerDirectory(config.nameserver, caller=caller)


def end(supervisors: list[Supervisor]) -> None:
    """End these processes, in parallel, and wait for them."""
    for supervisor in supervisors:
        supervisor.stop()
    for supervisor in supervisors:
        supervisor.join()
