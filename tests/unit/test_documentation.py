"""What the documents say of names and arguments is so."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from pyrocache import PyroCacheClient
from pyrocache.cli.commands import app
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.store.store import Store
from pyrocache.protocol import refusals

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").exists(), reason="the tests run without the project around them"
)

_CODE = re.compile(r"`([^`]+)`")
_CALL = re.compile(r"`([a-z_]+)\(([^`]*)\)`")


def test_every_method_of_a_node_is_in_the_wire_format_as_it_is() -> None:
    documented = {
        f"{name}({arguments})" for name, arguments in _CALL.findall(_section("Methods of `CacheNode`"))
    }
    exposed = {
        _as_documented(name, method)
        for name, method in inspect.getmembers(CacheNode, inspect.isfunction)
        if getattr(method, "_pyroExposed", False)
    }
    assert documented == exposed


def test_every_figure_of_a_node_is_in_the_wire_format() -> None:
    figures = {
        *CacheNode(Store(2**20)).stats(),
        "clientless_seconds",
        "connections",
        "rss_bytes",
        "latencies",
    }  # those of the process
    rows = re.findall(r"^\| (`.+?) \|", _section("Methods of `CacheNode`"), re.MULTILINE)
    assert figures <= {name for row in rows for name in _CODE.findall(row)}


def test_every_code_of_a_refusal_is_in_the_wire_format() -> None:
    codes = {value for name, value in vars(refusals).items() if name.isupper() and isinstance(value, str)}
    rows = re.findall(r"^\| (`.+?) \|", _section("Calls"), re.MULTILINE)
    assert {code for row in rows for code in _CODE.findall(row)} == codes


def test_every_call_in_the_reference_can_be_made() -> None:
    _, _, table = (
        (ROOT / "docs" / "reference.md").read_text(encoding="utf-8").partition("| call | what it does |")
    )
    cells = [row.partition(" | ")[0] for row in table.partition("\n\n")[0].splitlines()]
    calls = [call for cell in cells for call in _CALL.findall(cell) if call[0] not in ("len", "iter", "bool")]
    assert len(calls) > 30
    for name, arguments in calls:
        call = ast.parse(f"{name}({arguments})", mode="eval").body
        assert isinstance(call, ast.Call)
        named = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
        inspect.signature(getattr(PyroCacheClient, name)).bind(None, *call.args, **named)


def test_every_link_between_the_documents_leads_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            file = document.parent / path if path else document
            assert file.exists(), f"{document.name}: {target}"
            assert not anchor or anchor in _anchors(file), f"{document.name}: {target}"


def test_every_command_line_in_the_documents_is_one() -> None:
    program: Any = typer.main.get_command(app)
    documents = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    lines = [line for file in documents for line in _command_lines(file.read_text(encoding="utf-8"))]
    assert len(lines) > 20
    for line in lines:
        name, *arguments = shlex.split(line, comments=True)[1:]
        if not name.startswith("-"):
            program.commands[name].make_context(name, arguments)  # parses, and does not run


def _command_lines(text: str) -> list[str]:
    """The command lines in blocks, also of other hosts, of root and in containers, and in sentences.

    Without what they are piped to.
    """
    prompt = r"^ *(?:\w*\$|#) (?:kubectl exec \S+ -- |docker compose exec \S+ |docker run .* )?"
    found = re.findall(rf"{prompt}(pyrocache .*)$|(?<!`)`(pyrocache [^`…]+)`", text, re.MULTILINE)
    return [re.split(r" \\?\| ", in_block or in_sentence)[0].rstrip(" …") for in_block, in_sentence in found]


def _section(heading: str) -> str:
    text = (ROOT / "docs" / "wire-format.md").read_text(encoding="utf-8")
    _, found, rest = text.partition(f"## {heading}\n")
    assert found
    return rest.partition("\n## ")[0]


def _anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _as_documented(name: str, method: Callable[..., object]) -> str:
    """A method and its arguments as the wire format writes them: with values as they are on the wire."""
    arguments = []
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        if parameter.default is parameter.empty:
            arguments.append(parameter.name)
        else:
            value = parameter.default
            default = "nil" if value is None else "false" if value is False else f"{value:g}"
            arguments.append(f"{parameter.name}={default}")
    return f"{name}({', '.join(arguments)})"
