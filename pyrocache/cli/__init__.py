"""The ``pyrocache`` command: `commands` defines the options, the other modules implement the longer commands."""

from pyrocache.cli.commands import app, main

__all__ = ["app", "main"]
