"""`Entry` and `EntryInfo`: what `get_entry`, `get_entries` and ``scan(details=True)`` return about entries.

None of these calls counts as a use of an entry. Nodes send the attributes in a fixed order, see
``docs/wire-format.md``.

Thread safety: thread-safe; both classes are immutable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyrocache.client.context import MISSING, ClientContext
from pyrocache.display.shown import Shown
from pyrocache.late_imports import at_first_use

if TYPE_CHECKING:
    from pyrocache.display.card import Card


@dataclass(frozen=True, slots=True)
class Entry(Shown):
    """An entry as it was at one moment.

    Attributes:
        value: the value.
        version: for `PyroCacheClient.compare_and_set` and ``if_version``.
        ttl_seconds: seconds until it expires, ``math.inf`` if it never does.
        tags: its tags.
        age_seconds: seconds since the value was stored, exact to half a second; None if the node does not know. Nodes
            record times only for entries that have a TTL or tags, or whose version was requested.
        idle_seconds: seconds since the last read, write or touch, exact to half a second; None as for the age.
        size_bytes: the bytes of the node's memory that the entry is accounted for, overhead included.
    """

    value: Any
    version: int
    ttl_seconds: float
    tags: tuple[str, ...]
    age_seconds: float | None
    idle_seconds: float | None
    size_bytes: int

    def _card(self) -> Card:
        with at_first_use:
            from pyrocache.client.views import of_entry
        return of_entry(self)


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """An entry without its value and its version, as ``scan(details=True)`` returns it.

    Attributes:
        key: equal to the key that was stored.
        ttl_seconds, tags, age_seconds, idle_seconds, size_bytes: as for `Entry`.
    """

    key: Any
    ttl_seconds: float
    tags: tuple[str, ...]
    age_seconds: float | None
    idle_seconds: float | None
    size_bytes: int


def entry(context: ClientContext[Any], value: Any, version: int, attributes: Sequence[Any]) -> Entry:
    """Return an `Entry` made of the attributes that a node has sent."""
    return Entry(value, version, *_read(context, attributes))


def entry_info(context: ClientContext[Any], sent: Sequence[Any]) -> EntryInfo:
    """Return an `EntryInfo` made of what a node has sent."""
    return EntryInfo(context.read_key(sent[0], MISSING), *_read(context, sent[1:]))


def _read(context: ClientContext[Any], attributes: Sequence[Any]) -> tuple[Any, ...]:
    ttl, tags, age, idle, size = attributes
    return ttl, tuple(map(context.decode_tag, tags)), age, idle, size
