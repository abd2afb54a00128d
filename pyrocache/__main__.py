"""``python -m pyrocache``: the same as the ``pyrocache`` command."""

from pyrocache.cli import main

main()
