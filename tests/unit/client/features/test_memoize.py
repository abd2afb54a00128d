"""What identifies a call, and how its result is invalidated."""

from __future__ import annotations

from typing import Any

import pytest

from pyrocache.client.context import ClientContext
from pyrocache.client.features.load_once import LoadOptions
from pyrocache.client.features.memoize import Memoizer
from pyrocache.client.keys.content import content_of
from pyrocache.config import ClientConfig
from pyrocache.errors import NodeUnavailable


class Backend:
    """Knows `delete` only, and loses its reply."""

    deleted = 0

    def delete(self, key: bytes, deadline: Any) -> bool:
        self.deleted += 1
        raise NodeUnavailable("no reply")


def test_an_invalidation_whose_reply_is_lost_is_an_error_and_not_sent_again() -> None:
    backend: Any = Backend()
    context = ClientContext(ClientConfig(), backend)
    memoized = Memoizer(context, LoadOptions())(lambda number: number)
    with pytest.raises(NodeUnavailable):
        memoized.invalidate(1)
    assert backend.deleted == 1


class Array:
    """Compares element by element, as numpy's."""

    def __eq__(self, other: object) -> Any:
        return Array()

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")

    __hash__ = None  # type: ignore[assignment]


def test_a_default_may_have_an_equality_that_is_no_bool() -> None:
    context = ClientContext(ClientConfig(), Backend())  # type: ignore[arg-type]
    array = Array()

    def function(number: int, weights: Any = array) -> int:
        return number

    *_, values = Memoizer(context, LoadOptions())(function).key(1)
    assert values[0] == 1
    assert values[1] == content_of(Array())
