"""The command line of ``pyrocache``: parses options into settings, reads the environment and prints results.

Longer commands are in the modules next to this one. A `PyroCacheError` is printed as one sentence on standard error and
gives exit status 1; a wrong command line gives 2, and Ctrl-C gives 130.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pyrocache import __version__
from pyrocache.client.client import NAMESERVER_VARIABLE, PyroCacheClient
from pyrocache.config import DEFAULT_EVICTION, DEFAULT_NAMESERVER, EVICTION_POLICIES, NodeConfig, parse_size
from pyrocache.errors import ConfigurationError, PyroCacheError
from pyrocache.runtime.shortage import explain

app = typer.Typer(
    name="pyrocache",
    help="A distributed in-memory cache for Python objects.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

NameServerOption = Annotated[
    str, typer.Option(help="Address of the name server.", envvar=NAMESERVER_VARIABLE, metavar="HOST:PORT")
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Allow an address that others reach; there is no authentication.")
]
NamespaceOption = Annotated[str | None, typer.Option(help="Work in this namespace.")]
KeyArgument = Annotated[str, typer.Argument(help="The key, as text.", metavar="KEY", show_default=False)]

_ANY_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_NO_ENTRY = "There is no entry under this key."


def main(command: str | None = None) -> NoReturn:
    """Run the command line of this process, or only ``command`` with its arguments."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A value's repr may have characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    for variable in [name for name in os.environ if name.startswith("PYRO_")]:
        del os.environ[variable]  # Pyro5 would refuse to start, or speak another dialect than the nodes
    try:
        if command is None:
            app(prog_name="pyrocache")
        else:
            commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
            commands[command](prog_name=f"python {Path(sys.argv[0]).name}")
    except PyroCacheError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as a shell reports it
    except (OSError, RuntimeError) as error:
        cause = explain(error)
        if cause is None and isinstance(error, RuntimeError):
            raise
        print(f"Cannot go on: {cause or getattr(error, 'strerror', None) or error}.", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _version(value: bool) -> None:
    if value:
        print(f"pyrocache {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command("nameserver")
def nameserver_command(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 is a free one.")] = 9090,
    storage: Annotated[
        str, typer.Option(help="Where to keep the registered nodes.", metavar="memory|sql:FILE")
    ] = "memory",
    insecure: InsecureOption = False,
) -> None:
    """Start a name server: its address is all that nodes and clients must know."""
    from pyrocache.nameserver.process import serve  # imported here, as in other commands: faster start
    from pyrocache.runtime.stop_request import StopRequest

    def ready(address: str) -> None:
        option = "" if address == DEFAULT_NAMESERVER else f" --nameserver {address}"
        print(f"Name server ready at {address}. Start nodes with: pyrocache nodes{option}", flush=True)

    _warn_if_insecure(insecure)
    stop = StopRequest()
    stop.on_signals()
    serve(host=host, port=port, storage=storage, insecure=insecure, stop=stop, ready=ready)


@app.command("nodes")
def nodes_command(
    nodes: Annotated[int, typer.Option(help="How many nodes to start.", min=1, max=256)] = 3,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    with_nameserver: Annotated[
        bool, typer.Option("--with-nameserver", help="Start a name server too when none answers.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address that the nodes listen on.")] = "127.0.0.1",
    max_memory: Annotated[str, typer.Option(help="Memory for the entries of each node.")] = "1GiB",
    weight: Annotated[float, typer.Option(help="Share of the keys, relative to the other nodes.")] = 1.0,
    max_value: Annotated[str, typer.Option(help="Largest encoded value that a node accepts.")] = "64MiB",
    eviction: Annotated[
        str, typer.Option(help="What to remove when memory is full.", metavar="|".join(EVICTION_POLICIES))
    ] = DEFAULT_EVICTION,
    name: Annotated[
        str | None, typer.Option(help="The name of a single node; by default the first free one.")
    ] = None,
    insecure: InsecureOption = False,
) -> None:
    """Start cache nodes, restart those that die, and end them with this command."""
    from pyrocache.cli.nodes import run

    if name is not None and nodes != 1:
        raise ConfigurationError("--name is for a single node: add --nodes 1.")
    config = NodeConfig(
        nameserver=nameserver,
        name=name,
        host=host,
        insecure=insecure,
        weight=weight,
        max_memory=parse_size(max_memory),
        max_value_bytes=parse_size(max_value),
        eviction=eviction,
    )
    _warn_if_insecure(insecure)
    raise typer.Exit(run(config, count=nodes, with_nameserver=with_nameserver))


@app.command("demo")
def demo_command(
    ttl: Annotated[float, typer.Option(help="TTL of the entry that expires, in seconds.", min=0.1)] = 2.0,
    keys: Annotated[int, typer.Option(help="Keys that four processes write.", min=4)] = 10_000,
) -> None:
    """Start a cluster of three nodes and show what it does."""
    from pyrocache.cli.demo import run

    raise typer.Exit(run(ttl=ttl, keys=keys))


@app.command("status")
def status_command(
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for answers.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the nodes and what they hold. Exit status 1 when a node does not answer."""
    with PyroCacheClient(nameserver, timeout=timeout) as cache:
        members = cache.nodes()
        stats = cache.stats()
    if as_json:
        listed = [{**asdict(member), "address": member.address} for member in members]
        print(json.dumps({"nameserver": nameserver, "members": listed, **stats.as_dict()}, indent=2))
    else:
        from pyrocache.cli.tables import print_status

        print_status(nameserver, members, stats)
    raise typer.Exit(1 if stats.away else 0)


@app.command("set")
def set_command(
    key: KeyArgument,
    value: Annotated[str, typer.Argument(help="The value, as text.", metavar="VALUE", show_default=False)],
    ttl: Annotated[float | None, typer.Option(help="Seconds until it expires; never by default.")] = None,
    namespace: NamespaceOption = None,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
) -> None:
    """Store a text under a key."""
    with _client(nameserver, namespace) as cache:
        try:
            cache.set(key, value, ttl_seconds=ttl)
        except PyroCacheError:  # some are ValueErrors, such as `KeyTooLarge`, but not because of --ttl
            raise
        except ValueError as error:
            raise ConfigurationError(f"--ttl: {error}") from error


@app.command("get")
def get_command(
    key: KeyArgument, namespace: NamespaceOption = None, nameserver: NameServerOption = DEFAULT_NAMESERVER
) -> None:
    """Print the repr of the value stored under a key. Exit status 1 when there is none."""
    missing = object()  # None is a value
    with _client(nameserver, namespace) as cache:
        value = cache.get(key, missing)
    if value is missing:
        raise PyroCacheError(_NO_ENTRY)
    print(repr(value))


@app.command("delete")
def delete_command(
    key: KeyArgument, namespace: NamespaceOption = None, nameserver: NameServerOption = DEFAULT_NAMESERVER
) -> None:
    """Remove the entry under a key. Exit status 1 when there is none."""
    with _client(nameserver, namespace) as cache:
        if not cache.delete(key):
            raise PyroCacheError(_NO_ENTRY)


@app.command("replay", hidden=True, context_settings=_ANY_OPTIONS)
def replay_command() -> None:
    """Say that the command was removed, and what replaces it."""
    removed = "`pyrocache replay` was removed. In the source tree, run"
    print(f"{removed} `python -m benchmarks replay TRACE` with the same options.", file=sys.stderr)
    raise typer.Exit(2)


def _client(nameserver: str, namespace: str | None) -> PyroCacheClient:
    return PyroCacheClient(nameserver, namespace=() if namespace is None else namespace)


def _warn_if_insecure(insecure: bool) -> None:
    if insecure:
        consequence = "whoever reaches this address can read, change and delete every entry."
        print(f"Warning: --insecure: {consequence}", file=sys.stderr)
