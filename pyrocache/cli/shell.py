"""The command ``pyrocache shell``: a Python prompt with a client of the cluster, named ``cache``.

On a terminal, it is IPython's prompt, or that of the standard library without IPython. With ``--code``, or if standard
input is not a terminal, it runs that code and ends as ``python`` does, with its exit status.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

import os
import sys
import traceback
from types import CodeType, ModuleType
from typing import Annotated, Any

import typer

from pyrocache.cli.options import (
    NameServerOption,
    NamespaceOption,
    SecretFileOption,
    SigningOption,
    TimeoutOption,
)
from pyrocache.cli.output import BROKEN_PIPE, discard_output, report
from pyrocache.cli.tls_options import with_tls
from pyrocache.client.client import PyroCacheClient
from pyrocache.config import DEFAULT_NAMESERVER, DEFAULT_TIMEOUT_SECONDS, Encryption
from pyrocache.errors import ConfigurationError, PyroCacheError


@with_tls()
def shell_command(
    tls: Encryption,
    code: Annotated[
        str | None,
        typer.Option("--code", "-c", help="Run this code and end.", metavar="CODE", show_default=False),
    ] = None,
    namespace: NamespaceOption = None,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    signing_key_file: SigningOption = None,
    secret_file: SecretFileOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Start a Python prompt (IPython if it is installed) with a client named cache and the module pyrocache.

    Also runs --code, or the code in standard input, with the exit status of python.
    """
    import pyrocache

    if code is None and sys.stdin is None:
        raise ConfigurationError("There is no standard input to read code from: give some with --code.")
    with PyroCacheClient(
        nameserver,
        namespace=() if namespace is None else namespace,
        timeout=timeout,
        secret_file=secret_file,
        signing_key_file=signing_key_file,
        tls=tls,
    ) as cache:
        # A module of its own, which has the classes that are defined in the shell, for pickle.
        main = sys.modules["__main__"] = ModuleType("__main__")
        names = main.__dict__
        names.update(cache=cache, pyrocache=pyrocache)
        if code is not None:
            sys.argv = ["-c"]
            _run(code, "<string>", names)
        elif not sys.stdin.isatty():
            sys.argv = [""]
            _run(sys.stdin.buffer.read(), "<stdin>", names)
        else:
            sys.argv = [""]
            _prompt(cache, nameserver, names)


def _run(source: str | bytes, name: str, names: dict[str, Any]) -> None:
    """Run code. An exception is printed with the frames of the code alone, and gives the exit status 1."""
    try:
        exec(_compiled(source, name), names)
        _flush()
    except (SystemExit, KeyboardInterrupt):  # `entry` says what these mean
        raise
    except BrokenPipeError:  # most likely of its output; typer would end with status 1
        discard_output()
        raise typer.Exit(BROKEN_PIPE) from None
    except BaseException as error:
        trace = error.__traceback__
        _flush()
        traceback.print_exception(type(error), error, trace.tb_next if trace is not None else None)
        raise typer.Exit(1) from None


def _compiled(source: str | bytes, name: str) -> CodeType:
    try:
        return compile(source, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        error.__traceback__ = None  # it is about the code, and no frame of ours has to do with it
        raise


def _flush() -> None:
    """Write what the code has printed before its traceback."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _prompt(cache: PyroCacheClient, nameserver: str, names: dict[str, Any]) -> None:
    try:
        count = len(cache.nodes())
        found = "1 node" if count == 1 else f"{count} nodes"
    except PyroCacheError as error:
        report(f"Warning: {error}")
        found = "no nodes yet"
    banner = f"cache is a client of the cluster at {nameserver}, {found}."
    try:
        from IPython import start_ipython
        from traitlets.config import Config  # which IPython needs
    except ImportError:
        _standard_prompt(banner, names)
        return
    import pyrocache

    config = Config()
    config.TerminalInteractiveShell.banner1 = f"{banner}\n"
    if hasattr(pyrocache, "load_ipython_extension"):
        config.InteractiveShellApp.extra_extensions = ["pyrocache"]
    if os.environ.get("NO_COLOR"):
        config.TerminalInteractiveShell.colors = "nocolor"
    start_ipython(argv=[], user_ns=names, config=config)


def _standard_prompt(banner: str, names: dict[str, Any]) -> None:
    """Run the prompt of the standard library, with history and completion where there is readline."""
    import code

    try:
        import readline
        import rlcompleter
    except ImportError:
        pass
    else:
        readline.set_completer(rlcompleter.Completer(names).complete)
        readline.parse_and_bind("tab: complete")
    code.interact(banner, local=names, exitmsg="")
