"""The history checker on histories by hand: what it must find, and what it must not."""

from __future__ import annotations

from typing import Any

from tests.chaos.checker import check
from tests.chaos.history import (
    ACQUIRE,
    CAS,
    CLEAR,
    COUNT,
    DELETE,
    GET,
    INCR,
    MAYBE,
    OK,
    REFUSED,
    SET,
    Call,
    Loss,
)


def call(kind: str, start: float, end: float, value: Any = None, outcome: str = OK, **more: Any) -> Call:
    """A call about the key "k"; ``limit`` is its end unless given."""
    return Call("c", kind, "k", start, end, outcome, value, **{"limit": end, **more})


def loss(start: float, end: float, key: str = "k") -> Loss:
    return Loss(start, end, frozenset([key]))


def found(*calls: Call, losses: tuple[Loss, ...] = (), timeout: float = 100.0) -> list[str]:
    """The kinds of the violations."""
    return [violation.kind for violation in check(calls, losses, timeout)]


A = call(SET, 0, 1, "a")
B = call(SET, 2, 3, "b")
DELETED = call(DELETE, 2, 3)
UNSURE = call(SET, 2, 3, "b", MAYBE, limit=5.0)


# Registers: old values


def test_values_read_in_the_order_of_the_writes_are_good() -> None:
    assert found(A, call(GET, 1.1, 1.2, "a"), B, call(GET, 3.1, 3.2, "b")) == []


def test_a_read_during_a_write_may_return_either_value() -> None:
    assert found(A, call(GET, 2.5, 2.6, "a"), B) == []
    assert found(A, call(GET, 2.5, 2.6, "b"), B) == []
    assert found(A, call(GET, 1.5, 3.5, "a"), call(GET, 1.5, 3.6, "b"), B) == []


def test_a_read_of_a_value_that_was_overwritten_before_it_began_is_stale() -> None:
    assert found(A, B, call(GET, 3.1, 3.2, "a")) == ["old value after a newer one"]


def test_a_value_read_by_one_and_then_missed_by_another_is_stale_although_no_write_has_ended() -> None:
    long = call(SET, 2, 10, "b")
    assert found(A, long, call(GET, 3, 4, "b"), call(GET, 5, 6, "a")) == ["old value after a newer one"]


def test_a_write_that_lasts_long_and_is_applied_again_after_another_is_found() -> None:
    first = call(SET, 0, 10, "a")  # its reply was lost, and it was sent again
    a, b = call(GET, 1, 1.5, "a"), call(GET, 3.5, 4, "b")
    assert found(first, a, B, b, call(GET, 11, 12, "a")) == ["old value after a newer one"]
    assert found(first, a, DELETED, call(GET, 11, 12, "a")) == ["value came back after a delete"]
    assert (
        found(first, B, call(GET, 11, 12, "a")) == []
    )  # nobody saw it before: it may have taken effect last


def test_two_values_that_were_both_stored_for_a_time_that_overlaps_are_found() -> None:
    reads = call(GET, 3.5, 4, "b"), call(GET, 6, 7, "a"), call(GET, 8, 9, "b")
    assert found(A, B, *reads) == ["old value after a newer one"]


def test_one_violation_counts_all_stale_reads_of_a_value() -> None:
    reads = [call(GET, 4 + number, 4.5 + number, "a") for number in range(5)]
    (violation,) = check([A, B, *reads])
    assert violation.more == 4
    assert violation.calls[0] == reads[0]
    assert violation.at == 4.5


def test_a_value_that_nobody_wrote_is_found_also_if_it_is_of_another_key() -> None:
    other = A._replace(key="other", value="x")
    assert found(other, call(GET, 2, 3, "x")) == ["value that nobody wrote"]
    assert found(A, call(GET, 0.1, 0.2, "a"), call(GET, -2, -1, "a")) == ["read before it was written"]


def test_after_a_clear_there_is_no_older_value() -> None:
    cleared = call(CLEAR, 2, 3)
    assert found(A, cleared, call(GET, 3.1, 3.2), call(SET, 4, 5, "b"), call(GET, 6, 7, "b")) == []
    assert found(A, cleared, call(GET, 2.5, 2.9, "a")) == []
    assert found(A, cleared, call(GET, 3.1, 3.2, "a")) == ["value came back after a clear"]
    assert found(call(CLEAR, -2, -1), A, call(GET, 2, 3, "a")) == [], "it says nothing of what was there"


def test_a_clear_explains_misses_until_its_end_or_its_limit() -> None:
    during, after = call(SET, 2.2, 2.4, "b"), call(SET, 3.1, 3.2, "b")
    assert found(A, call(CLEAR, 2, 3), during, call(GET, 4, 5)) == []
    assert found(A, call(CLEAR, 2, 3), after, call(GET, 4, 5)) == ["acknowledged value lost"]
    unsure = call(CLEAR, 2, 3, None, MAYBE, limit=5.0)
    assert found(A, unsure, call(GET, 6, 7, "a")) == []
    assert found(A, unsure, after, call(GET, 4, 4.5)) == []


# Registers: changes that raised


def test_a_change_that_raised_may_take_effect_or_not_until_its_limit() -> None:
    assert found(A, UNSURE, call(GET, 3.5, 3.6, "a")) == []
    assert found(A, UNSURE, call(GET, 3.5, 3.6, "b")) == []
    assert found(A, UNSURE, call(GET, 3.5, 3.6, "a"), call(GET, 6, 7, "b")) == []
    assert found(A, UNSURE, call(SET, 4, 4.5, "c"), call(GET, 6, 7, "b")) == []
    unsure_delete = call(DELETE, 2, 3, None, MAYBE, limit=5.0)
    assert found(A, unsure_delete, call(GET, 4, 4.5, "a"), call(GET, 6, 7)) == []


def test_a_change_that_raised_does_not_take_effect_after_its_limit() -> None:
    newer = call(SET, 5.1, 5.5, "c")
    assert found(A, UNSURE, newer, call(GET, 6, 7, "b")) == ["took effect after its limit"]
    unsure_delete = call(DELETE, 2, 3, None, MAYBE, limit=5.0)
    assert found(A, unsure_delete, call(GET, 5.5, 6, "a"), call(GET, 7, 8)) == [
        "acknowledged value lost"
    ] or (found(A, unsure_delete, call(GET, 5.5, 6, "a"), call(GET, 7, 8)) == ["acknowledged value lost"])


def test_a_change_that_was_refused_never_takes_effect() -> None:
    refused = call(CAS, 2, 3, "b", REFUSED, replaced="a")
    assert found(A, refused, call(GET, 4, 5, "a")) == []
    assert found(A, refused, call(GET, 4, 5, "b")) == ["refused change took effect"]


# Registers: compare_and_set


def test_a_compare_and_set_reads_what_it_replaces() -> None:
    assert found(A, call(CAS, 2, 3, "b", replaced="a"), call(GET, 4, 5, "b")) == []
    assert found(A, B, call(CAS, 4, 5, "c", replaced="a")) == ["old value after a newer one"]


def test_a_version_is_replaced_once() -> None:
    both = call(CAS, 2, 3, "b", replaced="a"), call(CAS, 2, 3, "c", replaced="a")
    assert found(A, *both) == ["two compare_and_set of one version"]


# Registers: misses


def test_a_miss_before_the_first_write_and_after_a_delete_is_good() -> None:
    assert found(call(GET, -2, -1), A, DELETED, call(GET, 4, 5), call(DELETE, 5, 6, outcome=REFUSED)) == []
    assert found(A, call(DELETE, 2, 3, outcome=MAYBE, limit=5.0), call(GET, 3, 4)) == []
    assert found(call(GET, 0.5, 2), A) == []


def test_a_miss_of_an_acknowledged_or_read_value_is_a_loss() -> None:
    assert found(A, call(GET, 2, 3)) == ["acknowledged value lost"]
    assert found(A, DELETED, call(SET, 4, 5, "b"), call(GET, 6, 7)) == ["acknowledged value lost"]
    assert found(A, call(DELETE, 2, 3, outcome=REFUSED)) == ["acknowledged value lost"]
    assert found(UNSURE, call(GET, 3, 4, "b"), call(GET, 6, 7)) == ["acknowledged value lost"]


def test_a_delete_explains_no_miss_of_what_was_written_after_it() -> None:
    long, between, newer = call(SET, 0, 10, "a"), call(DELETE, 4, 4.5), call(SET, 5, 6, "b")
    assert found(long, between, newer, call(GET, 11, 12)) == ["acknowledged value lost"]


def test_a_loss_explains_a_miss_of_what_was_written_before_its_end() -> None:
    miss = call(GET, 4, 5)
    assert found(A, miss, losses=(loss(2, 3),)) == []
    assert found(A, miss, losses=(loss(2, 3, "other"),)) == ["acknowledged value lost"]
    assert found(A, miss, losses=(loss(6, 7),)) == ["acknowledged value lost"]
    later = call(SET, 3.1, 3.2, "b")
    assert found(A, later, miss, losses=(loss(2, 3),)) == ["acknowledged value lost"]


def test_a_loss_explains_no_old_value() -> None:
    losses = (loss(0, 10),)
    assert found(A, B, call(GET, 4, 5, "a"), losses=losses) == ["old value after a newer one"]
    assert found(A, call(GET, 2, 3), call(GET, 4, 5, "a"), losses=losses) == ["value came back after a miss"]
    assert found(A, DELETED, call(GET, 4, 5, "a"), losses=losses) == ["value came back after a delete"]


def test_misses_of_one_value_are_one_violation() -> None:
    (violation,) = check([A, *(call(GET, 2 + number, 2.5 + number) for number in range(4))])
    assert violation.more == 3


# Counters


def incr(slot: int, start: float, end: float, total: str, outcome: str = OK, limit: float = 0.0) -> Call:
    value = None if outcome == MAYBE else total
    return call(INCR, start, end, value, outcome, slot=slot, limit=limit or end)


ONE, TWO = incr(0, 0, 1, "1"), incr(1, 2, 3, "11")


def test_a_counter_that_holds_each_call_once_is_good() -> None:
    assert (
        found(call(COUNT, -2, -1, "0"), ONE, TWO, call(COUNT, 4, 5, "11"), incr(12, 6, 7, f"{16**12 + 17:x}"))
        == []
    )
    assert found(incr(0, 0, 3, "11"), incr(1, 1, 2, "10"), call(COUNT, 4, 5, "11")) == []


def test_a_digit_above_one_is_an_incr_done_twice() -> None:
    assert found(ONE, TWO, call(COUNT, 4, 5, "21")) == ["incr done twice"]
    assert found(ONE, incr(1, 2, 3, "", MAYBE, 5.0), call(COUNT, 4, 5, "21")) == ["incr done twice"]


def test_an_acknowledged_incr_is_in_every_later_sum_unless_a_loss_explains_that() -> None:
    miss = call(COUNT, 6, 7, "10")
    assert found(ONE, TWO, miss) == ["acknowledged incr lost"]
    assert found(ONE, TWO, call(COUNT, 6, 7, "0"), losses=(loss(4, 5),)) == []
    assert found(ONE, TWO, call(COUNT, 6, 7, "0"), losses=(loss(8, 9),)) == ["acknowledged incr lost"]
    seen = call(COUNT, 5.5, 5.7, "11")
    assert found(ONE, TWO, seen, miss, losses=(loss(4, 5),)) == ["acknowledged incr lost"]
    assert found(ONE, incr(1, 2, 3, "10")) == ["acknowledged incr lost"]
    assert found(incr(0, 0, 1, "0")) == ["acknowledged incr lost"]


def test_what_was_lost_never_comes_back() -> None:
    back = call(COUNT, 8, 9, "11")
    assert found(ONE, TWO, call(COUNT, 6, 7, "0"), back, losses=(loss(4, 5),)) == [
        "incr came back after it was absent"
    ]


def test_an_incr_that_raised_takes_effect_before_its_limit_or_never() -> None:
    unsure = incr(1, 2, 3, "", MAYBE, 5.0)
    assert found(ONE, unsure, call(COUNT, 4, 4.5, "1"), call(COUNT, 6, 7, "11")) == []
    assert found(ONE, unsure, call(COUNT, 6, 7, "1"), call(COUNT, 8, 9, "1")) == []
    assert found(ONE, unsure, call(COUNT, 6, 7, "1"), call(COUNT, 8, 9, "11")) == [
        "incr came back after it was absent"
    ]


def test_a_call_that_nobody_made_is_found() -> None:
    assert found(ONE, call(COUNT, 2, 3, "11")) == ["incr that nobody called"]


# Locks and errors


def test_fencing_tokens_grow_from_one_grant_to_the_next() -> None:
    first = call(ACQUIRE, 0, 1, 7)
    assert found(first, call(ACQUIRE, 2, 3, 8), call(ACQUIRE, 2, 3, None)) == []
    assert found(first, call(ACQUIRE, 0.5, 3, 6)) == []  # they overlap
    assert found(first, call(ACQUIRE, 2, 3, 7)) == ["fencing token did not grow"]
    assert found(first, call(ACQUIRE, 2, 3, 9), call(ACQUIRE, 4, 5, 8)) == ["fencing token did not grow"]


def test_only_errors_of_the_tree_are_raised_and_in_time() -> None:
    assert found(call(GET, 0, 1, outcome=MAYBE, error="NodeUnavailable")) == []
    assert found(call(GET, 0, 1, outcome=MAYBE, error="!TypeError")) == ["error outside the tree"]
    late = call(GET, 0, 9, outcome=MAYBE, error="NodeUnavailable")
    assert found(late, timeout=1.0) == ["past its deadline"]
