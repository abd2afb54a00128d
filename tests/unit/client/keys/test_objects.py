"""Dataclasses as keys: the same bytes however the program that defines them is run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import pyrocache
from pyrocache.client.keys.encoding import decode_key, encode_key


@dataclass(frozen=True)
class Caseless:
    """Has an == that was written by hand and is looser than the generated one."""

    text: str
    note: str = field(default="none", compare=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Caseless) and self.text.lower() == other.text.lower()

    def __hash__(self) -> int:
        return hash(self.text.lower())


class Inherits(Caseless):
    """Not a dataclass itself; inherits the ==."""


class Overrides(Caseless):
    """Not a dataclass itself; has an == of its own."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


@dataclass(eq=False)
class ByIdentity:
    number: int


def tag(key: object) -> bytes:
    return encode_key(key, b"")[:1]


def test_a_dataclass_with_eq_is_keyed_by_its_compared_fields_even_if_its_eq_was_written() -> None:
    assert tag(Caseless("a")) == b"D"
    assert encode_key(Caseless("a", "one")) == encode_key(Caseless("a", "other"))
    assert encode_key(Caseless("a")) != encode_key(Caseless("A"))
    again: Any = decode_key(encode_key(Inherits("a")))
    assert type(again) is Inherits
    assert again.text == "a"


def test_a_class_with_an_equality_that_is_no_dataclasss_is_pickled() -> None:
    assert tag(Overrides("a")) == b"P"
    assert tag(ByIdentity(1)) == b"P"
    assert encode_key(ByIdentity(1)) == encode_key(ByIdentity(1))


PROGRAM = """
from dataclasses import dataclass, field
from pyrocache.client.keys.encoding import encode_key

@dataclass(frozen=True)
class Generated:
    text: str
    note: str = field(default="none", compare=False)

@dataclass(frozen=True)
class Written:
    text: str
    note: str = field(default="none", compare=False)

    def __eq__(self, other):
        return isinstance(other, Written) and self.text.lower() == other.text.lower()

    def __hash__(self):
        return hash(self.text.lower())

class Other:
    def __init__(self, text):
        self.text = text

    def __eq__(self, other):
        return True

for key in (Generated("a"), Written("a", "note"), Other("a"), (Written("b"), {1: Generated("c")})):
    print(encode_key(key).hex())
"""


@pytest.fixture
def run(tmp_path: Path) -> Any:
    environment = {**os.environ, "PYTHONPATH": f"{Path(pyrocache.__file__).parents[1]}{os.pathsep}{tmp_path}"}

    def python(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment, capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip

    return python


def test_a_class_of_main_has_the_same_bytes_from_a_file_a_module_a_string_and_exec(
    run: Any, tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    printed = [
        run(str(script)),
        run("-m", "program"),
        run("-c", PROGRAM),
        run("-c", f"exec(compile({PROGRAM!r}, 'somewhere.py', 'exec'))"),
    ]
    assert len(printed[0].splitlines()) == 4
    assert len(set(printed)) == 1
