"""The asyncio client has the methods of the blocking one, with the same parameters and, awaited, the same results."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyrocache import PyroCacheClient
from pyrocache.aio import AsyncLock, AsyncPyroCacheClient
from pyrocache.client.features.locks import Lock

CLASSES: list[tuple[type, type]] = [(PyroCacheClient, AsyncPyroCacheClient), (Lock, AsyncLock)]

ONLY_BLOCKING = {
    "__contains__": "a mapping's methods cannot be awaited: contains",
    "__delitem__": "the same: delete",
    "__getitem__": "the same: get",
    "__setitem__": "the same: set",
    "__len__": "the same: size",
    "__bool__": "the same: size",
    "__eq__": "the same: it would ask all nodes",
    "__iter__": "__aiter__",
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
    "watch": "a thread asks the nodes",
}
ONLY_ASYNCIO = {
    "__aiter__": "__iter__",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "size": "len()",
}
PLAIN = {"namespace", "lock", "semaphore", "memoize"}
"""They return an object and ask no node."""

ITERATE = {"scan", "keys", "items", "values"}
"""They return an asynchronous iterator in place of an iterator or a view."""

MORE_PARAMETERS = {"__init__": ["connections"]}
"""Parameters of the asyncio client only. It shares its connections between tasks."""

RESULTS = {
    "Memoizer": "AsyncMemoizer",
    "Lock": "AsyncLock",
}
"""Types of results that the asyncio client has of its own."""

FACTORIES = {"get_or_set": "factory", "compute": "function"}
"""They take a function that may be a coroutine function. Overloads tell what they return; see ``tests/typing``."""


def methods(kind: type) -> dict[str, Any]:
    """Return the public methods and properties of a class, without those of `object`."""
    inherited = {name: found for base in reversed(kind.__mro__[:-1]) for name, found in vars(base).items()}
    return {
        name: found
        for name, found in inherited.items()
        if (not name.startswith("_") or name in ONLY_BLOCKING or name in ONLY_ASYNCIO)
        and (callable(found) or isinstance(found, property))
    }


def _both() -> Iterator[Any]:
    for blocking, asynchronous in CLASSES:
        for name in sorted(methods(blocking).keys() & methods(asynchronous).keys()):
            yield pytest.param(name, blocking, asynchronous, id=f"{asynchronous.__name__}.{name}")


BOTH = list(_both())


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Return name, kind and default of each parameter, in order."""
    return [(one.name, one.kind, one.default) for one in inspect.signature(function).parameters.values()]


def annotations(function: Callable[..., Any]) -> dict[str, str]:
    return {
        name: str(one.annotation)
        for name, one in inspect.signature(function).parameters.items()
        if name != "self"
    }


@pytest.mark.parametrize(("blocking", "asynchronous"), CLASSES)
def test_each_has_the_methods_of_the_other(blocking: type, asynchronous: type) -> None:
    assert methods(blocking).keys() - methods(asynchronous).keys() <= ONLY_BLOCKING.keys()
    assert methods(asynchronous).keys() - methods(blocking).keys() <= ONLY_ASYNCIO.keys()


@pytest.mark.parametrize(("name", "blocking", "asynchronous"), BOTH)
def test_parameters_are_the_same(name: str, blocking: type, asynchronous: type) -> None:
    one, other = methods(blocking)[name], methods(asynchronous)[name]
    if isinstance(one, property):
        assert isinstance(other, property)
        one, other = one.fget, other.fget
    assert parameters(one) == parameters(other)
    differing = {
        parameter
        for parameter, annotation in annotations(one).items()
        if annotation != annotations(other)[parameter]
    }
    assert differing <= {FACTORIES.get(name)}


@pytest.mark.parametrize(("blocking", "asynchronous"), CLASSES)
def test_constructors_take_the_same(blocking: type, asynchronous: type) -> None:
    more = MORE_PARAMETERS["__init__"]
    taken = parameters(asynchronous.__init__)
    assert [one for one in taken if one[0] not in more] == parameters(blocking.__init__)
    ours, theirs = annotations(asynchronous.__init__), annotations(blocking.__init__)
    assert {name: text for name, text in ours.items() if name not in more and name != "context"} == {
        name: text for name, text in theirs.items() if name != "context"
    }


@pytest.mark.parametrize(("name", "blocking", "asynchronous"), BOTH)
def test_results_are_the_same_once_they_are_awaited(name: str, blocking: type, asynchronous: type) -> None:
    one, other = methods(blocking)[name], methods(asynchronous)[name]
    if isinstance(one, property):
        one, other = one.fget, other.fget
    else:
        assert inspect.iscoroutinefunction(other) == (name not in PLAIN | ITERATE)
    result, expected = (str(inspect.signature(found).return_annotation) for found in (other, one))
    if name in FACTORIES:
        return
    if name in ITERATE:
        assert re.match(r"AsyncScan\[", result)
        return
    for theirs, ours in RESULTS.items():
        expected = re.sub(rf"\b{theirs}\b", ours, expected)
    assert result == expected


@pytest.mark.parametrize(("name", "blocking", "asynchronous"), BOTH)
def test_overloads_are_the_same(name: str, blocking: type, asynchronous: type) -> None:
    def overloads(kind: type) -> list[tuple[Any, ...]]:
        found = typing.get_overloads(methods(kind)[name])
        return [
            (
                parameters(one),
                annotations(one),
                inspect.signature(one).return_annotation.replace("AsyncScan[", "Iterator["),
            )
            for one in found
        ]

    if name in FACTORIES:
        assert len(overloads(asynchronous)) == 2  # for a coroutine function and for a plain one
    elif isinstance(methods(blocking)[name], property):
        assert isinstance(methods(asynchronous)[name], property)
    else:
        assert overloads(asynchronous) == overloads(blocking)


@pytest.mark.parametrize("kind", [AsyncPyroCacheClient, AsyncLock])
def test_every_method_says_what_it_does(kind: type) -> None:
    silent = [name for name, found in methods(kind).items() if not name.startswith("_") and not found.__doc__]
    assert silent == []


def test_the_lists_have_no_more_than_is_needed() -> None:
    assert ONLY_BLOCKING.keys() <= set().union(*(methods(blocking) for blocking, _ in CLASSES))
    assert ONLY_ASYNCIO.keys() <= set().union(*(methods(asynchronous) for _, asynchronous in CLASSES))
    assert methods(AsyncPyroCacheClient).keys() >= PLAIN | ITERATE
