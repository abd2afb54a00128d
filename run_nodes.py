"""Start cache nodes: the same as ``pyrocache nodes``."""

from pyrocache.cli import main

main("nodes")
