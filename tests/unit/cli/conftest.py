"""Fixtures for commands that run in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyrocache.cli.output import forget_options


@pytest.fixture(autouse=True)
def no_options() -> Iterator[None]:
    """Begin and end without the options of an earlier command, which a process of one command never has."""
    forget_options()
    yield
    forget_options()
