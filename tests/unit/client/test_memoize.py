"""What tells one function from another."""

from __future__ import annotations

from pyrocache.client.features.memoize import identity


def test_two_lambdas_on_one_line_are_two_functions() -> None:
    first, second = (lambda x: x + 1), (lambda x: x - 1)
    assert identity(first) != identity(second)
    first.__module__ = second.__module__ = "__main__"
    assert identity(first) != identity(second)


def test_a_function_of_a_module_is_known_by_its_name() -> None:
    assert identity(identity) == "pyrocache.client.features.memoize.identity"
