"""Tokens admit once, and not for long."""

from __future__ import annotations

from pyrocache.server import tokens as tokens_module
from pyrocache.server.tokens import LIFE_SECONDS, Tokens
from pyrocache.testing import FakeClock


def test_a_token_admits_once() -> None:
    tokens = Tokens(FakeClock())
    first, second = tokens.issue(), tokens.issue()
    assert tokens.accept(second) is True
    assert tokens.accept(second) is False
    assert tokens.accept(first) is True


def test_a_token_is_valid_for_half_a_minute() -> None:
    clock = FakeClock()
    tokens = Tokens(clock)
    early, late = tokens.issue(), tokens.issue()
    clock.tick(LIFE_SECONDS - 0.1)
    assert tokens.accept(early) is True
    clock.tick(0.1)
    assert tokens.accept(late) is False


def test_what_was_never_issued_is_not_accepted() -> None:
    tokens = Tokens(FakeClock())
    token = tokens.issue()
    for guess in ("", token[:-1], token.upper() + "0", "0" * 64):
        assert tokens.accept(guess) is False
    assert tokens.accept(token) is True


def test_tokens_cannot_be_guessed_from_each_other() -> None:
    tokens = Tokens(FakeClock())
    issued = {tokens.issue() for _ in range(100)}
    assert len(issued) == 100
    assert {len(token) for token in issued} == {64}


def test_unused_tokens_are_bounded_and_the_oldest_goes_first() -> None:
    tokens = Tokens(FakeClock())
    issued = [tokens.issue() for _ in range(tokens_module._MOST + 1)]
    assert tokens.accept(issued[0]) is False
    assert tokens.accept(issued[1]) is True
    assert tokens.accept(issued[-1]) is True


def test_expired_tokens_are_not_kept() -> None:
    clock = FakeClock()
    tokens = Tokens(clock)
    for _ in range(10):
        tokens.issue()
    clock.tick(LIFE_SECONDS)
    last = tokens.issue()
    assert list(tokens._ends) == [last]
