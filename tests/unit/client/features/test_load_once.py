"""When a value is refreshed early, which options are valid, and what becomes of a loader's outcome."""

from __future__ import annotations

import math
import random
from datetime import timedelta
from typing import Any, cast

import pytest

from pyrocache.client.context import ClientContext
from pyrocache.client.features import load_once
from pyrocache.client.features.load_once import LoadOptions, load_options, refresh_is_due
from pyrocache.config import ClientConfig
from pyrocache.errors import ClientClosed, NodeUnavailable, RemoteError, ValueTooLarge, WaitTimeout
from pyrocache.runtime.throttle import Throttle

# XFetch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("remaining", [0.1, 1.0, 4.0])
def test_the_chance_of_an_early_refresh_is_as_the_paper_has_it(early: float, remaining: float) -> None:
    dice = random.Random(7).random
    share = sum(refresh_is_due(early, remaining, 0.8, dice) for _ in range(20_000)) / 20_000
    assert share == pytest.approx(math.exp(-remaining / (0.8 * early)), abs=0.015)


@pytest.mark.parametrize("dice", [0.0, 0.5, math.nextafter(1.0, 0.0)])
def test_whatever_the_dice_show_it_is_a_number(dice: float) -> None:
    assert refresh_is_due(1.0, 1e9, 0.1, lambda: dice) is False
    assert refresh_is_due(1.0, 0.0, 0.1, lambda: dice) is True


@pytest.mark.parametrize(
    ("early", "remaining", "load_seconds"),
    [(0.0, 0.0, 1.0), (1.0, None, 1.0), (1.0, 0.0, None), (1.0, 0.0, 0.0)],
)
def test_there_is_none_without_beta_expiry_or_time_to_load(
    early: float, remaining: Any, load_seconds: Any
) -> None:
    assert not refresh_is_due(early, remaining, load_seconds, lambda: 0.999)


def options(**given: Any) -> LoadOptions:
    usual = {"ttl_seconds": None, "stale_seconds": 0, "early": 0.0, "wait_seconds": None, "lease_seconds": 60}
    return load_options(**{**usual, **given})


def test_durations_are_seconds_or_timedeltas() -> None:
    minute = timedelta(minutes=1)
    made = options(
        ttl_seconds=minute, stale_seconds=minute, wait_seconds=minute, lease_seconds=minute, early=2
    )
    assert made == LoadOptions(
        ttl_seconds=60.0, stale_seconds=60.0, early=2, wait_seconds=60.0, lease_seconds=60.0
    )
    assert options(wait_seconds=0).wait_seconds == 0


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
        options(**given)


# What the node grants, and what becomes of it ----------------------------------------------------------------

KEY = b"key"


class Pinned:
    """A pinned connection, with what the node answered on it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.ended = ""

    @property
    def closed(self) -> bool:
        return bool(self.ended)

    def release(self) -> None:
        self.ended = self.ended or "released"

    def drop(self) -> None:
        self.ended = self.ended or "dropped"


class ScriptedBackend:
    """A backend whose node has no value and answers `lease` as it is told; it remembers the calls."""

    def __init__(self, *answers: Any, stored: Any = True) -> None:
        self.answers = list(answers)
        self.stored = stored
        self.calls: list[str] = []
        self.pinned: list[Any] = []
        self.waits: list[float] = []
        self.refreshes: list[int] = []
        self.frame: bytes | None = None
        self.then: Any = None

    def get(self, key: bytes, deadline: Any) -> bytes | None:
        self.calls.append("get")
        return self.frame

    def lease(self, key: bytes, lease: float, wait: float, refresh: int, deadline: Any, pinned: Any) -> Any:
        self.calls.append("lease")
        self.waits.append(wait)
        self.refreshes.append(refresh)
        if self.then is not None:
            self.then()
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        made = answer if answer is None else Pinned(answer[0])
        self.pinned.append(made)
        return made

    def fill(self, key: bytes, token: int, frame: bytes, *rest: Any) -> bool:
        self.calls.append(f"fill {token}")
        if isinstance(self.stored, BaseException):
            raise self.stored
        return bool(self.stored)

    def abandon(self, key: bytes, token: int, pinned: Pinned) -> None:
        self.calls.append(f"abandon {token}")
        pinned.release()


def load(backend: Any, factory: Any = lambda: "loaded", cluster: str = "127.0.0.1:9090", **given: Any) -> Any:
    context = ClientContext(ClientConfig(nameserver=cluster), backend)
    return load_once.get_or_set(load_once.Load(context, KEY, factory, options(**given), lambda: None))


LEASE = (["load", 7, None],)


def test_a_loader_with_a_lease_stores_its_value_and_releases_the_connection() -> None:
    backend = ScriptedBackend(LEASE)
    assert load(backend) == "loaded"
    assert backend.calls == ["get", "lease", "fill 7"]
    assert backend.pinned[0].ended == "released"


def test_a_connection_is_closed_if_the_value_was_not_stored_as_another_node_may_have_the_lease() -> None:
    backend = ScriptedBackend(LEASE, stored=False)
    assert load(backend) == "loaded"
    assert backend.pinned[0].ended == "dropped"


def test_a_node_that_is_unreachable_after_the_load_costs_nobody_the_value() -> None:
    backend = ScriptedBackend(LEASE, stored=NodeUnavailable("away"))
    assert load(backend) == "loaded"
    assert backend.pinned[0].ended == "dropped"


def test_the_lease_ends_before_the_error_of_a_factory_is_raised() -> None:
    def fail() -> None:
        raise LookupError("no such row")

    backend = ScriptedBackend(LEASE)
    with pytest.raises(LookupError):
        load(backend, fail)
    assert backend.calls[-1] == "abandon 7"
    assert backend.pinned[0].ended == "released"


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_once, "_once", Throttle(math.inf))


@pytest.mark.parametrize(
    ("value", "stored", "reason"),
    [
        (lambda: 0, True, "does not pickle"),
        ("loaded", ValueTooLarge("the value is too large"), "too large"),
        ("loaded", RemoteError("refused"), "refused"),
        ("loaded", ClientClosed("closed"), "closed"),
        ("loaded", MemoryError(), "MemoryError"),
    ],
)
def test_a_value_that_cannot_be_stored_is_returned_counted_and_logged_once(
    value: Any, stored: Any, reason: str, once: None, caplog: pytest.LogCaptureFixture
) -> None:
    context = ClientContext(ClientConfig(), cast(Any, None))
    for _ in range(3):
        backend = ScriptedBackend(LEASE, stored=stored)
        context.backend = cast(Any, backend)
        load = load_once.Load(context, KEY, lambda: value, options(), lambda: None)
        assert load_once.get_or_set(load) is value
        assert backend.calls[-1] == "abandon 7"  # the next caller does not wait for the lease to expire
    assert context.figures.loads_not_stored == 3
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "test_a_value_that_cannot_be_stored" in record.getMessage()


def test_a_caller_that_wants_to_know_gets_the_reason_and_nothing_is_logged(
    once: None, caplog: pytest.LogCaptureFixture
) -> None:
    for stored, told in {True: [], False: [], ValueTooLarge("too large"): [ValueTooLarge]}.items():
        reasons: list[Exception] = []
        context = ClientContext(ClientConfig(), cast(Any, ScriptedBackend(LEASE, stored=stored)))
        load = load_once.Load(
            context,
            KEY,
            lambda: 7,
            options(),
            lambda: None,
            notice=lambda _, error, to=reasons: to.append(error),
        )
        task = load_once.find(load, None).task
        assert task is not None
        with task:
            task.loaded(None, 7)
        assert task.settle() == 7
        assert task.stored is (stored is True)
        assert [type(reason) for reason in reasons] == told
    assert caplog.records == []


def test_a_value_is_returned_if_cache_if_fails(once: None, caplog: pytest.LogCaptureFixture) -> None:
    backend = ScriptedBackend(LEASE)
    context = ClientContext(ClientConfig(), cast(Any, backend))
    load = load_once.Load(context, KEY, lambda: 7, options(), lambda: None, keep=lambda value: value / 0)
    assert load_once.get_or_set(load) == 7
    assert backend.calls[-1] == "abandon 7"
    assert context.figures.loads_not_stored == 1
    assert "ZeroDivisionError" in caplog.text


def test_an_interrupt_while_the_value_is_stored_is_not_taken_for_a_reason() -> None:
    backend = ScriptedBackend(LEASE, stored=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        load(backend)
    assert backend.pinned[0].ended == "dropped"


def test_tags_that_are_not_valid_are_an_error_before_the_factory_runs() -> None:
    context = ClientContext(ClientConfig(), cast(Any, ScriptedBackend(LEASE)))
    load = load_once.Load(context, KEY, pytest.fail, options(), lambda: context.encode_tags(cast(Any, [1])))
    with pytest.raises(TypeError, match="tag"):
        load_once.get_or_set(load)


# Values that do not decode ------------------------------------------------------------------------------------

OLD = b"\x80\x05cno_such_module\nA\n."  # a pickle of a class that is not there
NEW = b"xnew"


def test_a_value_that_does_not_decode_is_loaded_anew_and_replaced(
    once: None, caplog: pytest.LogCaptureFixture
) -> None:
    backend = ScriptedBackend((["load", 7, OLD],))
    backend.frame = OLD
    assert load(backend) == "loaded"
    assert backend.calls == ["get", "lease", "fill 7"]
    assert backend.refreshes == [load_once.UNREADABLE]
    assert "no_such_module" in caplog.text


def test_one_that_was_replaced_meanwhile_is_returned_and_not_loaded_again() -> None:
    for answer in (["load", 7, NEW], ["value", NEW, None, None], ["stale", NEW]):
        backend = ScriptedBackend((answer,))
        backend.frame = OLD
        assert load(backend, pytest.fail) == "new"
        assert backend.pinned[0].ended


def test_a_lease_that_another_caller_passes_on_is_given_back_if_the_value_is_there_by_then() -> None:
    backend = ScriptedBackend((None,), (["load", 7, None],))
    backend.frame = OLD
    backend.then = lambda: setattr(backend, "frame", NEW)
    assert load(backend, pytest.fail) == "new"
    assert backend.calls == ["get", "lease", "lease", "get", "abandon 7"]


def test_one_that_another_caller_loads_and_that_does_not_decode_either_is_not_replaced_for_ever() -> None:
    backend = ScriptedBackend((["value", OLD, None, None],))
    backend.frame = OLD
    assert load(backend) == "loaded"
    assert backend.calls == ["get", "lease"]


def test_one_that_a_waiter_is_sent_and_that_does_not_decode_is_loaded_anew() -> None:
    backend = ScriptedBackend((["value", OLD, None, None],), (["load", 7, OLD],))
    assert load(backend) == "loaded"
    assert backend.calls == ["get", "lease", "lease", "fill 7"]
    assert backend.refreshes == [load_once.IF_MISSING, load_once.UNREADABLE]


def test_a_factory_may_raise_stop_iteration() -> None:
    with pytest.raises(StopIteration):
        load(ScriptedBackend(LEASE), lambda: next(iter(())))


def test_an_interrupt_closes_the_connection_without_asking_the_node() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    backend = ScriptedBackend(LEASE)
    with pytest.raises(KeyboardInterrupt):
        load(backend, interrupt)
    assert backend.calls == ["get", "lease"]
    assert backend.pinned[0].ended == "dropped"


def test_a_wait_that_is_over_raises_and_releases_the_connection() -> None:
    backend = ScriptedBackend((None,))
    with pytest.raises(WaitTimeout):
        load(backend, wait_seconds=0)
    assert backend.pinned[0].ended == "released"


def test_while_the_node_cannot_be_asked_for_a_lease_it_is_asked_for_the_value() -> None:
    backend = ScriptedBackend(None, None, LEASE)
    assert load(backend) == "loaded"
    assert backend.calls == ["get", "lease", "get", "lease", "get", "lease", "fill 7"]


def test_a_factory_that_loads_while_too_many_wait_or_its_own_key_loads_without_a_lease() -> None:
    inner = ScriptedBackend(None)
    backend = ScriptedBackend(LEASE, (None,))

    def outer() -> Any:
        return load(inner, lambda: "inner", "127.0.0.1:1"), load(backend, lambda: "own key")

    assert load(backend, outer) == ("inner", "own key")
    assert inner.calls == ["get", "lease"]
    assert backend.calls == ["get", "lease", "get", "lease", "fill 7"]
    assert backend.waits[1] == 0
