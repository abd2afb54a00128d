"""What a command prints: its output, one-line errors and reports, and commands to copy.

Thread safety: `report` may be called in any thread; the rest is for the main thread.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pyrocache.config import DEFAULT_NAMESERVER, TLS, Encryption, is_loopback, parse_address
from pyrocache.runtime.secret import Secret
from pyrocache.settings import NAMESERVER_VARIABLE

_COMMAND_AT_END = re.compile(r"pyrocache (nameserver|nodes|status)(?: --[a-z-]+ [^\s,;]+)*$")

BROKEN_PIPE = 141
"""The exit status when nobody reads the output any more: 128 + SIGPIPE, as a shell reports it for other programs."""


def write(output: str | bytes) -> None:
    """Write to standard output at once. A str is written with a line end, unless it is empty or has one; bytes as is.

    Raises:
        SystemExit: nobody reads the output any more.
        OSError: it cannot be written.
    """
    stream = sys.stdout
    if stream is None:  # it was closed by whoever started this
        if output:
            raise OSError(errno.EBADF, "standard output is closed")
        return
    if isinstance(output, str):
        text = output if output.endswith("\n") or not output else f"{output}\n"
        output = text.encode(stream.encoding, stream.errors or "strict")
    try:
        stream.flush()
        rest = memoryview(output)
        while rest:
            rest = rest[stream.buffer.write(rest) :]  # only a part with $PYTHONUNBUFFERED, if the reader ends
        stream.buffer.flush()
    except BrokenPipeError:  # typer would end with status 1
        discard_output()
        sys.exit(BROKEN_PIPE)


def discard_output() -> None:
    """Drop what could not be written, or the interpreter would try again when it ends, and print a traceback."""
    with suppress(OSError, ValueError, AttributeError):  # a closed stream, or none
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def report(text: str) -> None:
    """Print an error or an event on standard error. If that is not possible, do nothing."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def fail(error: str) -> None:
    """Print an error on standard error; also as JSON on standard output if the present command prints JSON."""
    report(error)
    if _given.json is not None:
        with suppress(OSError):
            write(json.dumps(_given.json(error)))


def to_copy(command: str, nameserver: str) -> str:
    """Return a command line of this program, quoted for the shell.

    It has this name server, and the options of the present command for the secret and for TLS.
    """
    words = ["pyrocache", *command.split()]
    if nameserver != DEFAULT_NAMESERVER or os.environ.get(NAMESERVER_VARIABLE):
        words += ["--nameserver", nameserver]
    words += _tls_options(_given.tls, serves=command == "nodes")
    if _given.secret_file:
        words += ["--secret-file", _given.secret_file]
    return shlex.join(words)


def with_given_options(error: str) -> str:
    """Return an error of the package with the options of the present command in the command that it ends with.

    The package names commands as they are for a cache on one host.
    """
    match = _COMMAND_AT_END.search(error)
    if match is None or any(word in match[0] for word in ("-tls", "--secret-file")):
        return error
    words = _tls_options(_given.tls, serves=match[1] in ("nodes", "nameserver"))
    if _given.secret_file:
        words += ["--secret-file", _given.secret_file]
    return f"{error} {shlex.join(words)}" if words else error


def client_to_copy(nameserver: str) -> str:
    """Return a Python expression that makes a client with what `to_copy` takes from the present command."""
    arguments = [repr(nameserver)]
    if _given.secret_file:
        arguments.append(f"secret_file={_given.secret_file!r}")
    if _given.tls is False:
        arguments.append("tls=False")
    elif _given.tls is not None:
        files = ", ".join(f"{name}={path!r}" for name, path in _files(_given.tls, serves=False).items())
        arguments.append(f"tls=pyrocache.TLS({files})")
    return f"pyrocache.PyroCacheClient({', '.join(arguments)})"


def for_other_hosts(nameserver: str, secret: Secret) -> str:
    """Return a sentence about what processes on other hosts need; empty if none reaches the name server."""
    if is_loopback(parse_address(nameserver)[0]):
        return ""
    if secret.path is None:
        return (
            "Nothing else can use it: the secret is only in the memory of this process. Start it again with "
            "--secret-file FILE, which `pyrocache secret --secret-file FILE` makes."
        )
    return f"Other hosts need a copy of the secret file {secret.path}, at the same place."


@dataclass
class _Given:
    """The options of the present command that printed commands repeat, and the form of errors."""

    secret_file: str | None = None
    tls: Encryption = None
    json: Callable[[str], Any] | None = None  # the form of an error, if the output is JSON


_given = _Given()


def forget_options() -> None:
    """Begin a command: none of its options is known."""
    global _given
    _given = _Given()


def remember_json(as_json: bool, form: Callable[[str], Any] = lambda error: {"error": error}) -> bool:
    """Take the option ``--json`` of the command that runs. Return it.

    Args:
        form: what a failure of the command prints, made of the sentence.
    """
    _given.json = form if as_json else None
    return as_json


def remember_secret_file(path: str | None) -> str | None:
    """Take the option ``--secret-file`` of the command that runs into what is printed to be copied. Return it."""
    _given.secret_file = os.path.abspath(path) if path else None
    return path


def remember_tls(tls: Encryption) -> Encryption:
    """Take the options of TLS of the command that runs into what is printed to be copied. Return them."""
    _given.tls = tls
    return tls


def _tls_options(tls: Encryption, *, serves: bool) -> list[str]:
    if not isinstance(tls, TLS):
        return ["--no-tls"] if tls is False else []
    words = [word for name, path in _files(tls, serves=serves).items() for word in (f"--tls-{name}", path)]
    return [*words, "--tls-require-client-cert"] if serves and tls.require_client_cert else words


def _files(tls: TLS, *, serves: bool) -> dict[str, str]:
    """Return the files that another command needs. A client needs a certificate only if it is required."""
    own = serves or tls.require_client_cert or tls.ca is None
    files = {"cert": tls.cert, "key": tls.key} if own else {}
    return {name: path for name, path in {**files, "ca": tls.ca}.items() if path is not None}
