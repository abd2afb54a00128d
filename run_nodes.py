"""Start cache nodes: the same as ``pyrocache nodes``."""

from pyrocache.__main__ import main

main("nodes")
