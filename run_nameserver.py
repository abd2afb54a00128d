"""Start a name server: the same as ``pyrocache nameserver``."""

from pyrocache.cli import main

main("nameserver")
