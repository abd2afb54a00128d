"""When a detached cluster ends for want of clients."""

from __future__ import annotations

from pyrocache.cli.keeper import IdleTimer
from pyrocache.testing import FakeClock


class Clients:
    """Those that a keeper sees: whether one has joined, and what the nodes say."""

    def __init__(self, timeout: float | None = 60.0) -> None:
        self.clock = FakeClock(1000.0)
        self.joined = False
        self.clientless = [1e6, 1e6]
        self.asked = 0
        self.joins_late = self.shut_out = False
        self.timer = IdleTimer(timeout, lambda: self.joined, self._shut, self._ask, self.clock)

    def _shut(self) -> bool:
        self.shut_out = not self.joined
        return self.shut_out

    def _ask(self) -> list[float]:
        self.asked += 1
        self.joined |= self.joins_late
        return self.clientless

    def over_after(self, seconds: float) -> bool:
        self.clock.tick(seconds)
        return self.timer.is_over()


def test_it_is_over_after_the_timeout_without_clients() -> None:
    clients = Clients()
    assert not clients.over_after(59.0)
    assert clients.asked == 0  # the nodes are left alone until then
    assert clients.over_after(1.0)


def test_a_client_that_has_joined_counts_whatever_it_does() -> None:
    clients = Clients()
    clients.joined = True
    assert not clients.over_after(1e6)
    clients.joined = False
    assert not clients.over_after(59.0)  # it may have left a moment ago
    assert not clients.over_after(59.0)
    assert clients.over_after(1.0)


def test_a_client_of_a_node_counts() -> None:
    clients = Clients()
    clients.clientless = [1e6, 0.0]
    assert not clients.over_after(70.0)
    clients.clientless = [1e6, 10.0]
    assert not clients.over_after(59.0)
    clients.clientless = [1e6, 55.0]
    assert not clients.over_after(50.0)
    clients.clientless = [1e6, 60.0]
    assert clients.over_after(5.0)


def test_nodes_that_do_not_answer_keep_nothing() -> None:
    clients = Clients()
    clients.clientless = []
    assert clients.over_after(60.0)


def test_a_client_that_joins_at_the_last_moment_keeps_the_cluster() -> None:
    clients = Clients()
    clients.joins_late = True
    assert not clients.over_after(60.0)
    assert not clients.shut_out
    clients.joined = clients.joins_late = False
    assert clients.over_after(60.0)
    assert clients.shut_out


def test_without_a_timeout_it_is_never_over() -> None:
    assert not Clients(None).over_after(1e9)


def test_a_machine_that_was_suspended_does_not_end_the_cluster_of_a_client() -> None:
    clients = Clients()
    clients.joined = True
    assert not clients.over_after(1.0)
    assert not clients.over_after(36_000.0)  # the client is still there after the suspension
