"""The rules hold in every state of the scenarios, and each mistake is found."""

from __future__ import annotations

import pytest

from tests.model.broken import MISTAKES
from tests.model.explore import Search
from tests.model.requests import REQUEST_MISTAKES, RequestModel, RequestRules
from tests.model.scenarios import LARGER, SCENARIOS, Scenario

_QUICK = ("join", "join of two, a node is killed")
_SLOW_MISTAKES = (
    "confirm a view after the next one",
    "count a dead member that had acknowledged the next view",
    "count the lease from receipt",
    "put back without a majority",
    "take over without another listing",
    "use the number of a lost view again",
)


def _hold(scenario: Scenario) -> None:
    model, search = scenario.search()
    found = search.everything()
    assert found.violation is None, "\n".join([*map(model.describe, found.trace), str(found.violation)])
    assert found.complete


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _QUICK else pytest.mark.full) for name in SCENARIOS]
)
def test_the_rules_hold(name: str) -> None:
    _hold(SCENARIOS[name])


@pytest.mark.full
@pytest.mark.parametrize("name", LARGER)
def test_the_rules_hold_in_larger_spaces(name: str) -> None:
    _hold(LARGER[name])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.full if name in _SLOW_MISTAKES else ()) for name in MISTAKES],
)
def test_a_mistake_is_found(name: str) -> None:
    model, search = MISTAKES[name].search()
    found = search.everything(limit=600_000)
    print("\n".join([*map(model.describe, found.trace), str(found.violation)]))
    assert found.violation is not None


@pytest.mark.parametrize("faults", [3, pytest.param(4, marks=pytest.mark.full)])
@pytest.mark.parametrize("by_worker", [False, True])
def test_requests_take_effect_once(by_worker: bool, faults: int) -> None:
    found = _requests(RequestRules(), by_worker, faults).everything()
    assert (found.violation, found.complete) == (None, True)


@pytest.mark.parametrize("name", REQUEST_MISTAKES)
def test_a_mistake_with_requests_is_found(name: str) -> None:
    rules, by_worker = REQUEST_MISTAKES[name]
    found = _requests(rules, by_worker, faults=3).everything()
    print(*found.trace, found.violation, sep="\n")
    assert found.violation is not None


def _requests(rules: RequestRules, by_worker: bool, faults: int) -> Search[object]:
    model = RequestModel(rules, by_worker=by_worker)
    return Search(model.steps, model.start(faults))  # type: ignore[arg-type]
