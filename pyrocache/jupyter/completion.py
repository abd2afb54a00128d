"""Completion of the arguments of ``%%cached`` and ``%cache``.

IPython calls these functions with the line and the word before the cursor. They return words that begin like it. They
never connect to a cluster that was not used before, and raise nothing.

Thread safety: not thread-safe; IPython completes in the thread that runs cells.
"""

from __future__ import annotations

from typing import Any

from pyrocache.jupyter.magics import ACTIONS, CacheMagics
from pyrocache.jupyter.running import names_of_cells

_OPTIONS = ("--ttl", "--inputs", "--refresh")


def complete_cached(shell: Any, event: Any) -> list[str]:
    """Return the options of ``%%cached``; behind ``--inputs``, the names of variables."""
    words = event.text_until_cursor.split() or [""]
    at_word = not event.text_until_cursor.endswith((" ", "\t"))
    before = words[-2 if at_word else -1 :][:1]
    if before == ["--inputs"] or before[0].endswith(",") or (at_word and words[-1].startswith("--inputs=")):
        hidden = shell.user_ns_hidden
        return [name for name in shell.user_ns if not name.startswith("_") and name not in hidden]
    return list(_OPTIONS)


def complete_cache(magics: CacheMagics, event: Any) -> list[str]:
    """Return the subcommands of ``%cache``; behind ``get`` and ``delete``, keys; behind ``clear``, names of cells."""
    action, space, typed = event.text_until_cursor.lstrip().partition(" ")[2].lstrip().partition(" ")
    if not space:
        return list(ACTIONS)
    client = magics.existing_client
    if action not in ("get", "delete", "clear") or client is None:
        return []
    typed = typed.lstrip()
    if action == "clear":
        quoted = typed.startswith(("'", '"'))
        words = [repr(name) if quoted or " " in name else name for name in names_of_cells(client)]
    else:
        keys = client._ipython_key_completions_()
        words = [repr(key) for key in keys if isinstance(key, (str, bytes, int, tuple))]
    # IPython replaces the last word only, and takes what is before a colon or a quote for another word.
    start = len(typed) - len(event.symbol)
    return [word[start:] for word in words if word.startswith(typed)]
