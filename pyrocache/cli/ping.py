"""The command ``pyrocache ping``: whether the cache can serve, for probes and for scripts that wait for a cluster.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from pyrocache.cli.output import to_copy
from pyrocache.client.client import PyroCacheClient
from pyrocache.config import Encryption
from pyrocache.errors import (
    AuthenticationError,
    ConfigurationError,
    NodeUnavailable,
    ProtocolMismatch,
    PyroCacheError,
)

_PAUSE_SECONDS = 0.2


def run(
    nameserver: str,
    names: Sequence[str],
    *,
    timeout: float,
    wait: float,
    secret_file: str | None = None,
    tls: Encryption = None,
) -> str:
    """Return a sentence when every node serves, or each of those named.

    Args:
        timeout: seconds that one attempt may take.
        wait: for how many seconds to begin further attempts.
        secret_file: the path of the secret file; None to find it.
        tls: how connections are protected.

    Raises:
        PyroCacheError: the last attempt failed; says which nodes did not answer, or do not serve. A wrong secret or a
            wrong setting ends the attempts.
    """
    end = time.monotonic() + wait
    # A new client for each attempt, as it looks the nodes up.
    client = partial(PyroCacheClient, nameserver, timeout=timeout, secret_file=secret_file, tls=tls)
    while True:
        try:
            return _ping(nameserver, names, client)
        except (ConfigurationError, AuthenticationError):  # to wait would not help
            raise
        except PyroCacheError:
            if time.monotonic() + _PAUSE_SECONDS > end:
                raise
        time.sleep(_PAUSE_SECONDS)


def _ping(nameserver: str, names: Sequence[str], client: Callable[[], PyroCacheClient]) -> str:
    serves = _serves(names, client)
    problems = []
    if unknown := [name for name in names if name not in serves]:
        problems.append(f"{', '.join(unknown)}: no such node is registered")
    if away := [name for name, answer in serves.items() if answer is None]:
        problems.append(f"{', '.join(away)} {'does' if len(away) == 1 else 'do'} not answer")
    if idle := [name for name, answer in serves.items() if answer is False]:
        problems.append(f"{', '.join(idle)} {'does' if len(idle) == 1 else 'do'} not serve")
    if problems:
        raise PyroCacheError(f"{'; '.join(problems)}. Show the nodes with: {to_copy('status', nameserver)}")
    return f"{len(serves)} node answers." if len(serves) == 1 else f"{len(serves)} nodes answer."


def _serves(names: Sequence[str], client: Callable[[], PyroCacheClient]) -> dict[str, bool | None]:
    """Return whether each registered node, or each of those named, serves, by its name; None if it does not answer."""
    with client() as cache:
        context = cache._context
        answers = context.backend.ping(context.deadline(), names or None)
    for _, answer in answers:
        if isinstance(answer, ProtocolMismatch):
            raise answer
    return {
        member.name: None if isinstance(answer, NodeUnavailable) else answer.get("serving") is True
        for member, answer in answers
    }
