"""``python -m pyrocache``, and the ``pyrocache`` command."""

from __future__ import annotations

import signal
from typing import NoReturn


def main(command: str | None = None) -> NoReturn:
    """Run the command line of this process, or only ``command`` with its arguments.

    Ctrl-C ends the process without a traceback, also during the imports.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # `entry` sets it back
    from pyrocache.cli import main as run

    run(command)


if __name__ == "__main__":
    main()
