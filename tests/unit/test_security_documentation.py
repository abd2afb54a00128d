"""What docs/security.md and the wire format say of the handshake and its limits is so."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from pyrocache.client.stats import NodeStats
from pyrocache.config import NodeConfig
from pyrocache.nameserver import process
from pyrocache.nameserver.names import COMMANDS
from pyrocache.protocol.handshake import CODES, REQUEST_BYTES, Greeting
from pyrocache.protocol.proof import Role
from pyrocache.server import tokens

DOCS = Path(__file__).resolve().parents[2] / "docs"

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the tests run without the project around them")

_CODE = re.compile(r"`([^`]+)`")


def test_every_field_of_a_greeting_and_every_code_is_in_the_wire_format() -> None:
    first = {
        code for row in _rows(_section("wire-format.md", "## Handshake")) for code in _CODE.findall(row[0])
    }
    assert first == {*Greeting._fields, *CODES}


def test_the_roles_of_proofs_are_in_the_wire_format_as_they_are() -> None:
    text = _section("wire-format.md", "### Proofs")
    assert all(f'"{role.value.decode()}"' in text for role in Role)


def test_the_limits_before_the_proof_are_those_of_the_servers() -> None:
    limits = {row[0]: row[1:] for row in _rows(_section("security.md", "### Before the proof"))}
    node, nameserver = NodeConfig(), process._LIMITS
    assert limits["length of a message"] == [f"{REQUEST_BYTES // 1024} KiB"] * 2
    assert limits["time for the handshake"] == [f"{one.handshake_seconds:g} s" for one in (node, nameserver)]
    for row, field in (
        ("connections from one address that have not proved the secret", "max_unproven"),
        ("all connections", "max_connections"),
    ):
        assert limits[row] == [f"{getattr(one, field):,}" for one in (node, nameserver)]


def test_every_count_of_handshakes_is_in_both_documents() -> None:
    counts = {field.name for field in fields(NodeStats) if field.name.startswith("handshakes_")}
    assert counts
    for document in ("security.md", "wire-format.md"):
        named = {
            code
            for row in _rows((DOCS / document).read_text(encoding="utf-8"))
            for code in _CODE.findall(row[0])
        }
        assert counts <= named


def test_what_the_name_server_is_open_for_is_what_the_document_says() -> None:
    is_open, needs_secret = _section("security.md", "### The name server").split(". ", 1)
    assert {*_CODE.findall(is_open)} == {name for name, command in COMMANDS.items() if command.open}
    secret = needs_secret.partition(" need ")[0]
    assert {*_CODE.findall(secret)} == {name for name, command in COMMANDS.items() if not command.open}


def test_the_life_of_a_token_is_in_both_documents() -> None:
    life, most = f"{tokens.LIFE_SECONDS:g} seconds", f"{tokens._MOST:,} unused tokens"
    assert life in _section("security.md", "## Programs without the secret")
    assert life in _section("wire-format.md", "### Tokens")
    assert most in _section("wire-format.md", "### Tokens")


def _section(document: str, heading: str) -> str:
    """The text below a heading, up to the next one of its level or of a higher one."""
    _, found, rest = (DOCS / document).read_text(encoding="utf-8").partition(f"\n{heading}\n")
    assert found
    level = heading.count("#")
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0].strip()


def _rows(text: str) -> list[list[str]]:
    """The cells of all rows of tables, without their heads."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.*\|$", text, re.MULTILINE)
    ]
    return [row for row, under in zip(rows, [*rows[1:], [""]], strict=True) if "---" not in row[0] + under[0]]
