"""Times to live that differ at random."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.client.features.jitter import check_jitter, jittered, shortened


@given(st.floats(0.001, 1e9), st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_a_ttl_is_never_longer_than_asked_for_nor_shortened_by_more_than_the_fraction(
    ttl: float, fraction: float, drawn: float
) -> None:
    short = shortened(ttl, fraction, lambda: drawn)
    assert 0 < short <= ttl
    assert short >= ttl * (1 - fraction)
    assert shortened(-ttl, fraction, lambda: drawn) == -short


def test_without_a_ttl_or_without_jitter_nothing_is_drawn() -> None:
    assert jittered(None, 0.5) is None
    assert jittered(60.0, 0.0) == 60.0
    assert shortened(-math.inf, 1.0) == -math.inf
    assert len({jittered(60.0, 0.5) for _ in range(10)}) > 1


@pytest.mark.parametrize("wrong", [-0.1, 1.01, math.nan, math.inf])
def test_a_fraction_is_from_0_to_1(wrong: float) -> None:
    with pytest.raises(ValueError, match="ttl_jitter"):
        check_jitter(wrong)
    assert check_jitter(1) == 1.0
