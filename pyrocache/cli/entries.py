"""The commands about entries: ``set``, ``get``, ``delete`` and ``scan``. `commands` gives them their names.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pyrocache.cli.options import (
    KeyArgument,
    NameServerOption,
    NamespaceOption,
    SecretFileOption,
    SigningOption,
    TimeoutOption,
    client_of,
)
from pyrocache.cli.output import write
from pyrocache.cli.tls_options import with_tls
from pyrocache.config import DEFAULT_NAMESERVER, DEFAULT_TIMEOUT_SECONDS, Encryption
from pyrocache.errors import ConfigurationError, PyroCacheError

_NO_ENTRY = "There is no entry under this key."


@with_tls()
def set_command(
    tls: Encryption,
    key: KeyArgument,
    value: Annotated[
        str,
        typer.Argument(
            help="The value, as text; - reads bytes from standard input.", metavar="VALUE", show_default=False
        ),
    ],
    ttl: Annotated[
        float | None, typer.Option(help="Seconds until it expires; never by default.", metavar="SECONDS")
    ] = None,
    namespace: NamespaceOption = None,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    signing_key_file: SigningOption = None,
    secret_file: SecretFileOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Store a text, or the bytes of standard input, under a key. Prints nothing.

    Put -- before a key or a value that begins with a dash.
    """
    stored = _standard_input() if value == "-" else value
    with client_of(nameserver, namespace, timeout, secret_file, signing_key_file, tls) as cache:
        try:
            cache.set(key, stored, ttl_seconds=ttl)
        except PyroCacheError:  # some are ValueErrors, such as `KeyTooLarge`, but not because of --ttl
            raise
        except ValueError as error:
            raise ConfigurationError(f"--ttl: {error}") from error


@with_tls()
def get_command(
    tls: Encryption,
    key: KeyArgument,
    raw: Annotated[
        bool, typer.Option("--raw", "-r", help="Write a str (in UTF-8) or bytes as it is, and nothing else.")
    ] = False,
    namespace: NamespaceOption = None,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    signing_key_file: SigningOption = None,
    secret_file: SecretFileOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Print the repr of the value stored under a key. Exit status 1 when there is none."""
    from pyrocache.cli.values import as_bytes, as_text

    missing = object()  # None is a value
    with client_of(nameserver, namespace, timeout, secret_file, signing_key_file, tls) as cache:
        value = cache.get(key, missing)
    if value is missing:
        raise PyroCacheError(_NO_ENTRY)
    write(as_bytes(value) if raw else f"{as_text(value)}\n")


@with_tls()
def delete_command(
    tls: Encryption,
    key: KeyArgument,
    namespace: NamespaceOption = None,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    signing_key_file: SigningOption = None,
    secret_file: SecretFileOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Remove the entry under a key. Exit status 1 when there is none."""
    with client_of(nameserver, namespace, timeout, secret_file, signing_key_file, tls) as cache:
        if not cache.delete(key):
            raise PyroCacheError(_NO_ENTRY)


@with_tls()
def scan_command(
    tls: Encryption,
    prefix: Annotated[
        str | None,
        typer.Argument(
            help="Only keys that are texts with this prefix.", metavar="[PREFIX]", show_default=False
        ),
    ] = None,
    namespace: NamespaceOption = None,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    signing_key_file: SigningOption = None,
    secret_file: SecretFileOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Print the repr of each key, one on a line, in no order."""
    from pyrocache.cli.values import as_text

    with client_of(nameserver, namespace, timeout, secret_file, signing_key_file, tls) as cache:
        for key in cache.scan(prefix):
            write(f"{as_text(key)}\n")


def _standard_input() -> bytes:
    if sys.stdin is None:  # it was closed by whoever started this
        raise ConfigurationError("There is no standard input to read the value from.")
    return sys.stdin.buffer.read()
