"""The table of settings, the dataclasses and the guide say the same."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from pyrocache.config import ClientConfig, NameServerConfig, NodeConfig, format_size
from pyrocache.settings.table import _NOT_SETTINGS, _READERS, TABLES, Setting, by_variable, settings

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guide.md"


def test_every_field_of_a_dataclass_is_a_setting_or_is_said_to_be_none() -> None:
    for table, config in TABLES.items():
        names = {field.name for field in fields(config)}
        assert _NOT_SETTINGS[table] <= names
        assert {one.field for one in settings().values() if one.table == table} == names - _NOT_SETTINGS[
            table
        ]


def test_every_setting_has_a_kind_and_a_variable_of_its_own() -> None:
    assert all(setting.kind in _READERS for setting in settings().values())
    assert len(by_variable()) == len(settings())
    assert settings()["node.max_memory"].variable == "PYROCACHE_NODE_MAX_MEMORY"
    assert settings()["no_tls"].variable == "PYROCACHE_NO_TLS"


def test_every_default_is_valid() -> None:
    for setting in settings().values():
        if setting.default is not None:
            assert setting.check(setting.default, variable=False, directory="/") == setting.default


def test_every_field_that_holds_bytes_is_a_size() -> None:
    for config in (NodeConfig, NameServerConfig, ClientConfig):
        for field in fields(config):
            if field.name.endswith("_bytes"):
                assert next(one for one in settings().values() if one.field == field.name).kind == "size"


@pytest.mark.skipif(not GUIDE.exists(), reason="the tests run without the project around them")
def test_the_guide_has_every_setting_with_its_kind_and_its_default() -> None:
    _, found, section = GUIDE.read_text(encoding="utf-8").partition("\n## Settings\n")
    assert found
    rows = re.findall(r"^\| `([a-z_.]+)` \|([^|]+)\|([^|]*)\|", section.partition("\n## ")[0], re.MULTILINE)
    assert [tuple(map(str.strip, row)) for row in rows] == [
        (setting.name, setting.kind, _documented(setting)) for setting in settings().values()
    ]


def _documented(setting: Setting) -> str:
    """The default of a setting, as the guide writes it."""
    value = setting.default
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if setting.kind == "size" and value:
        return f"`{format_size(value).replace('.0 ', '')}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
