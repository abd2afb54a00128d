"""The options that several commands have, and the client that they describe.

A short option has one meaning in the commands that ask a cluster.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pyrocache.cli.output import remember_json, remember_secret_file
from pyrocache.client.client import PyroCacheClient
from pyrocache.config import Encryption, OnUndecodable
from pyrocache.runtime.secret_file import FILE_VARIABLE
from pyrocache.settings import NAMESERVER_VARIABLE

PROBE_SECONDS = 2.0
"""The timeout of commands that only look."""


def _found(context: typer.Context, nameserver: str) -> str:
    """Return the address where `pyrocache.connect` finds the user's cluster, if none is configured or given."""
    source = context.get_parameter_source("nameserver")
    if source is None or source.name != "DEFAULT" or context.resilient_parsing:
        return nameserver
    from pyrocache.detached.connect import address_of_commands  # imported here: it takes 40 ms

    return address_of_commands()


NameServerOption = Annotated[
    str,
    typer.Option(
        "--nameserver",
        "-s",
        help="Address of the name server; by default, also that of the cluster that pyrocache.connect() has started.",
        envvar=NAMESERVER_VARIABLE,
        metavar="HOST:PORT",
        callback=_found,
    ),
]
NameServerOfNodesOption = Annotated[
    str,
    typer.Option(
        "--nameserver",
        "-s",
        help="Address of the name server.",
        envvar=NAMESERVER_VARIABLE,
        metavar="HOST:PORT",
    ),
]
PortOption = Annotated[
    int, typer.Option("--port", "-p", help="Port to listen on; 0 for a free one.", metavar="PORT")
]
AdvertiseOption = Annotated[
    str | None,
    typer.Option(
        help="The address that others connect to, if it differs from where this listens: behind NAT or a mapped port, "
        "or with --host 0.0.0.0.",
        metavar="HOST[:PORT]",
        show_default=False,
    ),
]
NamespaceOption = Annotated[str | None, typer.Option("--namespace", "-n", help="Work in this namespace.")]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", "-t", help="Seconds to wait for answers.", metavar="SECONDS")
]


def _remember_json(as_json: bool) -> bool:  # typer passes it by the names of its parameters
    return remember_json(as_json)


JsonOption = Annotated[
    bool, typer.Option("--json", "-j", help="Print JSON, also of an error.", callback=_remember_json)
]
SecretFileOption = Annotated[
    str | None,
    typer.Option(
        callback=remember_secret_file,
        help=f"The secret file, in place of the usual one or of ${FILE_VARIABLE}.",
        metavar="FILE",
        show_default=False,
    ),
]
SigningOption = Annotated[
    str | None,
    typer.Option(
        "--signing-key-file",
        help="The file with the keys that sign values.",
        metavar="FILE",
        show_default=False,
    ),
]
KeyArgument = Annotated[str, typer.Argument(help="The key, as text.", metavar="KEY", show_default=False)]


def client_of(
    nameserver: str,
    namespace: str | None,
    timeout: float,
    secret_file: str | None,
    signing_key_file: str | None,
    tls: Encryption,
    on_undecodable: OnUndecodable = "raise",
) -> PyroCacheClient:
    """Return a client for a command, which raises every error."""
    return PyroCacheClient(
        nameserver,
        namespace=() if namespace is None else namespace,
        timeout=timeout,
        secret_file=secret_file,
        signing_key_file=signing_key_file,
        tls=tls,
        on_error="raise",  # whatever the settings say: a command tells what is wrong
        on_undecodable=on_undecodable,
    )
