"""The ``pyrocache`` command: `commands` has its options, the other modules what the commands do."""

from pyrocache.cli.commands import app, main

__all__ = ["app", "main"]
