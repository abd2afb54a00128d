"""A supervisor whose processes die, hang, or cannot be started for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyrocache.cli import supervisor
from pyrocache.cli.supervisor import Supervisor
from pyrocache.errors import NameServerUnavailable, OutOfResources
from pyrocache.runtime.start import EXIT_NO_NAME_SERVER, EXIT_REFUSED
from tests.support.waiting import wait_until


class Process:
    """A process that has ended, or runs until it is terminated."""

    started_at = 0.0

    def __init__(self, status: int | None = None) -> None:
        self.exit_status = status

    def wait_until_ready(self) -> dict[str, Any]:
        return {"name": "cache.node.1", "pid": 1}

    def terminate(self) -> None:
        self.exit_status = -15

    def kill(self) -> None:
        self.exit_status = -9

    def wait(self, timeout: float) -> None:
        assert self.exit_status is not None


class Recently(Process):
    """One that has not lived long."""

    started_at = float("inf")


class NameServer:
    """Answers, or does not."""

    def __init__(self) -> None:
        self.pings = 0
        self.failure: NameServerUnavailable | None = None

    def ping(self) -> None:
        self.pings += 1
        if self.failure is not None:
            raise self.failure

    def hang(self) -> None:
        self.failure = NameServerUnavailable("no answer")
        self.failure.timed_out = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_POLL_SECONDS", "_FIRST_PAUSE_SECONDS", "_PING_PAUSE_SECONDS"):
        monkeypatch.setattr(supervisor, name, 0.001)


@pytest.fixture
def name_server() -> NameServer:
    return NameServer()


Supervise = Callable[..., Supervisor]


@pytest.fixture
def supervise(name_server: NameServer) -> Iterator[Supervise]:
    """Supervise processes that come to these outcomes, one after the other."""
    supervisors: list[Supervisor] = []

    def supervise(*outcomes: Any, **options: Any) -> Supervisor:
        left = list(outcomes)

        def start(name: str | None) -> Any:
            outcome = left.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        supervisors.append(Supervisor("a node", start, name_server.ping, **options))
        supervisors[-1].wait_until_ready()
        return supervisors[-1]

    yield supervise
    for one in supervisors:
        one.stop()
        one.join()


def test_a_process_that_cannot_be_started_again_is_tried_until_it_can(
    supervise: Supervise, capsys: pytest.CaptureFixture[str]
) -> None:
    running = Process()
    supervised = supervise(Process(1), OutOfResources("No descriptors."), OutOfResources("No."), running)
    assert wait_until(lambda: supervised._process is running)
    supervised.stop()
    supervised.join()
    errors = capsys.readouterr().err
    assert "No descriptors.\n" in errors
    assert "cache.node.1 is back with pid 1.\n" in errors


def test_a_process_that_dies_again_and_again_is_started_less_and_less_often(supervise: Supervise) -> None:
    running = Process()
    supervised = supervise(Recently(1), Recently(1), Recently(-9), running)
    assert wait_until(lambda: supervised._process is running)
    assert supervised._pause == 0.008


def test_a_node_whose_name_is_taken_is_not_started_again(supervise: Supervise) -> None:
    supervised = supervise(Process(EXIT_REFUSED))
    assert wait_until(lambda: supervised.gave_up)


def test_a_name_server_that_hangs_is_killed_and_started_again(
    supervise: Supervise, name_server: NameServer, capsys: pytest.CaptureFixture[str]
) -> None:
    class Hanging(Process):
        def kill(self) -> None:
            super().kill()
            name_server.failure = None  # at once, or the next process is killed as well

    hanging, fresh = Hanging(), Process()
    supervised = supervise(hanging, fresh, is_name_server=True)
    assert wait_until(lambda: name_server.pings > 5)
    assert supervised._process is hanging
    name_server.hang()
    assert wait_until(lambda: supervised._process is fresh)
    assert hanging.exit_status == -9
    assert "did not answer and was killed; starting it again in 0.001 s.\n" in capsys.readouterr().err


def test_a_name_server_that_misses_a_ping_now_and_then_is_left_alone(
    supervise: Supervise, name_server: NameServer
) -> None:
    pings = name_server.ping

    def ping() -> None:
        name_server.hang() if name_server.pings % 3 else setattr(name_server, "failure", None)
        pings()

    name_server.ping = ping  # type: ignore[method-assign]
    process = Process()
    supervised = supervise(process, is_name_server=True)
    assert wait_until(lambda: name_server.pings > 20)
    assert supervised._process is process


def test_a_name_server_that_refuses_a_ping_does_not_hang(
    supervise: Supervise, name_server: NameServer
) -> None:
    name_server.failure = NameServerUnavailable("too many connections")
    process = Process()
    supervised = supervise(process, is_name_server=True)
    assert wait_until(lambda: name_server.pings > 5)
    assert supervised._process is process


def test_a_node_is_not_killed_because_the_name_server_hangs(
    supervise: Supervise, name_server: NameServer
) -> None:
    name_server.hang()
    process = Process()
    supervised = supervise(process)
    assert not wait_until(lambda: supervised._process is not process or name_server.pings, 0.1)


def test_a_node_that_found_no_name_server_is_started_as_soon_as_one_answers(
    supervise: Supervise, name_server: NameServer, capsys: pytest.CaptureFixture[str]
) -> None:
    name_server.failure = NameServerUnavailable("nobody")
    running = Process()
    lost = [Recently(EXIT_NO_NAME_SERVER) for _ in range(20)]
    supervised = supervise(Recently(1), *lost, running)
    assert wait_until(lambda: name_server.pings > 5)
    assert supervised._process is lost[0]
    name_server.failure = None
    assert wait_until(lambda: supervised._process is running)
    assert supervised._pause == 0.001, "that it came to nothing twenty times does not count"
    assert "is started again as soon as a name server answers.\n" in capsys.readouterr().err
