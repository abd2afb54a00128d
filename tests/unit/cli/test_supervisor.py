"""A supervisor whose processes cannot be started for a while."""

from __future__ import annotations

from typing import Any

import pytest

from pyrocache.cli import supervisor
from pyrocache.errors import OutOfResources
from tests.support.waiting import wait_until


class Process:
    """A process that has ended, or runs until it is terminated."""

    started_at = 0.0

    def __init__(self, status: int | None) -> None:
        self.exit_status = status

    def wait_until_ready(self) -> dict[str, Any]:
        return {"name": "cache.node.1", "pid": 1}

    def terminate(self) -> None:
        self.exit_status = -15

    def wait(self, timeout: float) -> None:
        assert self.exit_status is not None


def test_a_process_that_cannot_be_started_again_is_tried_until_it_can(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(supervisor, "_FIRST_PAUSE_SECONDS", 0.001)
    outcomes: list[Any] = [Process(1), OutOfResources("No descriptors."), OutOfResources("No.")]
    running = Process(None)

    def start(name: str | None) -> Any:
        outcome = outcomes.pop(0) if outcomes else running
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    supervised = supervisor.Supervisor("a node", start)
    supervised.wait_until_ready()
    assert wait_until(lambda: supervised._process is running)
    supervised.stop()
    supervised.join()
    errors = capsys.readouterr().err
    assert "No descriptors.\n" in errors
    assert "cache.node.1 is back with pid 1.\n" in errors
