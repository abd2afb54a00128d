"""The TLS options of all commands that connect or serve. `with_tls` adds them to a command.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from inspect import Parameter
from typing import Annotated, Any

import typer

from pyrocache.cli.output import remember_tls
from pyrocache.config import TLS, Encryption
from pyrocache.errors import ConfigurationError

_PANEL = "Encryption"


def encryption(
    *,
    ca: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    require_client_cert: bool = False,
    no_tls: bool = False,
) -> Encryption:
    """Return the encryption that the options ask for. Remember it for the commands that are printed to be copied.

    Raises:
        ConfigurationError: they contradict each other, or one is missing.
    """
    wanted = require_client_cert or not (ca is cert is key is None)
    if no_tls and wanted:
        raise ConfigurationError("--no-tls contradicts the other options of TLS: give either it or them.")
    tls = TLS(ca=ca, cert=cert, key=key, require_client_cert=require_client_cert) if wanted else None
    return remember_tls(False if no_tls else tls)


def with_tls(*, server: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that replaces the argument ``tls`` of a command by these options, and computes it from them.

    Args:
        server: whether the command starts servers.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**arguments: Any) -> None:
            given = {name.removeprefix("tls_"): arguments.pop(name) for name in names}
            command(**arguments, tls=encryption(**given))

        options = _options(server)
        names = [option.name for option in options]
        own = inspect.signature(command, eval_str=True)
        others = [parameter for name, parameter in own.parameters.items() if name != "tls"]
        run.__signature__ = own.replace(parameters=[*others, *options])  # type: ignore[attr-defined]
        return run

    return decorate


def _options(server: bool) -> list[Parameter]:
    cert = "The certificate, followed by any intermediate ones."
    certs = cert if server else "The client certificate, if the servers require one."
    no_tls = (
        "Encrypt nothing, even if other hosts can connect."
        if server
        else "Encrypt nothing, not even connections to other hosts."
    )
    options = [
        _file("tls_cert", certs),
        _file("tls_key", "The private key of the certificate."),
        _file(
            "tls_ca", "The certificates of the authorities that are trusted to sign those of the other ends."
        ),
    ]
    if server:
        options.append(_flag("tls_require_client_cert", "Require a certificate from every caller."))
    return [*options, _flag("no_tls", no_tls)]


def _file(name: str, text: str) -> Parameter:
    option = typer.Option(help=text, metavar="FILE", show_default=False, rich_help_panel=_PANEL)
    return _parameter(name, None, Annotated[str | None, option])


def _flag(name: str, text: str) -> Parameter:
    option = typer.Option(f"--{name.replace('_', '-')}", help=text, rich_help_panel=_PANEL)
    return _parameter(name, False, Annotated[bool, option])


def _parameter(name: str, default: Any, annotation: Any) -> Parameter:
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)
