"""What the router of the asyncio client makes of a refusal that is about a grant."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from pyrocache.aio.router import AsyncRouter, GrantMoved, NotServing
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Refused
from pyrocache.protocol import commands
from pyrocache.protocol.refusals import NOT_SERVING, STALE_VIEW, Refusal

MEMBER = Member("cache.node.1", "127.0.0.1", 1)


class Refusing:
    """Connections to nodes that refuse every call."""

    def __init__(self, code: str) -> None:
        self._refusal = Refusal(code, "No.")

    async def call(self, *_: Any) -> Any:
        raise Refused(self._refusal)


def asked(code: str) -> Any:
    """Return the result of a renewal that a node refuses with ``code``."""
    router: Any = object.__new__(AsyncRouter)
    router._nodes = lambda: Refusing(code)
    router._membership = SimpleNamespace(view=ClusterView([MEMBER]))
    renewal = router.ask_grant(MEMBER, commands.RENEW, (0, b"name", 1, 30.0), Deadline(5.0))
    return asyncio.run(renewal)


def test_a_node_that_its_key_has_left_has_no_grant() -> None:
    with pytest.raises(GrantMoved):
        asked(STALE_VIEW)


def test_a_node_without_a_lease_cannot_tell() -> None:
    with pytest.raises(NotServing):
        asked(NOT_SERVING)
