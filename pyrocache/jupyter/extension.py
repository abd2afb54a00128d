"""Load and unload the IPython extension.

Thread safety: not thread-safe; IPython loads extensions in the thread that runs cells.
"""

from __future__ import annotations

from typing import Any

from pyrocache.jupyter.completion import complete_cache, complete_cached
from pyrocache.jupyter.magics import CacheMagics

_COMPLETED = ("%cache", "%%cached")


def load(shell: Any) -> None:
    """Register the magics and their completion with an IPython shell."""
    magics = CacheMagics(shell)
    shell.register_magics(magics)
    shell.set_hook("complete_command", lambda _, event: complete_cache(magics, event), str_key="%cache")
    shell.set_hook("complete_command", complete_cached, str_key="%%cached")


def unload(shell: Any) -> None:
    """Remove them, and close the client that was made for them."""
    manager = shell.magics_manager
    magics = manager.registry.pop(CacheMagics.__name__, None)
    if magics is None:
        return
    del manager.magics["cell"]["cached"], manager.magics["line"]["cache"]
    for name in _COMPLETED:
        shell.strdispatchers["complete_command"].strs.pop(name, None)
    magics.close()
