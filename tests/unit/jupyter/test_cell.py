"""What a cell binds, changes and reads, and its identity."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.shells import running_shell

pytest.importorskip("IPython")

from IPython.core.error import UsageError

from pyrocache.jupyter.cell import Cell, compile_cell


@pytest.fixture(scope="module")
def shell() -> Iterator[Any]:
    with running_shell() as shell:
        yield shell


BOUND = {
    "a = b = 1": "a b",
    "a, (b, *c) = 1, (2, 3)": "a b c",
    "a: int = 1": "a",
    "a += 1": "a",
    "for a in (): b = 1": "a b",
    "with open('x') as a, a as (b, c): pass": "a b c",
    "try: pass\nexcept E as a: b = 1": "a b",
    "if (a := 1): b = 2\nelse: c = 3": "a b c",
    "[a := b for b in ()]": "a",
    "match 1:\n    case [a, *b]: pass\n    case {'k': c, **d}: pass\n    case int() as e: pass": "a b c d e",
    "while b: a = 1": "a",
    "print([x for x in ()], {x: y for x, y in ()}, lambda z: z)": "",
    "if 1:\n    def a(): b = 1": "a",
    "if 1:\n    class a: b = 1": "a",
    "if 1: import a.b, c as d": "a d",
    "def f(x=a): y = 1": "",
}


@pytest.mark.parametrize("body", BOUND)
def test_the_names_that_a_cell_binds(shell: Any, body: str) -> None:
    assert set(compile_cell(shell, body).bound) == set(BOUND[body].split())


def test_the_names_that_a_cell_changes_or_deletes(shell: Any) -> None:
    body = "a['x'] = 1\nb.x.y[0].z += 1\nfor c.x in (): del d[0]\ndef f(): e[0] = 1\ndel g, h.x\nif 1: i[0]"
    cell = compile_cell(shell, body)
    assert cell.changed == ("a", "b", "c", "d", "h")
    assert cell.deleted == ("g",)


DEFINED = {
    "import a.b, c as d\nfrom e import f as g": "a d g",
    "def f(x=1) -> int: return y\ny = 1": "f",
    "def f(x=y): pass\ny = 1": "",
    "y = 1\n@y.z\ndef f(): pass": "",
    "class A: pass\nclass B(A): x = 1": "A B",
    "class A(y): pass\nclass B(A): pass\nclass C: pass\ny = 1": "C",
    "class A:\n    z = y\n    def f(self): return y\ny = 1": "",
    "class A:\n    y = 1\n    z = y\ny = 1": "A",
    "def f(): pass\nf = g(f)": "",
    "def f(): pass\nf.x = 1": "",
    "import os\nos.environ['x'] = '1'\nclass A: x = os.name": "os A",
    "from a import b\nb.x = 1": "",
    "import os\nos = os.path": "",
    "from functools import wraps\n@wraps(len)\ndef f(): pass": "wraps f",
    "async def f(): await g()": "f",
    "if 1: import a": "",
}
if sys.version_info >= (3, 12):
    DEFINED["class A[T](y): pass\ny = 1"] = ""
    DEFINED["def f[T: y](x: T): pass\nz = 1"] = "f"


@pytest.mark.parametrize("body", DEFINED)
def test_the_definitions_of_a_cell(shell: Any, body: str) -> None:
    assert compile_cell(shell, body).defined == set(DEFINED[body].split())


READ = {
    "a = 1\nb = a": "",
    "a = a + b": "a b",
    "a += 1": "a",
    "a['x'] = b": "a b",
    "for a in b: c = a": "b",
    "def f(x): return x + a + c\nc = 1": "a",
    "class A:\n    x = a\n    y = x": "a",
    "[a for a in b if a in c]": "b c",
    "print(f'{a}')": "a print",
    "x = lambda y: y + a": "a",
}


@pytest.mark.parametrize("body", READ)
def test_the_names_that_a_cell_reads(shell: Any, body: str) -> None:
    assert set(compile_cell(shell, body).read) - {"__name__"} == set(READ[body].split())


def test_names_that_magics_and_commands_use(shell: Any) -> None:
    cell = compile_cell(shell, "files = !ls\n%time x = 1\nfrom math import *")
    assert (cell.bound, cell.stars) == (("files",), ("math",))


def digest(shell: Any, body: str) -> str:
    cell: Cell = compile_cell(shell, body)
    return cell.digest


SAME = ["x = 1\nx", "\n\nx=1 # why\n\nx", "x = (\n    1)\n# more\nx\n", "x = 1; x"]
OTHERS = [
    "x = 2\nx",
    "x = 1\nx;",
    "x = 1\ny",
    "x = True\nx",
    "x = 1.0\nx",
    "x = 1\nprint(x)",
    "",
    "1",
    "2",
    "'a'",
]


def test_the_identity_is_that_of_the_code_whatever_its_layout(shell: Any) -> None:
    assert len({digest(shell, body) for body in SAME}) == 1
    assert len({digest(shell, body) for body in [SAME[0], *OTHERS]}) == 1 + len(OTHERS)


def test_the_last_expression_is_displayed_as_the_shell_is_set(shell: Any) -> None:
    def modes(body: str) -> int:
        return len(compile_cell(shell, body).codes)

    assert [modes(body) for body in ("x = 1", "x", "x = 1\nx", "x = 1\nx;", "")] == [1, 1, 2, 1, 0]
    before = shell.ast_node_interactivity
    try:
        shell.ast_node_interactivity = "all"
        assert modes("1\n2\n3") == 3
        shell.ast_node_interactivity = "last_expr_or_assign"
        assert modes("y = 0\nx = 1") == 2
        shell.ast_node_interactivity = "none"
        assert modes("1\n2") == 1
    finally:
        shell.ast_node_interactivity = before


@pytest.mark.parametrize("body", ["await f()", "async with f(): pass", "x = [a async for a in f()]"])
def test_await_is_refused_in_one_sentence(shell: Any, body: str) -> None:
    with pytest.raises(UsageError, match="does not support await at the top level"):
        compile_cell(shell, body)


@pytest.mark.parametrize("body", ["x =", "return 1", "break"])
def test_what_is_no_code_is_a_syntax_error(shell: Any, body: str) -> None:
    with pytest.raises(SyntaxError):
        compile_cell(shell, body)
