"""A `Deferred` has one outcome, whoever else comes at the same time, and a `Session` closes once."""

from __future__ import annotations

import gc
import math
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from Pyro5.errors import PyroError

from pyrocache.server.deferred import Deadlines, Deferred, Session
from pyrocache.testing import FakeClock

PATIENCE_SECONDS = 15.0

OUTCOMES: dict[str, Callable[[Deferred], bool]] = {
    "given": lambda deferred: deferred.give("result"),
    "refused": lambda deferred: deferred.refuse(PyroError("no")),
    "expired": lambda deferred: deferred.expire(10.0),
    "cancelled": lambda deferred: deferred.cancel(),
}


def outcome_of(deferred: Deferred) -> Any:
    """What it was given, or the text of what it raises."""
    try:
        return deferred.outcome()
    except PyroError as error:
        return str(error)


RIGHT = {
    "given": "result",
    "refused": "no",
    "expired": "late",
    "cancelled": "Nobody waits for this call any more.",
}


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class TestDeferred:
    @pytest.mark.parametrize("first", OUTCOMES)
    @pytest.mark.parametrize("second", OUTCOMES)
    def test_the_first_outcome_is_the_only_one(self, first: str, second: str) -> None:
        taken = []
        deferred = Deferred(Session(), 10.0, "late")
        deferred.take(lambda: taken.append(1))
        assert deferred.waiting
        assert OUTCOMES[first](deferred) is True
        assert not deferred.waiting
        assert OUTCOMES[second](deferred) is False
        assert outcome_of(deferred) == RIGHT[first]
        assert taken == [1]

    @pytest.mark.parametrize("name", OUTCOMES)
    def test_whoever_takes_it_afterwards_is_called_at_once(self, name: str) -> None:
        taken = []
        deferred = Deferred(Session(), 10.0, "late")
        OUTCOMES[name](deferred)
        deferred.take(lambda: taken.append(outcome_of(deferred)))
        assert taken == [RIGHT[name]]

    def test_it_does_not_expire_before_its_deadline(self) -> None:
        deferred = Deferred(Session(), 10.0)
        assert deferred.expire(9.999) is False
        assert deferred.waiting
        with pytest.raises(PyroError, match="no outcome yet"):
            deferred.outcome()
        assert deferred.expire(10.0) is True
        assert deferred.outcome() is None

    def test_neither_lock_is_held_while_a_callback_runs(self) -> None:
        session = Session()
        deferred = Deferred(session, 10.0)
        deferred.take(lambda: deferred.give("again"))
        session.on_close(lambda: session.on_close(deferred.cancel))
        session.close()
        assert not deferred.waiting

    def test_what_a_callback_raises_stops_nobody(self) -> None:
        deferred = Deferred(Session(), 10.0)
        deferred.take(lambda: 1 / 0)
        assert deferred.cancel() is True

    @pytest.mark.parametrize("name", OUTCOMES)
    def test_nothing_is_kept_alive_by_callbacks_that_refer_to_it(self, name: str) -> None:
        """Nodes run without full garbage collections."""
        result = Canary()
        here: list[Deferred] = []
        here.append(Deferred(Session(), 10.0, result))
        here[0].take(partial(len, here))
        here[0].session.on_close(partial(len, here))
        gone = weakref.ref(result)
        gc.disable()
        try:
            OUTCOMES[name](here[0])
            here[0].session.close()
            del here, result
            assert gone() is None
        finally:
            gc.enable()


class Canary:
    """A result that can be watched."""


class TestWait:
    """Blocking, as under a daemon that knows nothing of waiting calls."""

    def test_it_returns_what_another_thread_gives(self) -> None:
        deferred = Deferred(Session(), math.inf)
        thread = threading.Thread(target=deferred.give, args=("result",))
        thread.start()
        assert deferred.wait() == "result"
        thread.join()

    def test_it_raises_what_it_was_refused_with(self) -> None:
        deferred = Deferred(Session(), math.inf)
        deferred.refuse(PyroError("no"))
        with pytest.raises(PyroError, match="no"):
            deferred.wait()

    def test_at_the_deadline_it_gives_what_is_given_then(self) -> None:
        clock = FakeClock(11.0)
        assert Deferred(Session(), 10.0, "late").wait(clock) == "late"

    def test_a_wait_that_ends_too_early_goes_on(self) -> None:
        times = iter([10.0 - 1e-4, 10.0 - 1e-4, 10.0 - 1e-5, 10.0 - 1e-5, 10.0, 10.0])
        assert Deferred(Session(), 10.0, "late").wait(lambda: next(times)) == "late"
        assert list(times) == [], "it looked again and again until it was time"


class TestSession:
    def test_everybody_is_called_once_in_order(self) -> None:
        called: list[int] = []
        session = Session()
        for number in range(3):
            session.on_close(partial(called.append, number))
        assert not session.closed
        assert called == []
        session.close()
        assert session.closed
        session.close()
        assert called == [0, 1, 2]

    def test_whoever_comes_afterwards_is_called_at_once(self) -> None:
        called: list[int] = []
        session = Session()
        session.close()
        session.on_close(lambda: called.append(1))
        assert called == [1]

    def test_what_one_raises_keeps_no_other_from_being_called(self) -> None:
        called: list[int] = []
        session = Session()
        session.on_close(lambda: 1 / 0)
        session.on_close(lambda: called.append(1))
        session.close()
        session.on_close(lambda: 1 / 0)
        assert called == [1]


class TestDeadlines:
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("add"), st.floats(0.0, 50.0)),
                st.tuples(st.sampled_from(["give", "cancel"]), st.integers(0, 2**16)),
                st.tuples(st.just("tick"), st.floats(0.0, 10.0)),
            ),
            max_size=300,
        )
    )
    def test_each_expires_in_time_unless_it_was_settled(self, steps: list[tuple[str, Any]]) -> None:
        deadlines, now = Deadlines(), 0.0
        waiting: list[Deferred] = []
        for step, argument in steps:
            if step == "add":
                waiting.append(Deferred(Session(), now + argument))
                deadlines.add(waiting[-1])
            elif step == "tick":
                now += argument
                if now >= deadlines.first:
                    deadlines.expire(now)
                for deferred in [deferred for deferred in waiting if not deferred.waiting]:
                    assert deferred.deadline <= now
                    waiting.remove(deferred)
                    deadlines.discard(deferred)
            elif waiting:
                deferred = waiting.pop(argument % len(waiting))
                if step == "give":
                    deferred.give(None)
                    deadlines.discard(deferred)
                else:  # as a connection does that closes
                    deadlines.discard(deferred)
                    deferred.cancel()
            assert all(deferred.waiting and deferred.deadline > now for deferred in waiting if step == "tick")
            assert deadlines.first <= min((deferred.deadline for deferred in waiting), default=math.inf)
        assert len(deadlines._heap) <= 2 * len(waiting) + 64

    def test_those_that_were_settled_long_before_are_not_kept(self) -> None:
        deadlines = Deadlines()
        patient = Deferred(Session(), 1e6)
        deadlines.add(patient)
        for number in range(10_000):
            deferred = Deferred(Session(), 1000.0 + number)
            deadlines.add(deferred)
            deferred.give(None)
            deadlines.discard(deferred)
        assert len(deadlines._heap) < 100
        deadlines.expire(1e6)
        assert not patient.waiting
        assert deadlines.first == math.inf

    def test_of_many_those_that_are_left_expire_in_order(self) -> None:
        deadlines, chance = Deadlines(), random.Random(1)
        deferreds = [Deferred(Session(), chance.random()) for _ in range(2000)]
        for deferred in deferreds:
            deadlines.add(deferred)
        left = sorted(deferreds[::10], key=lambda deferred: deferred.deadline)
        for deferred in deferreds:
            if deferred not in left:
                deadlines.discard(deferred)
                deferred.cancel()
        for deferred in left:
            assert deadlines.first <= deferred.deadline
            deadlines.expire(deferred.deadline)
            assert not deferred.waiting

    def test_equal_deadlines_compare_nothing_else(self) -> None:
        deadlines = Deadlines()
        deferreds = [Deferred(Session(), 1.0) for _ in range(50)]
        for deferred in deferreds:
            deadlines.add(deferred)
        deadlines.expire(1.0)
        assert not any(deferred.waiting for deferred in deferreds)

    def test_deadlines_of_a_clock_that_is_ahead_come_earlier(self) -> None:
        deadlines = Deadlines()
        early, late = Deferred(Session(), 100.0, "early"), Deferred(Session(), 200.0, "late")
        deadlines.add(early)
        assert deadlines.first == 100.0
        deadlines.set_ahead(60.0)
        assert deadlines.first == 40.0
        deadlines.add(late)
        deadlines.expire(39.0)
        assert early.waiting
        deadlines.expire(40.0)
        assert early.outcome() == "early"
        assert late.waiting
        assert deadlines.first == 140.0
        deadlines.set_ahead(200.0)
        deadlines.expire(deadlines.first)
        assert late.outcome() == "late"


class TestRaces:
    """Threads that come at the same moment. Everything is decided once, and everybody is told the same."""

    @pytest.mark.usefixtures("impatient")
    def test_of_all_who_settle_it_at_once_one_wins(self) -> None:
        rounds = 2000
        names = [*OUTCOMES, "given", "cancelled"]
        barrier = threading.Barrier(len(names) + 1, timeout=PATIENCE_SECONDS)
        taken = [0] * rounds

        def count(where: list[int], number: int) -> None:
            where[number] += 1

        deferreds = [Deferred(Session(), 10.0, "late") for _ in range(rounds)]
        won: list[list[bool]] = [[] for _ in names]

        def settle(name: str, told: list[bool]) -> None:
            for deferred in deferreds:
                barrier.wait()
                told.append(OUTCOMES[name](deferred))

        def take() -> None:
            for number, deferred in enumerate(deferreds):
                barrier.wait()
                deferred.take(partial(count, taken, number))

        in_parallel([*(partial(settle, name, told) for name, told in zip(names, won, strict=True)), take])
        for number, deferred in enumerate(deferreds):
            winners = [name for name, told in zip(names, won, strict=True) if told[number]]
            assert len(winners) == 1
            assert outcome_of(deferred) == RIGHT[winners[0]]
            assert taken[number] == 1

    @pytest.mark.usefixtures("impatient")
    def test_whoever_comes_while_the_peer_closes_is_called_once(self) -> None:
        rounds, callers = 1000, 3
        barrier = threading.Barrier(callers + 2, timeout=PATIENCE_SECONDS)
        sessions = [Session() for _ in range(rounds)]
        called = [[0] * rounds for _ in range(callers)]

        def call(counts: list[int], number: int) -> None:
            counts[number] += 1

        def register(counts: list[int]) -> None:
            for number, session in enumerate(sessions):
                barrier.wait()
                session.on_close(partial(call, counts, number))

        def close() -> None:
            for session in sessions:
                barrier.wait()
                session.close()

        in_parallel([*(partial(register, counts) for counts in called), close, close])
        assert called == [[1] * rounds] * callers

    @pytest.mark.usefixtures("impatient")
    def test_a_lock_that_is_given_to_peers_that_leave_is_never_lost_nor_held_twice(self, turns: Any) -> None:
        """The one token goes to whoever waits; peers leave before, while and after they are given it."""
        clock = FakeClock()

        def live(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(3000):
                session = Session()
                deferred = turns.begin(session, clock() + chance.choice([0.0, 1e9]))
                if chance.random() < 0.3:
                    deferred.expire(clock())
                while deferred.waiting and chance.random() < 0.9:
                    pass
                if chance.random() < 0.5 and not deferred.waiting and deferred.outcome() is not None:
                    assert turns.end(deferred.outcome())
                deferred.cancel()
                session.close()

        in_parallel([partial(live, seed) for seed in range(4)])
        assert turns.holder is None
        last = turns.begin(Session(), math.inf)
        assert last.outcome() == next(turns.tokens) - 1, "free, and given at once"


def in_parallel(targets: list[Callable[[], None]]) -> None:
    """Run them, each in a thread; whatever one raises is raised."""
    errors: list[BaseException] = []

    def run(target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * PATIENCE_SECONDS)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
