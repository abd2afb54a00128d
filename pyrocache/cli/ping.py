"""The command ``pyrocache ping``: whether the cache can serve, for probes and for scripts that wait for a cluster.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pyrocache.cli.output import to_copy
from pyrocache.client.client import PyroCacheClient
from pyrocache.errors import ConfigurationError, PyroCacheError

_PAUSE_SECONDS = 0.2


def run(nameserver: str, names: Sequence[str], *, timeout: float, wait: float) -> str:
    """Return a sentence when every node answers, or each of those named.

    Args:
        timeout: seconds that one attempt may take.
        wait: for how many seconds to begin further attempts.

    Raises:
        PyroCacheError: the last attempt failed; says which nodes did not answer.
    """
    end = time.monotonic() + wait
    while True:
        try:
            return _ping(nameserver, names, timeout)
        except ConfigurationError:
            raise
        except PyroCacheError:
            if time.monotonic() + _PAUSE_SECONDS > end:
                raise
        time.sleep(_PAUSE_SECONDS)


def _ping(nameserver: str, names: Sequence[str], timeout: float) -> str:
    answers = _answers(nameserver, timeout)
    unknown = [name for name in names if name not in answers]
    if unknown:
        problem = f"{', '.join(unknown)}: no such node is registered"
    else:
        asked = names or list(answers)
        away = [name for name in asked if not answers[name]]
        if not away:
            return f"{len(asked)} node answers." if len(asked) == 1 else f"{len(asked)} nodes answer."
        problem = f"{', '.join(away)} {'does' if len(away) == 1 else 'do'} not answer"
    raise PyroCacheError(f"{problem}. Show the nodes with: {to_copy('status', nameserver)}")


def _answers(nameserver: str, timeout: float) -> dict[str, bool]:
    """Return whether each registered node answers, by its name."""
    # A new client for each attempt, as it looks the nodes up.
    with PyroCacheClient(nameserver, timeout=timeout) as cache:
        stats = cache.stats()
    return dict.fromkeys(stats.nodes, True) | dict.fromkeys(stats.away, False)
