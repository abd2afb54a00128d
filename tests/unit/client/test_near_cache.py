"""A near cache wraps a `Backend` and nothing else: the client and all its features work through it unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from pyrocache import PyroCacheClient
from pyrocache.client.backend import Backend, Frame
from pyrocache.client.context import ClientContext
from pyrocache.cluster.routing import Member
from pyrocache.config import ClientConfig
from pyrocache.net.deadline import Deadline
from pyrocache.protocol.commands import COMMANDS, Scope


class NearCache:
    """Keeps the frames that were read, and forgets those that are written here.

    Which methods write, and about what, is in the table of commands.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._frames: dict[bytes, Frame] = {}

    def get(self, key: bytes, deadline: Deadline, touch_seconds: float | None = None) -> Frame | None:
        frame = self._frames.get(key)
        if frame is None or touch_seconds is not None:
            frame = self._backend.get(key, deadline, touch_seconds)
            if frame is not None:
                self._frames[key] = frame
        return frame

    def get_many(self, keys: Sequence[bytes], deadline: Deadline, **options: Any) -> Iterator[Any]:
        here = [index for index, key in enumerate(keys) if key in self._frames]
        if here:
            yield here, [self._frames[keys[index]] for index in here]
        there = sorted(set(range(len(keys))).difference(here))
        replies = self._backend.get_many([keys[index] for index in there], deadline, **options)
        for indices, frames in replies:
            about = [there[index] for index in indices]
            if not isinstance(frames, Exception):
                for index, frame in zip(about, frames, strict=True):
                    if frame is not None:
                        self._frames[keys[index]] = frame
            yield about, frames

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._backend, name)
        command = COMMANDS.get(name)
        if command is None or not command.mutates:
            return method
        return self._writing(method, command.scope)

    def _writing(self, method: Callable[..., Any], scope: Scope) -> Callable[..., Any]:
        def write(first: Any, *rest: Any, **options: Any) -> Any:
            answer = method(first, *rest, **options)
            if scope is Scope.KEYS:  # an iterator, which works while it is iterated
                answer = list(answer)
            for key in {Scope.KEY: [first], Scope.KEYS: first}.get(scope, list(self._frames)):
                self._frames.pop(key, None)
            return answer

        return write


class MemoryBackend:
    """A backend that keeps frames in a dict, and counts what it is asked."""

    def __init__(self) -> None:
        self.frames: dict[bytes, Any] = {}
        self.asked: Counter[str] = Counter()

    def get(self, key: bytes, deadline: Deadline, touch_seconds: float | None = None) -> Any:
        self.asked["get"] += 1
        return self.frames.get(key)

    def get_many(self, keys: Sequence[bytes], deadline: Deadline, **options: Any) -> Iterator[Any]:
        self.asked["get_many"] += len(keys)
        if keys:
            yield range(len(keys)), [self.frames.get(key) for key in keys]

    def set(self, key: bytes, frame: Any, ttl: Any, deadline: Deadline) -> None:
        self.frames[key] = frame

    def set_many(self, keys: Any, frames: Any, ttl: Any, tags: Any, deadline: Deadline) -> Iterator[Any]:
        self.frames.update(zip(keys, frames, strict=True))
        yield range(len(keys)), len(keys)

    def delete(self, key: bytes, deadline: Deadline, version: int | None = None) -> bool:
        return self.frames.pop(key, None) is not None

    def clear(self, prefix: bytes, deadline: Deadline) -> list[tuple[Member, int]]:
        count = len(self.frames)
        self.frames.clear()
        return [(Member("cache.node.1", "127.0.0.1", 1), count)]


def cached() -> tuple[PyroCacheClient, MemoryBackend]:
    memory = MemoryBackend()
    near = cast(Backend, NearCache(cast(Backend, memory)))
    return PyroCacheClient._of(ClientContext(ClientConfig(), near)), memory


def test_what_was_read_before_is_served_from_memory() -> None:
    cache, memory = cached()
    cache.set("a", [1])
    assert [cache.get("a") for _ in range(5)] == [[1]] * 5
    assert memory.asked["get"] == 1
    assert cache.get("missing") is cache.get("missing") is None
    assert memory.asked["get"] == 3


def test_values_are_not_shared_since_the_near_cache_holds_frames() -> None:
    cache, _ = cached()
    cache.set("a", [1])
    cache.get("a").append(2)
    assert cache.get("a") == [1]


def test_many_keys_are_asked_for_only_where_they_are_not_in_memory() -> None:
    cache, memory = cached()
    cache.set_many({number: str(number) for number in range(10)})
    cache.get(3)
    cache.get(5)
    for _ in range(3):
        assert cache.get_many(range(12)) == {number: str(number) for number in range(10)}
    assert memory.asked["get_many"] == 10 + 2 + 2
    assert list(cache.get_many([5, 11, 3])) == [5, 3]


def test_what_is_written_here_is_read_anew() -> None:
    cache, memory = cached()
    cache.set("a", 1)
    assert cache.get("a") == 1
    cache.set("a", 2)
    assert cache.get("a") == 2
    cache.set_many({"a": 3})
    assert cache.get("a") == 3
    assert cache.delete("a")
    assert cache.get("a") is None
    cache["b"] = 1
    assert cache["b"] == 1
    assert cache.clear() == 1
    assert "b" not in memory.frames
    assert cache.get("b") is None


def test_namespaces_share_the_near_cache_and_closing_one_does_not_close_it() -> None:
    cache, memory = cached()
    shop = cache.namespace("shop")
    shop.set("a", 1)
    assert shop.get("a") == cache.namespace("shop").get("a") == 1
    assert memory.asked["get"] == 1
    shop.close()
    assert cache.namespace("shop").get("a") == 1
