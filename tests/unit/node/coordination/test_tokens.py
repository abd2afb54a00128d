"""Numbers that only grow, whatever clocks do."""

from __future__ import annotations

from pyrocache.cluster.views import LARGEST_NUMBER
from pyrocache.node.coordination.tokens import COUNTER_BITS, Tokens


def test_a_token_is_the_number_of_the_view_and_a_counter() -> None:
    tokens = Tokens(3)
    assert [tokens.next(), tokens.next()] == [(3 << 32) + 1, (3 << 32) + 2]
    assert tokens.used == 2
    tokens.begin(7)
    assert tokens.used == 0
    assert tokens.next() == (7 << 32) + 1


def test_they_never_fall() -> None:
    tokens = Tokens(3)
    last = 0
    for number in (3, 2, 4, 4, 0, 1, 5):
        tokens.begin(number)
        token = tokens.next()
        assert token > last
        last = token


def test_those_of_the_largest_view_are_below_2_to_the_63() -> None:
    tokens = Tokens(LARGEST_NUMBER)
    assert tokens.next() + 2**COUNTER_BITS - 2 < 2**63
