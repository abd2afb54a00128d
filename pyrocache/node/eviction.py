"""Which entry goes when memory is full. Pure: a policy knows keys and their order, and looks into no value.

A policy counts entries; how many bytes there may be is the store's business, which asks for victims until they fit.
Not thread-safe; the store's owner serialises the calls.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

_Held = TypeVar("_Held")


class EvictionPolicy(Protocol):
    """The keys that are held, in an order of its own. Every call is O(1) a key, amortised, and none pauses for long."""

    name: str

    def added(self, key: bytes, /) -> None:
        """``key`` is new; it is not held yet."""

    def added_many(self, keys: Iterable[bytes], /) -> None:
        """`added` for each of ``keys``, which are distinct."""

    def used(self, key: bytes, /) -> None:
        """``key``, which is held, was read or overwritten."""

    def used_many(self, keys: Iterable[bytes], /) -> None:
        """`used` for each of ``keys``."""

    def removed(self, key: bytes, /) -> None:
        """``key``, which was held, is deleted or expired."""

    def victim(self) -> bytes:
        """Take out the key to evict next; it is held no more. `LookupError` when there is none."""

    def clear(self) -> None:
        """Nothing is held any more, and nothing is remembered."""


class LRU:
    """Least recently used first."""

    name = "lru"

    def __init__(self) -> None:
        self._order: OrderedDict[bytes, None] = OrderedDict()
        self.used: Callable[[bytes], None] = self._order.move_to_end
        self.removed: Callable[[bytes], None] = self._order.__delitem__

    def added(self, key: bytes, /) -> None:
        self._order[key] = None

    def added_many(self, keys: Iterable[bytes], /) -> None:
        self._order.update(dict.fromkeys(keys))

    def used_many(self, keys: Iterable[bytes], /) -> None:
        used = self._order.move_to_end
        for key in keys:
            used(key)

    def victim(self) -> bytes:
        try:
            return self._order.popitem(last=False)[0]
        except KeyError:
            raise LookupError("There is no entry to evict.") from None

    def clear(self) -> None:
        self._order.clear()


class S3FIFO:
    """Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. A first version."""

    name = "s3fifo"

    def __init__(self) -> None:
        self._small: deque[bytes] = deque()
        self._main: deque[bytes] = deque()
        self._uses: dict[bytes, int] = {}
        self._stale: set[bytes] = set()
        self._ghosts: OrderedDict[int, None] = OrderedDict()

    def added(self, key: bytes, /) -> None:
        if key in self._stale:
            self._stale.remove(key)
        elif hash(key) in self._ghosts:
            del self._ghosts[hash(key)]
            self._main.append(key)
        else:
            self._small.append(key)

    def added_many(self, keys: Iterable[bytes], /) -> None:
        for key in keys:
            self.added(key)

    def used(self, key: bytes, /) -> None:
        uses = self._uses.get(key, 0)
        if uses < 3:
            self._uses[key] = uses + 1

    def used_many(self, keys: Iterable[bytes], /) -> None:
        for key in keys:
            self.used(key)

    def removed(self, key: bytes, /) -> None:
        self._stale.add(key)
        self._uses.pop(key, None)

    def victim(self) -> bytes:
        small, main = self._small, self._main
        while small or main:
            if small and (len(small) * 10 >= len(small) + len(main) or not main):
                key = small.popleft()
                if key in self._stale:
                    self._stale.remove(key)
                elif self._uses.pop(key, 0) >= 2:
                    main.append(key)
                else:
                    self._ghosts[hash(key)] = None
                    if len(self._ghosts) > len(small) + len(main):
                        self._ghosts.popitem(last=False)
                    return key
            else:
                key = main.popleft()
                uses = self._uses.pop(key, 0)
                if key in self._stale:
                    self._stale.remove(key)
                elif uses:
                    if uses > 1:
                        self._uses[key] = uses - 1
                    main.append(key)
                else:
                    return key
        raise LookupError("There is no entry to evict.")

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]


POLICIES: dict[str, Callable[[], EvictionPolicy]] = {"lru": LRU, "s3fifo": S3FIFO}
"""By the name for ``--eviction``."""

DEFAULT_POLICY = "s3fifo"


# What the present store holds its entries in, until it has a table of its own -------------------------------


class TablePolicy(Protocol[_Held]):
    """A mapping of keys to what is held under them that knows which one goes next. Every call is O(1) a key."""

    def get(self, key: bytes, /) -> _Held | None:
        """What is held under ``key``; this is no use of it."""

    def used(self, key: bytes, /) -> None:
        """``key``, which is held, was read or overwritten."""

    def victim(self) -> bytes:
        """The key to evict next; it stays until it is deleted. `LookupError` when there is none."""

    def __getitem__(self, key: bytes, /) -> _Held: ...
    def __setitem__(self, key: bytes, held: _Held, /) -> None: ...
    def __delitem__(self, key: bytes, /) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[bytes]: ...


class LRUTable(OrderedDict[bytes, _Held], Generic[_Held]):
    """Least recently used first."""

    used = OrderedDict.move_to_end

    def victim(self) -> bytes:
        """See `TablePolicy.victim`."""
        try:
            return next(iter(self))
        except StopIteration:
            raise LookupError("There is no entry to evict.") from None
