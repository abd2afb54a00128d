"""What bulk calls make of the answers, and what they hold on to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyrocache import DEFAULT_TTL, NodeUnavailable, PartialFailure
from pyrocache.client.context import ClientContext
from pyrocache.client.features import bulk
from pyrocache.client.features.bulk import Change, GetMany
from pyrocache.config import ClientConfig


class Cut:
    """An answer during which the user presses Ctrl-C."""

    def __radd__(self, other: object) -> int:
        raise KeyboardInterrupt

    def __contains__(self, other: object) -> bool:
        raise KeyboardInterrupt


class CutBackend:
    """A backend whose replies notice when nothing refers to them any more."""

    def __init__(self) -> None:
        self.released = False

    def _replies(self, *arguments: Any) -> Iterator[tuple[list[int], Any]]:
        try:
            yield [0], Cut()
            raise AssertionError("the call goes on")
        finally:
            self.released = True

    get_many = set_many = delete_many = touch_many = _replies


CALLS: list[Callable[[ClientContext[Any]], Any]] = [
    lambda context: bulk.get_many(context, ["a"]),
    lambda context: bulk.make(context, Change.set_many(context, {"a": 1}, None, None, None, 0.0)),
    lambda context: bulk.make(context, Change.delete_many(context, ["a"])),
    lambda context: bulk.make(context, Change.touch_many(context, ["a"], None, None)),
]


@pytest.mark.parametrize("call", CALLS)
def test_an_exception_that_is_kept_keeps_no_connection_of_the_call(
    call: Callable[[ClientContext[Any]], Any],
) -> None:
    backend: Any = CutBackend()
    with pytest.raises(KeyboardInterrupt) as kept:
        call(ClientContext(ClientConfig(), backend))
    assert backend.released, kept


def context(**settings: Any) -> ClientContext[Any]:
    backend: Any = object()
    return ClientContext(ClientConfig(**settings), backend)


def test_answers_in_any_order_are_a_dict_in_the_order_of_the_keys() -> None:
    call = GetMany(context(), ["a", "b", "c"])
    codec = context().codec
    one, two = (bytes(codec.encode(b"", number)) for number in (1, 2))
    call.take([2, 0], [two, one])
    call.take([1], [None])
    assert list(call.result().items()) == [("a", 1), ("c", 2)]


def test_keys_without_an_answer_are_missing() -> None:
    call = GetMany(context(), ["a", "b"])
    call.take([1], [bytes(context().codec.encode(b"", 5))])
    assert call.result() == {"b": 5}


def test_errors_of_some_keys_come_with_the_results_of_the_others() -> None:
    gone = NodeUnavailable("gone")
    change = Change.delete_many(context(), ["a", "b", "c"])
    change.take([0, 2], 1)
    change.take([1], gone)
    with pytest.raises(PartialFailure) as failed:
        change.result()
    assert (failed.value.results, failed.value.errors) == (1, {"b": gone})
    lenient = context(on_error="miss")
    change = Change.delete_many(lenient, ["a", "b", "c"])
    change.take([0, 2], 1)
    change.take([1], gone)
    assert change.result() == 1
    assert lenient.figures.misses_on_error == 1


def test_entries_that_are_stored_too_late_all_count_and_are_removed() -> None:
    change = Change.set_many(context(), {"a": 1, "b": 2}, ..., None, None, 0.0)
    assert (change.removes, change.frames is None) == (False, False)
    with pytest.raises(TypeError, match="not both"):
        Change.set_many(context(), {"a": 1}, 5, None, 1.0, 0.0)
    change = Change.set_many(context(), {"a": 1, "b": 2}, DEFAULT_TTL, None, 1.0, 0.0)
    assert (change.removes, change.frames) == (True, None)
    change.take([0, 1], 0)
    assert change.result() == 2
