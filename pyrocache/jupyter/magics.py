"""The magics ``%%cached`` and ``%cache``: their arguments and help. `running.py` does what ``%%cached`` says.

Both use the variable ``cache`` of the notebook if it is a client, otherwise a client of `pyrocache.connect`.

Thread safety: not thread-safe; IPython runs one cell at a time.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display

import pyrocache
from pyrocache.client.client import PyroCacheClient
from pyrocache.client.context import DEFAULT_TTL, MISSING
from pyrocache.jupyter.running import TAG, Request, run_cached, tag_of

ACTIONS = ("status", "get", "set", "delete", "stats", "clear")
"""The subcommands of ``%cache``."""


@magics_class
class CacheMagics(Magics):
    """The magics of one IPython shell."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._connected: PyroCacheClient | None = None
        self._running = False

    @property
    def client(self) -> PyroCacheClient:
        """The client that the magics use."""
        client = self.existing_client
        if client is None:
            client = self._connected = pyrocache.connect()
        return client

    @property
    def existing_client(self) -> PyroCacheClient | None:
        """The same; None if it would have to be connected first."""
        client = self.shell.user_ns.get("cache")
        return client if isinstance(client, PyroCacheClient) else self._connected

    def close(self) -> None:
        """Close the client that was made for the magics, if there is one."""
        client, self._connected = self._connected, None
        if client is not None:
            client.close()

    @no_var_expand
    @magic_arguments()
    @argument("name", help="a name for the cell, which messages and `%%cache clear NAME` use")
    @argument("--ttl", type=float, metavar="S", help="seconds after which the cell runs again")
    @argument(
        "--inputs",
        action="append",
        default=[],
        metavar="A,B",
        help="variables that the cell depends on: it runs again when one of them has another content",
    )
    @argument("--refresh", action="store_true", help="run the cell in any case, and replace what is cached")
    @cell_magic
    def cached(self, line: str, cell: str) -> None:
        """Run a cell once, and restore its variables and output later, in any notebook of the cluster.

        The cell runs again when its code has changed, apart from comments and layout, or one of its inputs. If two
        notebooks run it at the same time, one of them waits for the other's result. A cell that fails or is
        interrupted is not cached. Imports, functions and classes of the cell are not stored, but executed again.
        """
        __tracebackhide__ = True
        arguments = parse_argstring(self.cached, _without_blanks(line))
        inputs = [name.strip() for names in arguments.inputs for name in names.split(",") if name.strip()]
        if self._running:
            raise UsageError("%%cached cannot be used within a %%cached cell: make two cells of it.")
        try:
            self._running = True
            ttl = DEFAULT_TTL if arguments.ttl is None else arguments.ttl
            request = Request(arguments.name.strip("'\""), ttl, inputs, arguments.refresh)
            run_cached(self.shell, self.client, request, cell)
        finally:
            self._running = False

    @no_var_expand
    @line_magic
    def cache(self, line: str) -> Any:
        """Look at the cache, and change it.

        ::

            %cache status          the cluster; also %cache alone
            %cache get KEY         the value of a key
            %cache set KEY VALUE   store a value
            %cache delete KEY      remove a key
            %cache stats           statistics
            %cache clear [NAME]    remove the cached cells, those of NAME or all

        KEY and VALUE are Python expressions, such as 'user:1'. A KEY that is a single word and no variable is a text.
        """
        __tracebackhide__ = True
        action, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if action in ("", "status", "stats"):
            if rest:
                raise UsageError(f"%cache {action} takes no argument.")
            display(self.client.stats() if action == "stats" else self.client)  # not kept in Out
            return None
        if action == "clear":
            return self._clear(rest)
        if action not in ACTIONS:
            raise UsageError(f"%cache knows {', '.join(ACTIONS)}, not {action!r}; see %cache?")
        if action == "set":
            key, value = self._key_and_value(rest)
            self.client.set(key, value)
            return None
        if not rest:
            raise UsageError(f"%cache {action} takes a key, like: %cache {action} 'user:1'")
        key = self._evaluate(rest)
        if action == "delete":
            deleted = self.client.delete(key)
            print(f"Deleted {key!r}." if deleted else f"There is no entry with the key {key!r}.")
            return None
        value = self.client.get(key, MISSING)
        if value is MISSING:
            print(f"There is no entry with the key {key!r}.")
            return None
        return value

    def _clear(self, name: str) -> None:
        name = name.strip("'\"")
        tag = tag_of(name) if name else TAG
        removed = sum(
            1 for _ in self.client.scan(tag=tag)
        )  # `invalidate_tag` also counts what was removed before
        self.client.invalidate_tag(tag)
        cells = "1 cached cell" if removed == 1 else f"{removed} cached cells"
        print(
            f"Removed {cells}{f' of {name!r}' if name else ''}. Other entries stay: "
            "PyroCacheClient.clear() removes all entries of a namespace."
        )

    def _key_and_value(self, text: str) -> tuple[object, object]:
        words = text.split(" ")
        for count in range(1, len(words)):
            key, value = " ".join(words[:count]), " ".join(words[count:])
            if _is_expression(key) and _is_expression(value):
                return self._evaluate(key), self._evaluate(value, words=False)
        raise UsageError("%cache set takes a key and a value, two Python expressions like: 'user:1' [1, 2]")

    def _evaluate(self, text: str, words: bool = True) -> object:
        """Return the value of an expression of the user. Raises `UsageError` if it is none.

        Args:
            words: whether a single word that is no variable is a text.
        """
        __tracebackhide__ = True
        if words and text.isidentifier() and not self._is_known(text):
            return text
        if not _is_expression(text):
            raise UsageError(
                f"{text!r} is not a Python expression: put a text into quotes, like {'user:1'!r}."
            )
        return eval(compile(text, "<%cache>", "eval"), self.shell.user_global_ns, self.shell.user_ns)

    def _is_known(self, name: str) -> bool:
        return name in self.shell.user_ns or name in ("None", "True", "False")


def _without_blanks(line: str) -> str:
    """Return the arguments of a magic without blanks around the commas of ``--inputs``, where words would end."""
    before, option, inputs = line.partition("--inputs")
    return before + option + re.sub(r"\s*,\s*", ",", inputs)


def _is_expression(text: str) -> bool:
    try:
        ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return False
    return bool(text.strip())
