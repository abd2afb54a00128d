"""What a command prints: its output, one-line errors and reports, and commands to copy.

Thread safety: `report` may be called in any thread; the rest is for the main thread.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from contextlib import suppress

from pyrocache.config import DEFAULT_NAMESERVER
from pyrocache.settings import NAMESERVER_VARIABLE

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


def to_copy(command: str, nameserver: str) -> str:
    """Return a command line of this program, with this name server and the present secret, quoted for the shell."""
    words = ["pyrocache", command]
    if nameserver != DEFAULT_NAMESERVER or os.environ.get(NAMESERVER_VARIABLE):
        words += ["--nameserver", nameserver]
    if secret_file := given_secret_file():
        words += ["--secret-file", secret_file]
    return shlex.join(words)


_given: dict[str, str | None] = {}


def remember_secret_file(path: str | None) -> str | None:
    """Take the option ``--secret-file`` of the command that runs into what is printed to be copied. Return it."""
    _given["secret_file"] = path
    return path


def given_secret_file() -> str | None:
    """Return the option ``--secret-file`` of the command that runs."""
    return _given.get("secret_file")
