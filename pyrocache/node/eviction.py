"""Which entry goes when memory is full. Pure: a policy knows keys and their order, and looks into no value.

A policy is the very mapping that holds the entries, so that its order costs no second table. Not thread-safe; the
store's owner serialises the calls.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

_Held = TypeVar("_Held")


class EvictionPolicy(Protocol[_Held]):
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


class LRU(OrderedDict[bytes, _Held], Generic[_Held]):
    """Least recently used first."""

    used = OrderedDict.move_to_end

    def victim(self) -> bytes:
        """See `EvictionPolicy.victim`."""
        try:
            return next(iter(self))
        except StopIteration:
            raise LookupError("There is no entry to evict.") from None
