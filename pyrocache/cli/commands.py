"""The command line of ``pyrocache``: parses options into settings, reads the environment and prints results.

Options that several commands have are in `options`, the commands about entries in `entries`, and longer commands in
other modules next to this one. `entry` prints errors and gives the exit status.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pyrocache import __version__
from pyrocache.cli import entries
from pyrocache.cli.config import use, without_option
from pyrocache.cli.dump import dump_command, load_command
from pyrocache.cli.options import (
    PROBE_SECONDS,
    AdvertiseOption,
    JsonOption,
    NameServerOfNodesOption,
    NameServerOption,
    PortOption,
    SecretFileOption,
    SigningOption,
    TimeoutOption,
)
from pyrocache.cli.output import for_other_hosts, remember_json, report, to_copy, write
from pyrocache.cli.shell import shell_command
from pyrocache.cli.status import status_command
from pyrocache.cli.tls_options import with_tls
from pyrocache.cli.top import top_command
from pyrocache.client.client import PyroCacheClient
from pyrocache.config import (
    DEFAULT_EVICTION,
    DEFAULT_NAMESERVER,
    EVICTION_POLICIES,
    Encryption,
    NameServerConfig,
    NodeConfig,
    check_seconds,
    parse_advertised,
    parse_size,
)
from pyrocache.errors import ConfigurationError, PyroCacheError
from pyrocache.runtime.secret import find_secret
from pyrocache.runtime.secret_file import Keys
from pyrocache.settings import CONFIG_VARIABLE, NAMESERVER_VARIABLE, in_force

app = typer.Typer(
    name="pyrocache",
    help="A distributed in-memory cache for Python objects.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_ANY_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _version(value: bool) -> None:
    if value:
        write(f"pyrocache {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            help="The settings file, in place of the one that is found.",
            envvar=CONFIG_VARIABLE,
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
) -> None:
    use(context, config)


@app.command("nameserver")
@with_tls(server=True)
def nameserver_command(
    context: typer.Context,
    tls: Encryption,
    host: Annotated[
        str, typer.Option("--host", "-H", help="Address to listen on; 0.0.0.0 or :: for all.")
    ] = "127.0.0.1",
    port: PortOption = 9090,
    advertise: AdvertiseOption = None,
    storage: Annotated[
        str, typer.Option(help="Where to keep the registered nodes.", metavar="memory|sql:FILE")
    ] = "memory",
    secret_file: SecretFileOption = None,
) -> None:
    """Start a name server: nodes and clients find each other through its address."""
    from pyrocache.nameserver.process import serve  # imported here, as in other commands: faster start
    from pyrocache.runtime.service_manager import ServiceManager
    from pyrocache.runtime.stop_request import StopRequest

    manager = ServiceManager()

    def ready(address: str) -> None:
        manager.ready(f"Name server at {address}")
        write(f"Name server ready at {address}. Start nodes with: {to_copy('nodes', address)}")
        write(for_other_hosts(address, secret))

    config = NameServerConfig(
        **without_option(context, "name_server"),
        host=host,
        port=port,
        advertise=advertise,
        storage=storage,
        tls=tls,
    )
    _check_encryption(config)
    stop = StopRequest()
    stop.on_signals(reloads=bool(config.tls))
    secret = find_secret(secret_file)
    serve(config, secret=secret, stop=stop, ready=ready, manager=manager)
    manager.stopping()


nodes_app = typer.Typer(invoke_without_command=True)
app.add_typer(nodes_app, name="nodes")


@nodes_app.command("remove")
@with_tls()
def remove_command(
    tls: Encryption,
    name: Annotated[str, typer.Argument(help="The name of the node, as `pyrocache status` lists it.")],
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    secret_file: SecretFileOption = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            "-f",
            help="Remove it although it may be alive: you know that it does not exist any more.",
        ),
    ] = False,
) -> None:
    """Remove a dead node from the cluster, so that the others take its keys over."""
    from pyrocache.node.membership import strike_out

    if not strike_out(nameserver, name, find_secret(secret_file), force=force, tls=tls):
        raise PyroCacheError(
            f"{name} is not a node of this cluster. List its nodes with: {to_copy('status', nameserver)}"
        )
    write(f"{name} is removed. The other nodes take its keys over.")


@nodes_app.callback()
@with_tls(server=True)
def nodes_command(
    context: typer.Context,
    tls: Encryption,
    nodes: Annotated[int, typer.Option("--nodes", "-n", help="How many nodes to start.", min=1, max=256)] = 3,
    nameserver: NameServerOfNodesOption = DEFAULT_NAMESERVER,
    secret_file: SecretFileOption = None,
    with_nameserver: Annotated[
        bool, typer.Option("--with-nameserver", "-w", help="Also start a name server if none answers.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            "-H",
            help="Address to listen on; 0.0.0.0 or :: for all. By default, loopback if the name server is on loopback, "
            "else the address from which this host reaches the name server.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            "--port", "-p", help="Port of the first node; the others take the next ones. 0 for free ports."
        ),
    ] = 0,
    advertise: AdvertiseOption = None,
    max_memory: Annotated[
        str, typer.Option("--max-memory", "-m", help="Memory for the entries of each node.")
    ] = "1GiB",
    weight: Annotated[float, typer.Option(help="Share of the keys, relative to the other nodes.")] = 1.0,
    zone: Annotated[
        str,
        typer.Option(
            help="The rack, room or site that the nodes are in; `pyrocache status` shows it.",
            metavar="NAME",
            show_default=False,
        ),
    ] = "",
    max_value: Annotated[
        str | None,
        typer.Option(help="Largest encoded value that a node accepts; by default a quarter of --max-memory."),
    ] = None,
    eviction: Annotated[
        str,
        typer.Option(
            help="What to remove when memory is full.",
            metavar="|".join(EVICTION_POLICIES),
            autocompletion=lambda: list(EVICTION_POLICIES),
        ),
    ] = DEFAULT_EVICTION,
    name: Annotated[
        str | None, typer.Option(help="The name of a single node; by default the first free one.")
    ] = None,
    open_: Annotated[
        bool,
        typer.Option("--open", help="Also serve programs that do not know your secret; on loopback only."),
    ] = False,
) -> None:
    """Start cache nodes, restart those that die, and stop them when this command ends."""
    from pyrocache.cli.addresses import check_ports, host_of_nodes
    from pyrocache.cli.nodes import run

    if context.invoked_subcommand is not None:
        _pass_on(context)
        return
    if name is not None and nodes != 1:
        raise ConfigurationError("--name is for a single node: add --nodes 1.")
    config = NodeConfig(
        **without_option(context, "node"),
        nameserver=nameserver,
        name=name,
        host=host_of_nodes(nameserver, host, advertise),
        port=port,
        advertise=advertise,
        tls=tls,
        open=open_,
        weight=weight,
        zone=zone,
        max_memory=parse_size(max_memory),
        max_value_bytes=0 if max_value is None else parse_size(max_value),
        eviction=eviction,
    )
    check_ports(config, nodes)
    _check_encryption(config)
    if open_:
        report("Warning: --open: every user of this machine can read, change and delete every entry.")
    raise typer.Exit(run(config, find_secret(secret_file), count=nodes, with_nameserver=with_nameserver))


def _pass_on(context: typer.Context) -> None:
    """Let a command within another one have the options that were given before its name.

    Raises:
        typer.BadParameter: it has no such option.
    """
    command: Any = context.command
    inner = str(context.invoked_subcommand)
    known = {parameter.name for parameter in command.commands[inner].params}
    given = {}
    for parameter in command.params:
        source = context.get_parameter_source(parameter.name)
        if source is not None and source.name == "COMMANDLINE":
            if parameter.name not in known:
                raise typer.BadParameter(f"{inner} has no such option", context, parameter)
            given[parameter.name] = context.params[parameter.name]
    defaults = context.default_map or {}
    context.default_map = {**defaults, inner: {**defaults.get(inner, {}), **given}}


@app.command("config")
def config_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Show only these settings, or the settings of these tables, such as node.",
            metavar="[NAME]...",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the settings in force, and where each comes from: a variable, the settings file, or the default.

    Exit status 1 when one is not valid.
    """
    from pyrocache.cli.config import show

    show(names or [], as_json=as_json)


@app.command("stop")
def stop_command() -> None:
    """End your detached cluster, which pyrocache.connect() has started, and wait until it has ended. Entries are lost.

    Does nothing to a cluster that other commands have started. Exit status 0 also if there is none.
    """
    from pyrocache.detached.connect import stop

    address = stop()
    if address is None:
        write("You have no detached cluster that runs.")
    else:
        write(f"Your cluster at {address} has ended.")


@app.command("demo")
def demo_command(
    ttl: Annotated[float, typer.Option(help="TTL of the entry that expires, in seconds.", min=0.1)] = 2.0,
    keys: Annotated[int, typer.Option(help="Keys that four processes write.", min=4)] = 10_000,
) -> None:
    """Start a cluster of three nodes and show what it does."""
    from pyrocache.cli.demo import run

    raise typer.Exit(run(ttl=ttl, keys=keys))


app.command("status")(status_command)


@app.command("stats")
@with_tls()
def stats_command(
    tls: Encryption,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    secret_file: SecretFileOption = None,
    timeout: TimeoutOption = PROBE_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Print all statistics of the nodes. Exit status 1 when a node does not answer."""
    with PyroCacheClient(nameserver, timeout=timeout, secret_file=secret_file, tls=tls) as cache:
        stats = cache.stats()
    write(json.dumps(stats.as_dict(), indent=2) if as_json else repr(stats))
    raise typer.Exit(1 if stats.away else 0)


@app.command("ping")
@with_tls()
def ping_command(
    tls: Encryption,
    nodes: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ask these nodes only, like cache.node.1.", metavar="[NODE]...", show_default=False
        ),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            help="Ask again for up to this many seconds until the nodes serve.", min=0.0, metavar="SECONDS"
        ),
    ] = 0.0,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    secret_file: SecretFileOption = None,
    timeout: TimeoutOption = PROBE_SECONDS,
) -> None:
    """Tell whether the cache can serve: exit status 0 when every node serves, otherwise 1."""
    from pyrocache.cli.ping import run

    write(run(nameserver, nodes or [], timeout=timeout, wait=wait, secret_file=secret_file, tls=tls))


app.command("top")(top_command)
app.command("set")(entries.set_command)
app.command("get")(entries.get_command)
app.command("delete")(entries.delete_command)
app.command("scan")(entries.scan_command)
app.command("dump")(dump_command)
app.command("load")(load_command)
app.command("shell")(shell_command)


secret_app = typer.Typer(invoke_without_command=True)
app.add_typer(secret_app, name="secret")


@secret_app.callback()
def secret_command(context: typer.Context, secret_file: SecretFileOption = None) -> None:
    """Print the path of your secret file and how many keys it has. Make it if there is none.

    Processes that have the same secret trust each other. To replace its key while they run:

    1. add: a new key is accepted, and not used yet.

    2. promote: the new key is used, the old one is still accepted.

    3. prune: the old key is no longer accepted.

    Wait 10 seconds after each step, as processes read the file again every few seconds. If several hosts use the
    secret, take each step on one of them, and copy the file to the others before you wait.
    """
    from pyrocache.cli.secret import show

    context.obj = secret_file
    if context.invoked_subcommand is None:
        show(secret_file)


@secret_app.command("add")
def add_command(context: typer.Context, secret_file: SecretFileOption = None) -> None:
    """Step 1: add a new key, which is accepted and not used yet."""
    from pyrocache.cli.secret import change

    change(context.obj if secret_file is None else secret_file, Keys.stage)


@secret_app.command("promote")
def promote_command(context: typer.Context, secret_file: SecretFileOption = None) -> None:
    """Step 2: use the added key, and still accept the old one."""
    from pyrocache.cli.secret import change

    change(context.obj if secret_file is None else secret_file, Keys.promote)


@secret_app.command("prune")
def prune_command(context: typer.Context, secret_file: SecretFileOption = None) -> None:
    """Step 3: remove the old keys."""
    from pyrocache.cli.secret import change

    change(context.obj if secret_file is None else secret_file, Keys.prune)


def _remember_findings(as_json: bool) -> bool:
    return remember_json(
        as_json, lambda error: [{"level": "problem", "subject": "command", "what": error, "advice": ""}]
    )


@app.command("doctor")
@with_tls()
def doctor_command(
    context: typer.Context,
    tls: Encryption,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    secret_file: SecretFileOption = None,
    signing_key_file: SigningOption = None,
    timeout: TimeoutOption = PROBE_SECONDS,
    as_json: Annotated[
        bool, typer.Option("--json", "-j", help="Print JSON, also of an error.", callback=_remember_findings)
    ] = False,
) -> None:
    """Check name server, nodes, secret, certificates and this host, and say what to do about each finding.

    Changes nothing. Exit status 1 when there is a problem; notes alone give 0. --timeout applies to each step.
    """
    from pyrocache.cli.doctor.command import run
    from pyrocache.cli.doctor.gather import Settings

    settings = Settings(
        nameserver,
        source=_source(context, "nameserver"),
        tls=tls,
        secret_file=secret_file,
        signing_key_file=signing_key_file,
        seconds=check_seconds("--timeout", timeout),
    )
    raise typer.Exit(run(settings, as_json=as_json))


def _source(context: typer.Context, option: str) -> str:
    """Return where the value of an option is from."""
    source = context.get_parameter_source(option)
    name = source.name if source is not None else ""
    if name == "DEFAULT_MAP":
        return in_force().found[option].source
    if context.params.get(option) != DEFAULT_NAMESERVER and name == "DEFAULT":
        return "that of pyrocache.connect()"
    return {"COMMANDLINE": f"--{option}", "ENVIRONMENT": f"${NAMESERVER_VARIABLE}"}.get(name, "the default")


@app.command("certificates")
def certificates_command(
    directory: Annotated[
        str, typer.Argument(help="Where the files are made.", metavar="DIR", show_default=False)
    ],
    hosts: Annotated[
        list[str] | None,
        typer.Argument(
            help="The name or the IP address of a host; if it has several, separate them by commas.",
            metavar="HOST",
            show_default=False,
        ),
    ] = None,
    clients: Annotated[
        list[str] | None,
        typer.Option(
            "--client",
            help="Also make a certificate for a client of this name; may be repeated.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    days: Annotated[
        int, typer.Option(help="For how many days the certificates are valid.", min=1, max=3650)
    ] = 365,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew", help="Replace the certificates of these hosts and clients; without any, of all."
        ),
    ] = False,
) -> None:
    """Make certificates for TLS, signed by a private certificate authority.

    The first call makes the authority. Later calls, for other hosts, use the same one. Needs the package cryptography.
    """
    from pyrocache.cli import certificates

    holders = [*map(certificates.host, hosts or ()), *map(certificates.client, clients or ())]
    path = Path(directory).expanduser()
    made = certificates.make(path, holders, days=days, renew=renew)
    write(certificates.describe(path, made))


@app.command("replay", hidden=True, context_settings=_ANY_OPTIONS)
def replay_command() -> None:
    """Say that the command was removed, and what replaces it."""
    removed = "`pyrocache replay` was removed. In the source tree, run"
    report(f"{removed} `python -m benchmarks replay TRACE` with the same options.")
    raise typer.Exit(2)


def _check_encryption(config: NameServerConfig | NodeConfig) -> None:
    """Warn without encryption. Raises `ConfigurationError` if nobody would accept the certificate of this server."""
    if config.tls:
        from pyrocache.runtime.tls import check_own_certificate

        check_own_certificate(
            config.tls, parse_advertised(config.advertise)[0] if config.advertise else config.host
        )
    elif config.tls is False:
        report(
            "Warning: --no-tls: whoever is on the path can read and change values, which means running code in clients "
            "that do not use `signing_key_file`."
        )
