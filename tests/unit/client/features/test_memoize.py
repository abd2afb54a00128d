"""What identifies a function, and how its result is invalidated."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import pytest

from pyrocache.client.context import ClientContext
from pyrocache.client.features.load_once import LoadOptions
from pyrocache.client.features.memoize import Memoizer, _digest, identity
from pyrocache.config import ClientConfig
from pyrocache.errors import NodeUnavailable


def test_two_lambdas_on_one_line_are_two_functions() -> None:
    first, second = (lambda x: x + 1), (lambda x: x - 1)
    assert identity(first) != identity(second)
    first.__module__ = second.__module__ = "__main__"
    assert identity(first) != identity(second)


def test_a_function_of_a_module_is_known_by_its_name() -> None:
    assert identity(identity) == "pyrocache.client.features.memoize.identity"


def function_of(source: str, module: str = "__main__") -> Any:
    """The function that this defines where its source cannot be had."""
    names: dict[str, Any] = {"__name__": module}
    exec(source, names)
    return next(value for value in names.values() if isinstance(value, FunctionType))


def test_a_function_of_a_module_is_its_name() -> None:
    assert identity(function_of("def f(x): return x", "shop")) == "shop.f"
    assert identity(function_of("def f(x): return x + 1", "shop")) == "shop.f"
    assert identity(function_of) == f"{__name__}.function_of"


@pytest.mark.parametrize(
    "other",
    [
        "def f(x): return x + 2",
        "def f(x): return x - 1",
        "def f(x): return y + 1",
        "def f(y): return y + 1",
        "def f(x): return x + 1.0",
        "def f(x): return (lambda: x + 1)()",
        "def f(x): return x in {1, 2, 'a'}",
    ],
)
def test_a_function_of_a_script_is_what_it_does_too(other: str) -> None:
    original = "def f(x): return x + 1"
    assert identity(function_of(original)) == identity(function_of(original))
    assert identity(function_of(original)) == identity(function_of(original, "__mp_main__"))
    assert identity(function_of(original)) != identity(function_of(other))
    assert identity(function_of(other)) == identity(function_of(other))


def test_where_the_source_is_there_it_counts() -> None:
    assert _digest(function_of) != _digest(function_of("def function_of(source): ..."))
    assert len(_digest(function_of)) == 16


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
    assert values[1] is array
