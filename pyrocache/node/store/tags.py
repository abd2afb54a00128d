"""`Tags`: the tags of a store: names by which entries can be invalidated together.

Keeps which keys have which tag, and which tags are invalid. The caller removes the entries. Pure: no I/O, no threads,
no clock.

Thread safety: not thread-safe; the caller holds the node's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set

from pyrocache.node.store.entry import Tag

TAG_BYTES = 512
"""Bytes that a tag is accounted for in addition to its name and its entries."""


class Tags:
    """All tags that entries have.

    Attributes:
        invalid: tags that were invalidated, oldest first, until their entries are reclaimed.
    """

    __slots__ = ("_by_name", "invalid")

    def __init__(self) -> None:
        self._by_name: dict[bytes, Tag] = {}
        self.invalid: deque[Tag] = deque()

    def keys(self, name: bytes) -> Set[bytes]:
        """Return the keys that have the tag, as a view. Some may be of entries that are dead."""
        tag = self._by_name.get(name)
        return frozenset() if tag is None else tag.keys

    def attach(self, key: bytes, names: tuple[bytes, ...]) -> tuple[tuple[Tag, ...], int]:
        """Give ``key`` the tags of these names. Return the tags, and the bytes that new ones are accounted for."""
        cost = 0
        tags = []
        for name in names:
            tag = self._by_name.get(name)
            if tag is None:
                tag = self._by_name[name] = Tag(name)
                cost += len(name) + TAG_BYTES
            tag.keys.add(key)
            tags.append(tag)
        return tuple(tags), cost

    def detach(self, key: bytes, tags: tuple[Tag, ...]) -> int:
        """Remove ``key`` from its tags.

        Return the number of bytes that were counted for the tags that now have no keys.
        """
        freed = 0
        for tag in tags:
            tag.keys.discard(key)
            if not tag.keys:
                freed += len(tag.name) + TAG_BYTES
                if not tag.invalid:  # `invalidate` has removed the name; it may be that of a new tag by now
                    del self._by_name[tag.name]
        return freed

    def invalidate(self, name: bytes) -> int:
        """Mark the tag as invalid and return the number of its keys.

        An entry that is stored with this name later gets a new `Tag` object.
        """
        tag = self._by_name.pop(name, None)
        if tag is None:
            return 0
        tag.invalid = True
        self.invalid.append(tag)
        return len(tag.keys)
