"""`main`: runs a command line. Prepares streams and environment, and maps the outcome to an exit status.

===  ==============================================================================================
0    success
1    an error, printed as one sentence on standard error: no such entry, a node that does not answer;
     with ``--json``, it is also on standard output, as JSON
2    a wrong command line, also one sentence
130  Ctrl-C; before the command begins, SIGINT ends the process, which a shell reports in the same way
141  the reader of the output has closed the pipe, as `head` does
===  ==============================================================================================

`pyrocache shell` ends with the status of the code that it runs. A signal such as SIGTERM ends commands that only ask
without a status of their own; those that serve stop in order, see `runtime.stop_request`.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from pyrocache.cli.output import (
    BROKEN_PIPE,
    discard_output,
    fail,
    forget_options,
    report,
    with_given_options,
    write,
)
from pyrocache.errors import PyroCacheError
from pyrocache.runtime.shortage import explain

_WRONG_COMMAND_LINE = 2
_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def main(command: str | None = None) -> NoReturn:
    """Run the command line of this process, or only ``command`` with its arguments."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A value's repr may have characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    for variable in [name for name in os.environ if name.startswith("PYRO_")]:
        del os.environ[variable]  # Pyro5 would refuse to start, or speak another dialect than the nodes
    try:
        status = _status(command)
    except KeyboardInterrupt:  # while an error was printed
        status = _INTERRUPTED
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # from here on, Ctrl-C could only print a traceback
    sys.exit(status)


def _status(command: str | None) -> int:
    try:
        status = _run(command)
        write("")  # what is still buffered; when the interpreter flushes it, an error is too late
        return status
    except PyroCacheError as error:
        fail(with_given_options(str(error)))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return BROKEN_PIPE
    except (OSError, RuntimeError) as error:
        cause = explain(error)
        if cause is None and isinstance(error, RuntimeError):
            raise
        fail(f"Cannot go on: {cause or getattr(error, 'strerror', None) or error}.")
        discard_output()
    return 1


def _run(command: str | None) -> int:
    """Run the command and return its exit status."""
    forget_options()
    with _ended_by_ctrl_c():
        import typer

        from pyrocache.cli.commands import app
        from pyrocache.cli.config import of_script

    usage_error: Any = typer.BadParameter.__mro__[1]  # click's own, or that of typer's copy of click
    program: Any = typer.main.get_command(app)
    _join_lines_of_help(program)
    name, more = "pyrocache", {}
    if command is not None:
        more = {"default_map": of_script(program, command)}
        program, name = program.commands[command], f"python {Path(sys.argv[0]).name}"
    try:
        return program.main(prog_name=name, standalone_mode=False, **more) or 0
    except usage_error as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # which has printed the help
            report(_usage(error, name))
        return _WRONG_COMMAND_LINE


def _join_lines_of_help(command: Any) -> None:
    """Let the paragraphs of the help be wrapped as the terminal needs it: typer keeps the line ends of docstrings."""
    if command.help:
        command.help = "\n\n".join(" ".join(part.split()) for part in command.help.split("\n\n"))
    for inner in getattr(command, "commands", {}).values():
        _join_lines_of_help(inner)


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process without an exception, which imports may swallow or print."""
    if signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, signal.SIG_DFL):
        yield  # such as SIG_IGN, in the background
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _usage(error: Any, name: str) -> str:
    """Return what is wrong with a command line as one sentence."""
    command = error.ctx.command_path if error.ctx is not None else name
    problem = " ".join(error.format_message().split()).rstrip(".")
    option = str(getattr(error, "option_name", ""))
    if option.startswith("-") and not option.startswith("--"):
        problem += ". An argument that begins with a dash must come after --"
    return f"{command}: {problem}. See: {command} --help"
