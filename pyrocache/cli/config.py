"""Settings on the command line: they replace the defaults of options, and ``pyrocache config`` shows them.

`defaults` is the only place that maps settings to options. An option takes the setting of its own name, or the one that
`_OPTIONS` names. So a new option needs no code here if it has the name of its setting.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from pyrocache.cli.output import report, write
from pyrocache.config import ClientConfig
from pyrocache.errors import ConfigurationError
from pyrocache.runtime.interpreter import CHILD_VARIABLE
from pyrocache.settings import CONFIG_VARIABLE, PROJECT_FILE_NAME, Settings, in_force
from pyrocache.settings.table import Found, Setting, by_variable, settings, suggestion

_OPTIONS = {
    "tls_ca": "tls.ca",
    "tls_cert": "tls.cert",
    "tls_key": "tls.key",
    "tls_require_client_cert": "tls.require_client_cert",
    "open_": "node.open",
    "max_value": "node.max_value_bytes",
}
"""The settings of options whose names differ. All others have the name of their setting: ``zone``, ``advertise``."""

_TABLES = {"nameserver": "name_server", "nodes": "node"}  # by command; the others are clients
_NO_SETTINGS = {"config", "demo", "replay"}
_OWN_TIMEOUT = {"status", "stats", "ping", "doctor", "top"}  # they only look, and wait less long


def use(context: Any, file: str | None) -> None:
    """Take the settings as defaults of the options of a command that is to run.

    If they are not valid, the command raises the `ConfigurationError` when it runs: ``--help`` needs no settings.

    Args:
        context: that of the program, which has not parsed the options of the command yet.
        file: the option ``--config``.
    """
    name = context.invoked_subcommand
    try:
        if file is not None:
            if not file:
                raise ConfigurationError("--config names no file.")
            os.environ[CONFIG_VARIABLE] = os.path.abspath(file)  # clients that this process makes read it too
        if name not in _NO_SETTINGS:
            context.default_map = defaults(context.command, _as_options_have_it(in_force(), sys.argv[1:]))
    except ConfigurationError as error:
        if name is not None:
            _refuse(context.command.commands[name], error)


def _refuse(command: Any, error: ConfigurationError) -> None:
    """Let a command of this process, and those within it, raise an error in place of what it does."""
    invoke, callback = command.invoke, command.callback

    def refuse(context: Any) -> Any:
        def run(**arguments: Any) -> None:
            if context.invoked_subcommand is None:
                raise error
            callback(**arguments)

        command.callback = run
        return invoke(context)

    command.invoke = refuse
    for inner in getattr(command, "commands", {}).values():
        _refuse(inner, error)


def of_script(program: Any, command: str) -> dict[str, Any]:
    """Return the ``default_map`` of a command that is a program of its own."""
    return dict(defaults(program, _as_options_have_it(in_force(), sys.argv[1:]))[command])


def _as_options_have_it(given: Settings, arguments: Sequence[str]) -> Settings:
    """Return the settings without those of TLS to which an option says the contrary."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = {argument.partition("=")[0] for argument in arguments[:end]}
    if "--no-tls" in options:
        contrary = "tls."
    elif options & {"--tls-ca", "--tls-cert", "--tls-key", "--tls-require-client-cert"}:
        contrary = "no_tls"
    else:
        return given
    found = {name: found for name, found in given.found.items() if not name.startswith(contrary)}
    return Settings(found, given.file)


def defaults(program: Any, given: Settings) -> dict[str, Any]:
    """Return the ``default_map`` of a program: the values of options by their names, for each command by its name."""
    return {
        name: _of_command(command, name, _TABLES.get(name, "client"), given)
        for name, command in program.commands.items()
        if name not in _NO_SETTINGS
    }


def _of_command(command: Any, name: str, table: str, given: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for option in _option_names(command):
        setting = _setting_of(option, name, table)
        if setting in given.found:
            found[option] = given.found[setting].value
    if name != "secret":  # its commands take the file from it
        for inner, subcommand in getattr(command, "commands", {}).items():
            found[inner] = _of_command(subcommand, inner, "client", given)
    return found


def _option_names(command: Any) -> list[str]:
    return [parameter.name for parameter in command.params if parameter.param_type_name == "option"]


def _setting_of(option: str, command: str, table: str) -> str:
    """Return the name that the setting of an option has, if there is one."""
    if option == "timeout" and command in _OWN_TIMEOUT:
        return ""
    if option == "ttl" and command == "set":
        return "client.ttl_seconds"
    name = _OPTIONS.get(option, option)
    return name if name in settings() else f"{table}.{name}"


def without_option(context: Any, table: str) -> dict[str, Any]:
    """Return the given settings of a table for which the command that runs has no option."""
    options = {_setting_of(option, context.info_name, table) for option in _option_names(context.command)}
    return {
        field: value for field, value in in_force().of(table).items() if f"{table}.{field}" not in options
    }


# The command ``pyrocache config`` -----------------------------------------------------------------------------


def show(names: Sequence[str], *, as_json: bool) -> None:
    """Print the settings in force, or those that are named, and where each comes from.

    Raises:
        ConfigurationError: a setting is not valid, or a name is not one.
    """
    for sentence in _unknown_variables():
        report(f"Warning: {sentence}")
    given = in_force()
    ClientConfig(**{**given.of("client"), "tls": given.tls})
    lines = _lines_of(given.file)
    rows = [_row(setting, given.found.get(setting.name), lines) for setting in _named(names)]
    if as_json:
        shown = {name: {"value": value, "from": source} for name, value, source in rows}
        write(json.dumps({"file": given.file, "settings": shown}, indent=2))
        return
    texts = [(name, _text(value), source) for name, value, source in rows]
    widths = [max(len(row[column]) for row in texts) for column in (0, 1)]
    table = [f"{name.ljust(widths[0])}  {value.ljust(widths[1])}  {source}" for name, value, source in texts]
    which = "No settings file was read." if given.file is None else f"Settings file: {given.file}"
    write("\n".join([which, *table]))


def _unknown_variables() -> list[str]:
    """Return a sentence about each variable that begins like a setting and is none."""
    known = by_variable()
    return [
        f"${name} is not a setting.{suggestion(name, known)}"
        for name in sorted(os.environ)
        if name.startswith("PYROCACHE_") and name not in {*known, CONFIG_VARIABLE, CHILD_VARIABLE}
    ]


def _named(names: Sequence[str]) -> list[Setting]:
    """Return the settings with these names, or in these tables; all if there are none.

    Raises:
        ConfigurationError: there is no setting or table of such a name.
    """
    known = settings()
    for name in names:
        if name not in known and not any(setting.table == name for setting in known.values()):
            raise ConfigurationError(f"There is no setting {name!r}.{suggestion(name, known)}")
    return [
        setting for setting in known.values() if not names or setting.name in names or setting.table in names
    ]


def _row(setting: Setting, found: Found | None, lines: dict[str, int]) -> tuple[str, Any, str]:
    if found is None:
        return setting.name, setting.default, "default"
    line = None if found.source.startswith("$") else lines.get(setting.name)
    return setting.name, found.value, found.source if line is None else f"{found.source}:{line}"


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return (
        ",".join(value) if isinstance(value, tuple) else f"{value:g}" if type(value) is float else str(value)
    )


_HEADER = re.compile(r"\s*\[([\w.\s\"'-]+)\]")
_ENTRY = re.compile(r"\s*([\w.\s\"'-]+?)\s*=")


def _lines_of(path: str | None) -> dict[str, int]:
    """Return the numbers of the lines of a file that look like those of settings, by their names.

    The parser does not tell them. A setting that is written in another form is shown without its line.
    """
    lines: dict[str, int] = {}
    if path is None:
        return lines
    above = "tool.pyrocache." if os.path.basename(path) == PROJECT_FILE_NAME else ""
    table = ""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if header := _HEADER.match(line):
                    table = f"{_plain(header[1])}."
                elif entry := _ENTRY.match(line):
                    name = f"{table}{_plain(entry[1])}"
                    if name.startswith(above):
                        lines.setdefault(name.removeprefix(above), number)
    except OSError:  # it was a pipe, or has gone since it was read
        return {}
    return lines


def _plain(key: str) -> str:
    return re.sub(r"[\s\"']", "", key)
