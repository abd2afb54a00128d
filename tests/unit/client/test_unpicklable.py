"""What an error says about a value that does not pickle: the part, where it is, and the reason; never its content."""

from __future__ import annotations

import functools
import io
import sys
import threading
import time
from collections import deque, namedtuple
from types import ModuleType
from typing import Any

import pytest

from pyrocache.client.codec import Codec
from pyrocache.client.pickling import names_in_main
from pyrocache.client.unpicklable import path_to
from pyrocache.errors import SerializationError

HERE = __name__


class Row:
    def __init__(self, part: object) -> None:
        self.name = "secret"
        self.part = part


class Slotted:
    __slots__ = ("part",)

    def __init__(self, part: object) -> None:
        self.part = part


class Raises:
    def __getstate__(self) -> object:
        raise ValueError("secret")


class Odd(Row):
    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            raise ValueError("secret")
        return super().__getattribute__(name)


def local() -> object:
    class Local:
        pass

    return Local()


Point = namedtuple("Point", "x y")  # importable, as a key of the tests' own table
lock = threading.Lock()
LOCK = "is of type _thread.lock: cannot pickle '_thread.lock' object"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lock, "type _thread.lock does not pickle: cannot pickle '_thread.lock' object"),
        ({"rows": [1, 2, 3, Row(lock)]}, f"type dict does not pickle: its ['rows'][3].part {LOCK}"),
        ({7: (1, lock)}, f"its [7][1] {LOCK}"),
        ({"a secret": deque([lock])}, f"its [...][0] {LOCK}"),
        ({"secret" * 10: lock}, f"its [...] {LOCK}"),
        ({(1, lock): 2}, f"its .keys()[1] {LOCK}"),
        (Point(1, lock), f"its [1] {LOCK}"),
        (Slotted(lock), f"its .part {LOCK}"),
        ({Row(lock)}, f"its [...].part {LOCK}"),
        (functools.partial(print, lock), f"its .args[0] {LOCK}"),
        (Row(lock.acquire), f"its .part.__self__ {LOCK}"),
        (lambda: 1, f"type function does not pickle: {HERE}.<lambda> cannot be imported by its name"),
        ([local()], f"its [0]: {HERE}.local.<locals>.Local cannot be imported"),
        ([Raises()], f"its [0] is of type {HERE}.Raises: pickling it raised ValueError"),
        ((x for x in "x"), "type generator does not pickle: cannot pickle 'generator' object"),
        ([io.StringIO, threading], "its [1] is of type module: cannot pickle 'module' object"),
    ],
)
def test_it_says_what_does_not_pickle(value: object, said: str) -> None:
    with pytest.raises(SerializationError) as caught:
        Codec().encode(b"", value)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_object_of_a_class_that_was_defined_again_is_to_be_created_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = Row(1)
    monkeypatch.setitem(globals(), "Row", type("Row", (), {"__module__": HERE, "__qualname__": "Row"}))
    for value, place in ((old, ""), ({"rows": [old]}, r"its \['rows'\]\[0\]: ")):
        with pytest.raises(
            SerializationError, match=f"{place}{HERE}.Row was defined again: create the object anew"
        ):
            Codec().encode(b"", value)


def test_of_many_values_it_says_which_type() -> None:
    with pytest.raises(SerializationError, match=r"type list does not pickle: its \[1\] is of type"):
        Codec().encode_many([b"", b"", b""], [{}, [1, lock], {}])


def test_a_deep_path_is_shortened() -> None:
    value: object = lock
    for _ in range(30):
        value = [value]
    with pytest.raises(SerializationError, match=r"its (\[0\]){7}\.\.\.\[0\] is of type _thread.lock"):
        Codec().encode(b"", value)


def test_objects_whose_attributes_cannot_be_read_are_passed_over() -> None:
    assert path_to([Odd(1), Row(lock)], lock) == "[1].part"


@pytest.mark.full
def test_a_search_in_a_large_value_ends() -> None:
    value = [[number] for number in range(1_000_000)]
    since = time.monotonic()
    assert path_to([value, [lock]], lock) == "[1][0]"
    assert path_to(value, lock) is None
    assert time.monotonic() - since < 30


def test_the_names_of_main_that_a_pickle_refers_to(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    source = """
from collections import OrderedDict
from enum import Enum
from typing import TypeVar
class A:
    class B: pass
class C(Enum): X = 1
def f(): pass
T = TypeVar("T")
"""
    exec(source, vars(main))
    for code, names in {
        "[1, 'A', len, OrderedDict(), '__main__']": set(),
        "{'x': (A(), [f])}": {"A", "f"},
        "A.B()": {"A"},
        "C.X": {"C"},
        "[T]": {"T"},
        "OrderedDict(x=A)": {"A"},
    }.items():
        assert names_in_main(eval(code, vars(main))) == names
