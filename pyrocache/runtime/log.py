"""`logger`: a logger of the standard library, whose module is imported when there is something to log.

Importing ``logging`` takes 4 ms, which a program that logs nothing need not spend.

Thread safety: thread-safe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrocache.late_imports import at_first_use

if TYPE_CHECKING:
    from logging import Logger


def logger(name: str) -> Logger:
    """Return the logger of that name."""
    with at_first_use:
        import logging
    return logging.getLogger(name)
