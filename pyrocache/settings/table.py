"""The settings that exist, made from the dataclasses of `pyrocache.config`: names, variables, kinds and defaults.

A new field of a dataclass becomes a setting without further code, unless `_NOT_SETTINGS` has it. `Setting.check` parses
and checks a value.

Thread safety: thread-safe; everything is immutable.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple

from pyrocache.config import (
    DEFAULT_NAMESERVER,
    TLS,
    ClientConfig,
    NameServerConfig,
    NodeConfig,
    parse_address,
    parse_size,
    ttl_to_seconds,
)
from pyrocache.errors import ConfigurationError

TABLES: dict[str, Any] = {
    "tls": TLS,
    "name_server": NameServerConfig,
    "node": NodeConfig,
    "client": ClientConfig,
}

_NOT_SETTINGS = {
    "tls": frozenset[str](),
    # `nameserver` and `tls` are settings of all; the others belong to one process, or to the code of a program.
    "name_server": frozenset({"tls"}),
    "node": frozenset({"nameserver", "tls", "name", "new_cluster"}),
    "client": frozenset({"nameserver", "tls", "namespace", "codec", "secret"}),
}

_SIZES = {"max_memory", "max_value_bytes", "max_buffered_bytes", "compress_above"}
_PATHS = {"ca", "cert", "key", "secret_file", "signing_key_file"}
_KINDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "flag",
    "OnError": "text",
    "OnUndecodable": "text",
    "SerializerChoice": "text",
    "TransportChoice": "text",
    "tuple[str, ...]": "names",
}

# What a field needs beside it to be checked alone.
_COMPANIONS: dict[str, dict[str, Any]] = {
    "host": {"advertise": "localhost", "tls": False},
    "max_value_bytes": {"max_memory": 2**40},
}

_FLAGS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_WHOLE = re.compile(r"[+-]?\d{1,18}")


class Found(NamedTuple):
    """The value of a setting, and where it was found: ``$VARIABLE`` or the path of the file."""

    value: Any
    source: str


def _text(value: Any, _: str | None) -> Any:
    return value if isinstance(value, str) else _wrong("a text", value)


def _flag(value: Any, variable: str | None) -> Any:
    if variable is not None and (flag := _FLAGS.get(value.strip().lower())) is not None:
        return flag
    return value if isinstance(value, bool) else _wrong("1 or 0" if variable else "true or false", value)


def _whole_number(value: Any, variable: str | None) -> Any:
    if variable is not None and _WHOLE.fullmatch(value.strip()):
        return int(value)
    return value if type(value) is int else _wrong("a whole number", value)


def _number(value: Any, variable: str | None) -> Any:
    if variable is not None:
        try:
            return float(value)
        except ValueError:
            return _wrong("a number", value)
    return value if type(value) in (int, float) else _wrong("a number", value)


def _size(value: Any, _: str | None) -> Any:
    if isinstance(value, str):
        return 0 if value.strip() == "0" else parse_size(value)
    return value if type(value) is int and value >= 0 else _wrong("a size like 256MiB", value)


def _path(value: Any, _: str | None) -> Any:
    return value if isinstance(value, str) and value else _wrong("a path", value)


def _names(value: Any, variable: str | None) -> Any:
    if variable is not None:
        return tuple(name.strip() for name in value.split(","))
    valid = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return tuple(value) if valid else _wrong("a list of texts", value)


def _wrong(kind: str, value: Any) -> Any:
    shown = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    raise ConfigurationError(f"It must be {kind}, not {shown}.")


_READERS: dict[str, Callable[[Any, str | None], Any]] = {
    "text": _text,
    "flag": _flag,
    "whole number": _whole_number,
    "number": _number,
    "size": _size,
    "path": _path,
    "names": _names,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        table: the table of the file that it is in; ``""`` for the top level.
        field: its name there, which is that of the dataclass's field.
        kind: a key of `_READERS`.
        default: the value that holds without it.
    """

    table: str
    field: str
    kind: str
    default: Any

    @property
    def name(self) -> str:
        """Its name as ``pyrocache config`` shows it: ``nameserver``, ``node.max_memory``."""
        return f"{self.table}.{self.field}" if self.table else self.field

    @property
    def variable(self) -> str:
        """The name of its environment variable."""
        return f"PYROCACHE_{self.name.replace('.', '_').upper()}"

    def check(self, value: Any, *, variable: bool, directory: str) -> Any:
        """Return the value as the dataclass has it.

        Args:
            value: what a TOML file has, or the text of a variable.
            variable: whether it is the text of a variable.
            directory: the absolute path that a relative path in the value refers to.

        Raises:
            ConfigurationError: it is not valid.
        """
        read = _READERS[self.kind](value, self.variable if variable else None)
        if self.kind == "path":
            return os.path.normpath(os.path.join(directory, os.path.expanduser(read)))
        if self.name == "name_server.storage" and read.startswith("sql:") and len(read) > 4:
            read = f"sql:{os.path.normpath(os.path.join(directory, os.path.expanduser(read[4:])))}"
        self._check_alone(read)
        return read

    def _check_alone(self, value: Any) -> None:
        if self.name == "nameserver":
            parse_address(value)
        elif self.table == "client" and self.field == "ttl_seconds":
            try:
                ttl_to_seconds(value)
            except (TypeError, ValueError) as error:
                raise ConfigurationError(str(error)) from None
        elif self.table not in ("", "tls"):
            TABLES[self.table](**{**_COMPANIONS.get(self.field, {}), self.field: value})


@functools.cache
def settings() -> dict[str, Setting]:
    """Return all settings by name: those of the top level first, then by table."""
    found = [
        Setting("", "nameserver", "text", DEFAULT_NAMESERVER),
        Setting("", "secret_file", "path", None),
        Setting("", "no_tls", "flag", False),
    ]
    for table, config in TABLES.items():
        for field in fields(config):
            if field.name not in _NOT_SETTINGS[table]:
                default = None if field.default is MISSING else field.default
                found.append(Setting(table, field.name, _kind(field.name, str(field.type)), default))
    return {setting.name: setting for setting in found}


def by_variable() -> dict[str, Setting]:
    """Return all settings by the names of their variables."""
    return {setting.variable: setting for setting in settings().values()}


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names the known word that is most like this one; ``""`` if none is."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {nearest[0]}?" if nearest else ""


def _kind(name: str, annotation: str) -> str:
    if name in _PATHS:
        return "path"
    if name in _SIZES:
        return "size"
    return _KINDS[annotation.removesuffix(" | None")]
