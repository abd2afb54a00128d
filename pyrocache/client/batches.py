"""Calls about many keys: each owner is asked about its own, all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from pyrocache.client.codec import decode_values, encode_values
from pyrocache.client.core import Core
from pyrocache.client.keys import encode_keys
from pyrocache.client.router import Batch
from pyrocache.config import ttl_to_seconds
from pyrocache.errors import CorruptValue

_MISS: Any = object()


def get_many(core: Core, keys: Iterable[object]) -> dict[Any, Any]:
    """What `PyroCacheClient.get_many` returns."""
    asked = list(keys)
    hash(tuple(asked))  # TypeError now: the result is a dict by key
    values = [_MISS] * len(asked)
    problems: list[Exception] = []
    missing = False

    def take(indices: Sequence[int], frames: Any) -> int:
        nonlocal missing
        if type(frames) is not list:
            return 0
        missing = missing or None in frames
        try:
            decoded = decode_values(frames, _MISS)
            if len(decoded) == len(values):
                values[:] = decoded
            else:
                for index, value in zip(indices, decoded, strict=False):
                    values[index] = value
        except Exception as error:  # for later: replies of other nodes are still under way
            problems.append(error)
        return len(frames)

    batch = Batch(encode_keys(asked, core.prefix))
    errors = core.router.batch("get_many", batch, deadline=core.deadline(), on_reply=take)
    core.check(errors)
    if problems:
        core.count("corrupt_values", sum(isinstance(problem, CorruptValue) for problem in problems))
        raise problems[0]
    found = zip(asked, values, strict=True)
    if missing or errors:
        return {key: value for key, value in found if value is not _MISS}
    return dict(found)


def set_many(core: Core, mapping: Mapping[Any, Any], ttl_seconds: float | timedelta | None) -> int:
    """What `PyroCacheClient.set_many` returns."""
    seconds = ttl_to_seconds(ttl_seconds)
    if not isinstance(mapping, Mapping):
        raise TypeError(f"set_many takes a mapping of keys to values, not {type(mapping).__name__}.")
    batch = Batch(encode_keys(list(mapping), core.prefix), encode_values(mapping.values()))
    return _count_over(core, "set_many", batch, seconds)


def delete_many(core: Core, keys: Iterable[object]) -> int:
    """What `PyroCacheClient.delete_many` returns."""
    return _count_over(core, "delete_many", Batch(encode_keys(list(keys), core.prefix)), idempotent=False)


def _count_over(core: Core, method: str, batch: Batch, *arguments: Any, idempotent: bool = True) -> int:
    """The sum of the nodes' answers to a batch."""
    total = 0

    def take(indices: Sequence[int], count: Any) -> int:
        nonlocal total
        if type(count) is not int:
            return 0
        total += count
        return len(indices)

    core.check(
        core.router.batch(
            method, batch, *arguments, deadline=core.deadline(), on_reply=take, idempotent=idempotent
        )
    )
    return total
