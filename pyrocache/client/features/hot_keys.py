"""`HotKey`: what `PyroCacheClient.hot_keys` returns, and how it is made of what the nodes answer.

Nodes count the uses of keys only while somebody asks, see ``pyrocache/node/service/hot_keys.py``. So the first call
waits for a moment, in which they count, and asks again. Nodes that do not know the command, or do not answer, are left
out. `counted` and `lacking` do no I/O, and the asyncio client uses them as well.

Thread safety: thread-safe; a call has no shared state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyrocache.client.backend import Answers
from pyrocache.client.context import MISSING, ClientContext
from pyrocache.errors import CacheUnavailable, NodeUnavailable, PyroCacheError
from pyrocache.protocol.limits import MAX_BATCH
from pyrocache.tracebacks import brief


@dataclass(frozen=True, slots=True)
class HotKey:
    """A key that is used often, at one node.

    Attributes:
        key: equal to the key that was used. There need not be an entry.
        calls_per_second: how often all clients have used it in the last seconds, each key of a batch counted; a lower
            bound.
        node: the name of the node.
    """

    key: Any
    calls_per_second: float
    node: str


def hot_keys(
    context: ClientContext, count: int, seconds: float, sleep: Callable[[float], object] = time.sleep
) -> list[HotKey]:
    """Return what `PyroCacheClient.hot_keys` returns."""
    limit = checked_count(count)
    try:
        answers = context.backend.hot_keys(context.prefix, limit, context.deadline())
        if (pause := lacking(answers, seconds)) > 0:
            sleep(pause)
            answers = context.backend.hot_keys(context.prefix, limit, context.deadline())
        return counted(context, answers, limit)
    except CacheUnavailable as error:
        return context.missed(error, [])


def checked_count(count: Any) -> int:
    """Return how many keys to ask for. Raises `TypeError` or `ValueError` if that is not a number from 1 to 1,000."""
    if isinstance(count, bool) or not isinstance(count, int):
        raise brief(TypeError(f"count is how many keys to return, not {type(count).__name__}."))
    if not 1 <= count <= MAX_BATCH:
        raise brief(ValueError(f"count is 1 to {MAX_BATCH} keys, not {count}."))
    return count


def lacking(answers: Answers, seconds: float) -> float:
    """Return for how long some node must go on counting until it has counted for ``seconds``, or 0."""
    counted = [answer[0] for _, answer in answers if not isinstance(answer, PyroCacheError)]
    return max(0.0, seconds - min(counted, default=seconds))


def counted(context: ClientContext[Any], answers: Answers, limit: int) -> list[HotKey]:
    """Return the most used keys of all nodes. Applies ``on_undecodable`` to those that do not decode here.

    Raises:
        PyroCacheError: no node has answered.
    """
    errors = [answer for _, answer in answers if isinstance(answer, PyroCacheError)]
    if errors and len(errors) == len(answers):
        raise next((error for error in errors if not isinstance(error, NodeUnavailable)), errors[0])
    rates = [
        (calls / seconds, member.name, encoded)
        for member, (seconds, rows) in (
            found for found in answers if not isinstance(found[1], PyroCacheError)
        )
        for encoded, calls in rows
        if seconds and calls
    ]
    rates.sort(reverse=True)
    found = ((context.read_key(encoded, MISSING), rate, name) for rate, name, encoded in rates[:limit])
    return [HotKey(*each) for each in found if each[0] is not MISSING]
