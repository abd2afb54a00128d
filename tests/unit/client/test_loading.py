"""When a value is refreshed early, and what a function is identified by."""

from __future__ import annotations

import math
import random
from datetime import timedelta
from types import FunctionType
from typing import Any

import pytest

from pyrocache.client.features.load_once import Terms, _Live, checked_terms
from pyrocache.client.features.memoize import _digest, identity

# XFetch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("remaining", [0.1, 1.0, 4.0])
def test_the_chance_of_an_early_refresh_is_as_the_paper_has_it(early: float, remaining: float) -> None:
    dice = random.Random(7).random
    live = _Live(b"", remaining, load_seconds=0.8)
    share = sum(live.is_due(early, dice) for _ in range(20_000)) / 20_000
    assert share == pytest.approx(math.exp(-remaining / (0.8 * early)), abs=0.015)


@pytest.mark.parametrize("dice", [0.0, 0.5, math.nextafter(1.0, 0.0)])
def test_whatever_the_dice_show_it_is_a_number(dice: float) -> None:
    assert _Live(b"", 1e9, 0.1).is_due(1.0, lambda: dice) is False
    assert _Live(b"", 0.0, 0.1).is_due(1.0, lambda: dice) is True


@pytest.mark.parametrize(
    ("early", "remaining", "load_seconds"),
    [(0.0, 0.0, 1.0), (1.0, None, 1.0), (1.0, 0.0, None), (1.0, 0.0, 0.0)],
)
def test_there_is_none_without_beta_expiry_or_time_to_load(
    early: float, remaining: Any, load_seconds: Any
) -> None:
    assert not _Live(b"", remaining, load_seconds).is_due(early, lambda: 0.999)


def terms(**given: Any) -> Terms:
    usual = {"ttl_seconds": None, "stale_seconds": 0, "early": 0.0, "wait_seconds": None, "lease_seconds": 60}
    return checked_terms(**{**usual, **given})


def test_durations_are_seconds_or_timedeltas() -> None:
    minute = timedelta(minutes=1)
    made = terms(ttl_seconds=minute, stale_seconds=minute, wait_seconds=minute, lease_seconds=minute, early=2)
    assert made == Terms(ttl_seconds=60.0, stale_seconds=60.0, early=2, wait_seconds=60.0, lease_seconds=60.0)
    assert terms(wait_seconds=0).wait_seconds == 0


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"lease_seconds": 0}, ValueError, "lease_seconds must be finite and above 0, not 0"),
        ({"stale_seconds": -1}, ValueError, "stale_seconds must be finite and not negative, not -1"),
        ({"wait_seconds": math.nan}, ValueError, "wait_seconds must be finite"),
        ({"early": "1"}, TypeError, "early must be an int or a float, not str"),
        (
            {"stale_seconds": True},
            TypeError,
            "stale_seconds must be an int, a float or a timedelta, not bool",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        terms(**given)


# Identity ----------------------------------------------------------------------------------------------------


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
