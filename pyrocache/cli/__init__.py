"""The ``pyrocache`` command: `entry` is the process, `commands` has the options, the rest are longer commands."""

from pyrocache.cli.entry import main

__all__ = ["main"]
