"""What `pyrocache ping` makes of the answers."""

from __future__ import annotations

from typing import Any

import pytest

from pyrocache.cli import ping
from pyrocache.errors import AuthenticationError, ConfigurationError, PyroCacheError
from pyrocache.net.directory import UnprovenNameServer


def run(monkeypatch: pytest.MonkeyPatch, serves: dict[str, Any], *names: str) -> str:
    monkeypatch.setattr(ping, "_serves", lambda *_: serves)
    try:
        return ping.run("127.0.0.1:9090", names, timeout=1.0, wait=0.0)
    except PyroCacheError as error:
        return str(error).partition(". Show")[0]


@pytest.mark.parametrize(
    ("serves", "said"),
    [
        ({"cache.node.1": True}, "1 node answers."),
        ({"cache.node.1": True, "cache.node.2": True}, "2 nodes answer."),
        ({"cache.node.1": True, "cache.node.2": None}, "cache.node.2 does not answer"),
        ({"cache.node.1": False, "cache.node.2": True}, "cache.node.1 does not serve"),
        (
            {"cache.node.1": None, "cache.node.2": False, "cache.node.3": None},
            "cache.node.1, cache.node.3 do not answer; cache.node.2 does not serve",
        ),
    ],
)
def test_a_node_that_answers_may_not_serve(
    monkeypatch: pytest.MonkeyPatch, serves: dict[str, Any], said: str
) -> None:
    assert run(monkeypatch, serves) == said


def test_a_name_that_is_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, {}, "cache.node.9") == "cache.node.9: no such node is registered"


@pytest.mark.parametrize("error", [AuthenticationError, UnprovenNameServer, ConfigurationError])
def test_a_wrong_secret_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, error: type[PyroCacheError]
) -> None:
    attempts = []

    def serves(*_: Any) -> Any:
        attempts.append(None)
        assert len(attempts) == 1, "it asks again"
        raise error("other-secret")

    monkeypatch.setattr(ping, "_serves", serves)
    with pytest.raises(error, match="other-secret"):
        ping.run("127.0.0.1:9090", [], timeout=1.0, wait=60.0)
