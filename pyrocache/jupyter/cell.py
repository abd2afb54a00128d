"""`Cell`: what a notebook cell is, before it runs: its code and identity, the names that it binds, changes and reads.

The cell is compiled as IPython would run it: statements, and the last expression by itself, so that its value is
displayed. Which names a statement binds or reads is taken from its bytecode, which knows every kind of statement.

*Definitions* are the imports, functions and classes at the top level of the cell that need nothing which its other
statements make. They are not values: they are executed again when the cell is restored.

Runs nothing of the cell.

Thread safety: thread-safe; a `Cell` is immutable.
"""

from __future__ import annotations

import ast
import dis
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

from IPython.core.displayhook import DisplayHook
from IPython.core.error import UsageError

from pyrocache.client.features.identity import code_identity

_LOADS = {"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"}
_COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>"}  # functions until Python 3.11
_DEFINITIONS = ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
_SIMPLE = ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr
_FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell that has been compiled.

    Attributes:
        codes: what is executed, one after the other.
        definitions: the code of its definitions alone.
        defined: the names that its definitions bind, and nothing else of it does.
        bound: the names that its other statements bind, in order.
        changed: the names whose objects it changes by assigning or deleting items or attributes.
        managed: the names that only its ``with`` statements bind; they are not stored.
        deleted: the names that it deletes.
        read: the names that it reads before it binds them.
        stars: the modules of which it imports all names.
        digest: its identity.
    """

    codes: tuple[CodeType, ...]
    definitions: CodeType
    defined: frozenset[str]
    bound: tuple[str, ...]
    changed: tuple[str, ...]
    managed: frozenset[str]
    deleted: tuple[str, ...]
    read: tuple[str, ...]
    stars: tuple[str, ...]
    digest: str


def compile_cell(shell: Any, body: str) -> Cell:
    """Return a cell of which ``body`` is what follows the line of the magic.

    Raises:
        SyntaxError: it is not valid.
        UsageError: it awaits at the top level.
    """
    # Behind an empty line, the lines have the numbers that they have in the notebook.
    source = "\n" + shell.transform_cell(body)
    filename = shell.compile.cache(source, shell.displayhook.prompt_count)
    tree = shell.transform_ast(shell.compile.ast_parse(source, filename=filename))
    return _Compiler(shell, filename).cell(tree, DisplayHook.semicolon_at_end_of_expression(source))


class _Compiler:
    def __init__(self, shell: Any, filename: str) -> None:
        self._shell = shell
        self._filename = filename

    def cell(self, tree: ast.Module, quiet: bool) -> Cell:
        statements = tree.body
        self._check(statements)
        run, shown = _split(statements, "none" if quiet else self._shell.ast_node_interactivity)
        codes = [self._compile(ast.Module(run, []), "exec")] if run else []
        codes += [self._compile(ast.Interactive([statement]), "single") for statement in shown]
        parts = [
            _Statement(statement, self._compile(ast.Module([statement], []))) for statement in statements
        ]
        definitions = _definitions(parts)
        others = [part for part in parts if part not in definitions]
        bound = _names(part.bound for part in others)
        changed = _names(part.changed for part in others)
        defined = _names(part.bound for part in definitions)
        return Cell(
            tuple(codes),
            self._compile(ast.Module([part.node for part in definitions], [])),
            frozenset(defined),
            bound,
            changed,
            _managed(statements),
            _names(part.deleted for part in others),
            _read(parts),
            tuple(name for part in parts for name in part.stars),
            code_identity(codes),
        )

    def _check(self, statements: list[ast.stmt]) -> None:
        with self._shell.compile.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
            code = self._compile(ast.Module(statements, []))
        if code.co_flags & inspect.CO_COROUTINE:
            raise UsageError(
                "%%cached does not support await at the top level of a cell: await in another cell, and name the "
                "result with --inputs."
            )

    def _compile(self, tree: ast.Module | ast.Interactive, mode: str = "exec") -> CodeType:
        return self._shell.compile(tree, self._filename, mode)  # type: ignore[no-any-return]


class _Statement:
    """A statement at the top level of a cell.

    Attributes:
        bound, changed, deleted: the names, as for `Cell`.
        executed: the names that are read when it is executed.
        later: those that functions in it read when they are called.
        stars: the modules of which it imports all names.
    """

    def __init__(self, node: ast.stmt, code: CodeType) -> None:
        self.node = node
        self.bound: list[str] = []
        self.executed: list[str] = []
        self.later: list[str] = []
        self._scan(code, self.executed, top=True)
        self.changed = list(_changed(node))
        self.deleted = list(_deleted(node))
        star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        self.stars = [node.module] if star and isinstance(node, ast.ImportFrom) and node.module else []

    def _scan(self, code: CodeType, read: list[str], top: bool) -> None:
        names: list[str] = []
        local = set()
        for instruction in dis.get_instructions(code):
            if instruction.opname in _LOADS:
                names.append(instruction.argval)
            elif instruction.opname in ("STORE_NAME", "STORE_GLOBAL"):
                if top:
                    self.bound.append(instruction.argval)
                elif instruction.opname == "STORE_NAME":
                    local.add(instruction.argval)
        read += [name for name in names if name not in local]
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                now = not inner.co_flags & inspect.CO_OPTIMIZED or inner.co_name.startswith(
                    ("<listcomp>", "<setcomp>", "<dictcomp>", "<generic parameters")
                )  # a class, or a function that is called at once
                self._scan(inner, read if now else self.later, top and inner.co_name in _COMPREHENSIONS)


def _names(lists: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in lists for name in names))


def _split(statements: list[ast.stmt], interactivity: str) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Return the statements to execute, and those whose values are displayed, as IPython decides."""
    if not statements or interactivity == "none":
        return statements, []
    last = statements[-1]
    if interactivity == "last_expr_or_assign":
        target = last.targets[0] if isinstance(last, ast.Assign) and len(last.targets) == 1 else None
        if isinstance(last, (ast.AugAssign, ast.AnnAssign)):
            target = last.target
        if isinstance(target, ast.Name):
            shown = ast.Expr(ast.Name(target.id, ast.Load()))
            return statements, [ast.fix_missing_locations(ast.copy_location(shown, last))]
    if interactivity == "all":
        return [], statements
    if interactivity == "last" or isinstance(last, ast.Expr):
        return statements[:-1], [last]
    return statements, []


def _definitions(parts: list[_Statement]) -> list[_Statement]:
    """Return the definitions among the statements of a cell."""
    definitions = [part for part in parts if isinstance(part.node, _DEFINITIONS)]
    others = {name for part in parts if part not in definitions for name in part.bound}
    # What changes a module, such as ``os.environ["x"] = "1"``, is not part of its import.
    modules = {name for part in definitions if isinstance(part.node, ast.Import) for name in part.bound}
    others.update({name for part in parts for name in part.changed} - modules)
    while True:
        kept = [part for part in definitions if others.isdisjoint([*part.executed, *part.bound])]
        if len(kept) == len(definitions):
            return kept
        others.update(name for part in definitions if part not in kept for name in part.bound)
        definitions = kept


def _read(parts: list[_Statement]) -> tuple[str, ...]:
    """Return the names that a cell reads before it binds them."""
    every = set(_names(part.bound for part in parts))
    before: set[str] = set()
    found: list[str] = []
    for part in parts:
        # A compound statement may bind a name before it reads it, as a loop does.
        own = before if isinstance(part.node, _SIMPLE) else before.union(part.bound)
        found += [name for name in part.executed if name not in own]
        found += [name for name in part.later if name not in every]
        before.update(part.bound)
    return _names([found])


def _in_scope(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and those inside, without those of functions and classes."""
    yield node
    if not isinstance(node, _FUNCTIONS):
        for inner in ast.iter_child_nodes(node):
            yield from _in_scope(inner)


def _changed(node: ast.stmt) -> Iterator[str]:
    for found in _in_scope(node):
        if isinstance(found, (ast.Subscript, ast.Attribute)) and not isinstance(found.ctx, ast.Load):
            root: ast.AST = found
            while isinstance(root, (ast.Subscript, ast.Attribute)):
                root = root.value
            if isinstance(root, ast.Name):
                yield root.id


def _managed(statements: list[ast.stmt]) -> frozenset[str]:
    """Return the names that are bound by ``with ... as name`` and by nothing else."""
    nodes = [node for statement in statements for node in _in_scope(statement)]
    stored = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    managed = [
        item.optional_vars.id
        for node in nodes
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name)
    ]
    return frozenset(name for name in managed if managed.count(name) == stored.count(name))


def _deleted(node: ast.stmt) -> Iterator[str]:
    for found in _in_scope(node):
        if isinstance(found, ast.Name) and isinstance(found.ctx, ast.Del):
            yield found.id
