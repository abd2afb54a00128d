"""Checked settings, from the content of a file and from variables. Variables take precedence over the file.

Thread safety: functions without state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pyrocache.errors import ConfigurationError
from pyrocache.settings import Settings
from pyrocache.settings.file import Content
from pyrocache.settings.table import TABLES, Found, Setting, by_variable, settings, suggestion

_ENCRYPTED = {"tls.ca", "tls.cert", "tls.key"}


def settings_of(content: Content | None, variables: Mapping[str, str]) -> Settings:
    """Return the settings that a file and the variables of the environment give.

    Raises:
        ConfigurationError: a setting is unknown, or not valid; or ``no_tls`` and ``tls`` contradict each other.
    """
    in_file = {} if content is None else _of_file(content)
    in_environment = _of_variables(variables)
    weaker, stronger = _without_contradiction(in_file), _without_contradiction(in_environment)
    # What the environment says of TLS replaces what the file says to the contrary.
    if _says_no(stronger):
        weaker = {name: found for name, found in weaker.items() if not name.startswith("tls.")}
    elif stronger.keys() & _ENCRYPTED:
        weaker.pop("no_tls", None)
    return Settings({**weaker, **stronger}, None if content is None else content.path)


def _says_no(found: Mapping[str, Found]) -> bool:
    return "no_tls" in found and found["no_tls"].value


def _without_contradiction(found: dict[str, Found]) -> dict[str, Found]:
    """Return the settings of one source. Raises `ConfigurationError` if they say both TLS and no TLS."""
    if _says_no(found) and (files := sorted(found.keys() & _ENCRYPTED)):
        no, yes = found["no_tls"], found[files[0]]
        both = (
            f"{no.source} and {yes.source}" if no.source.startswith("$") else f"{no.source}: no_tls and [tls]"
        )
        raise ConfigurationError(f"{both} contradict each other: remove one of them.")
    return found


def _of_variables(variables: Mapping[str, str]) -> dict[str, Found]:
    known = by_variable()
    found = {}
    for name in variables.keys() & known.keys():
        setting = known[name]
        value = _checked(setting, variables[name], f"${name}", variable=True, directory=_working_directory())
        found[setting.name] = Found(value, f"${name}")
    return found


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return "/"


def _of_file(content: Content) -> dict[str, Found]:
    found = {}
    directory = os.path.dirname(content.path)
    for name, value in _flat(content):
        setting = settings()[name]
        place = _place(content, setting.table, setting.field)
        found[name] = Found(
            _checked(setting, value, place, variable=False, directory=directory), content.path
        )
    return found


def _flat(content: Content) -> list[tuple[str, Any]]:
    """Return the names and values of a file's settings.

    Raises:
        ConfigurationError: a name is not known, or a table is not one.
    """
    found = []
    for name, value in content.values.items():
        if name in TABLES:
            if not isinstance(value, dict):
                raise ConfigurationError(f"{_place(content, '', name)}: It must be a table.")
            found += [(_known(content, name, field), value[field]) for field in value]
        else:
            found.append((_known(content, "", name), value))
    return found


def _known(content: Content, table: str, field: str) -> str:
    """Return the name of a setting. Raises `ConfigurationError` if there is none."""
    name = f"{table}.{field}" if table else field
    known = settings()
    if name in known and known[name].table == table:
        return name
    place = f"{_place(content, table, field)}: There is no such setting."
    elsewhere = [setting for setting in known.values() if setting.field == field]
    if elsewhere:
        tables = " or ".join(f"in [{one.table}]" if one.table else "at the top level" for one in elsewhere)
        raise ConfigurationError(f"{place} It belongs {tables}.")
    near = [setting.field for setting in known.values() if setting.table == table]
    raise ConfigurationError(f"{place}{suggestion(field, [*near, *([] if table else TABLES)])}")


def _place(content: Content, table: str, field: str) -> str:
    """Return where a setting is, as the begin of a sentence."""
    header = ".".join(filter(None, (content.prefix, table)))
    return f"{content.path}: [{header}] {field}" if header else f"{content.path}: {field}"


def _checked(setting: Setting, value: Any, place: str, *, variable: bool, directory: str) -> Any:
    try:
        return setting.check(value, variable=variable, directory=directory)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error}") from None
