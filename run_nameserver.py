"""Start a name server: the same as ``pyrocache nameserver``."""

from pyrocache.__main__ import main

main("nameserver")
