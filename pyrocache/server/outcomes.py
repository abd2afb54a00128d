"""`Outcomes`: the replies to changes that a node remembers, so that a client that has lost one can ask for it.

A client that loses the reply to a change sends the same request again on another connection, marked as a repeat
(``protocol/request_id.py``). It is answered with the remembered reply. A repeat that is not recognized is never
executed, and neither is its original from then on, which may still be in the receive buffer of a socket. The repeat is
refused as `NOT_DONE` if nothing of that session can have been forgotten, else as `FORGOTTEN`.

Without pipelining, one request at a time is under way on a connection, so only the last change can have lost its reply.
A short reply is kept by the `Session` of its connection, in ``last``, until the next change or until the end. A longer
one, and then also a short one, is kept here for `KEEP_SECONDS`, within a limit of memory of which one client may use a
quarter; the oldest are discarded first. A client repeats a request within `REPEAT_SECONDS` of sending it, so what is
older cannot be asked for any more.

On a connection whose caller pipelines, up to `PIPELINED_CALLS` requests are under way, so that many changes can have
lost their replies. Replies leave in the order in which the changes are finished, so these are the last ones. Their
short replies are kept in ``recent`` of the session. A caller that has more requests under way may ask for one of
before: `Dropped` remembers which these were, so that the answer is `FORGOTTEN`.

Pure: no I/O, no threads, no clock.

Thread safety: not thread-safe; used by the event loop's thread.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, OrderedDict, deque
from enum import Enum
from typing import TypeAlias

from pyrocache.protocol.limits import PIPELINED_CALLS
from pyrocache.protocol.request_id import HIGHEST_NUMBER
from pyrocache.server.deferred import Session

KEEP_SECONDS = 60.0
"""How long a reply is remembered after the change, or after its connection has closed."""

LONGEST_REPLY_BYTES = 64 * 1024
"""Longer replies are not remembered: such a repeat is refused as `FORGOTTEN`."""

SHORT_REPLY_BYTES = 1024
"""Replies up to this size are kept by the session of their connection."""

SHORT_PIPELINED_BYTES = 128
"""The same for a caller that pipelines, of whom many are kept: 256 of them take up to 66 KiB."""

_DROPPED_SLOTS = 4096

_MAX_BYTES = 8 * 2**20
_ENTRY_BYTES = 300  # of memory, beside the reply
_MOST = 10_000  # of notes about what was discarded, and of requests refused for ever
_SHARE = 4  # one client may use this fraction of a limit

Key: TypeAlias = tuple[bytes, int]
"""The session of a client, and the number of a request in it."""


class Fate(Enum):
    """What is known of a request whose reply is not."""

    NOT_DONE = "it was not executed, and will not be"
    FORGOTTEN = "it may have been executed; the reply is not remembered"
    RUNNING = "it is being executed"


class Dropped:
    """Which changes of one client were executed, although `Session.recent` has their replies no more.

    A table of numbers, in which a later one takes the place of an earlier one: so a number counts as dropped if it was,
    or if one was that is a multiple of the size of the table later.
    """

    __slots__ = ("_slots", "latest")

    def __init__(self) -> None:
        self._slots = array("i", [-1]) * _DROPPED_SLOTS
        self.latest = -1

    def add(self, number: int) -> None:
        """Note a number."""
        self._slots[number % _DROPPED_SLOTS] = number
        if self.latest < 0 or _is_after(number, self.latest):
            self.latest = number

    def __contains__(self, number: int) -> bool:
        there = self._slots[number % _DROPPED_SLOTS]
        return there == number or (there >= 0 and _is_after(there, number))


class Outcomes:
    """The remembered replies of all clients of one server.

    Args:
        max_bytes: memory for replies that no session keeps.

    Attributes:
        refused: the requests that must not be executed any more, with the time until which that is remembered.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self.refused: dict[Key, float] = {}
        self._refused_of: Counter[bytes] = Counter()
        self._max_bytes = max_bytes
        self._sessions: dict[bytes, set[Session]] = {}
        self._dropped: dict[bytes, Dropped] = {}  # of clients with open connections
        self._running: set[Key] = set()
        self._kept: OrderedDict[Key, tuple[float, bytes | None]] = (
            OrderedDict()
        )  # until when; the oldest first
        self._kept_of: dict[bytes, OrderedDict[int, None]] = {}
        self._bytes = 0
        self._bytes_of: Counter[bytes] = Counter()
        # By client, the highest number of a discarded reply, and until when it could be asked for.
        self._discarded: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._any_discarded_until = -math.inf

    def join(self, session: Session, pipelined: bool = False) -> None:
        """Note a new connection of a client, which may have several requests under way."""
        if session.client is not None:
            self._sessions.setdefault(session.client, set()).add(session)
            session.recent = deque(maxlen=PIPELINED_CALLS) if pipelined else None

    def leave(self, session: Session, now: float) -> None:
        """Note that a connection has closed."""
        if session.client is None or session.client not in self._sessions:
            return
        sessions = self._sessions[session.client]
        sessions.discard(session)
        if not sessions:
            del self._sessions[session.client]
            if (dropped := self._dropped.pop(session.client, None)) is not None:
                self._note_discarded(session.client, dropped.latest, now)
        if session.last is not None:
            self._keep(session.client, *session.last, now)
            session.last = None
        while session.recent:
            self._keep(session.client, *session.recent.popleft(), now)

    def begin(self, session: Session, number: int) -> None:
        """Note that a change is being executed by another thread."""
        if session.client is not None:
            self._running.add((session.client, number))

    def finish(self, session: Session, number: int, reply: object, now: float) -> None:
        """Remember the reply to a change: bytes, or anything else for one that is too long or is lost."""
        if session.client is None:
            return
        self._running.discard((session.client, number))
        recent = session.recent
        if not isinstance(reply, bytes) or len(reply) > LONGEST_REPLY_BYTES:
            session.last = None
            self._keep(session.client, number, None, now)
        elif len(reply) > (SHORT_REPLY_BYTES if recent is None else SHORT_PIPELINED_BYTES) or session.closed:
            session.last = None
            self._keep(session.client, number, reply, now)
        elif recent is None:
            session.last = number, reply
        else:
            if len(recent) == PIPELINED_CALLS:
                self._drop(session.client, recent[0][0])
            recent.append((number, reply))

    def repeat(self, client: bytes, number: int, now: float, left: float) -> bytes | Fate:
        """Return the reply to a change that is repeated, or what else is known of it.

        Args:
            left: seconds until the deadline of the request.
        """
        key = client, number
        if key in self._running:
            return Fate.RUNNING
        if key in self._kept:
            return self._kept[key][1] or Fate.FORGOTTEN
        for session in self._sessions.get(client, ()):
            for each, reply in session.recent or (session.last and (session.last,)) or ():
                if each == number:
                    return reply
        if number in self._dropped.get(client, ()) or self._may_be_discarded(client, number, now):
            return Fate.FORGOTTEN
        return self.refuse(key, now, left)

    def refuse(self, key: Key, now: float, left: float) -> Fate:
        """Refuse a request for ever. Return `Fate.NOT_DONE`; `Fate.FORGOTTEN` if there are too many of them."""
        if key not in self.refused:
            if len(self.refused) >= _MOST or self._refused_of[key[0]] >= _MOST // _SHARE:
                return Fate.FORGOTTEN
            self._refused_of[key[0]] += 1
        # Past its deadline, the original is not executed anyway. Its deadline was computed on another connection.
        self.refused[key] = now + max(left, 0.0) + KEEP_SECONDS
        return Fate.NOT_DONE

    def expire(self, now: float) -> None:
        """Forget what cannot be asked for any more. Call this about once a second."""
        while self._kept and next(iter(self._kept.values()))[0] <= now:
            self._remove(next(iter(self._kept)))
        while self._discarded and next(iter(self._discarded.values()))[1] <= now:
            self._discarded.popitem(last=False)
        for key in [key for key, until in self.refused.items() if until <= now]:
            del self.refused[key]
            self._refused_of[key[0]] -= 1
            if not self._refused_of[key[0]]:
                del self._refused_of[key[0]]

    def _drop(self, client: bytes, number: int) -> None:
        """Note that the reply to a change is about to be dropped from `Session.recent`."""
        dropped = self._dropped.get(client)
        if dropped is None:
            dropped = self._dropped[client] = Dropped()
        dropped.add(number)

    def _keep(self, client: bytes, number: int, reply: bytes | None, now: float) -> None:
        key = client, number
        if key in self._kept:
            self._remove(key)
        self._kept[key] = now + KEEP_SECONDS, reply
        mine = self._kept_of.setdefault(client, OrderedDict())
        mine[number] = None
        size = _size(reply)
        self._bytes += size
        self._bytes_of[client] += size
        while self._bytes_of[client] > self._max_bytes // _SHARE:
            self._discard((client, next(iter(mine))), now)
        while self._bytes > self._max_bytes:
            self._discard(next(iter(self._kept)), now)

    def _remove(self, key: Key) -> None:
        client, number = key
        size = _size(self._kept.pop(key)[1])
        self._bytes -= size
        self._bytes_of[client] -= size
        del self._kept_of[client][number]
        if not self._kept_of[client]:
            del self._kept_of[client], self._bytes_of[client]

    def _discard(self, key: Key, now: float) -> None:
        """Remove a reply that could still be asked for, and note that."""
        self._remove(key)
        self._note_discarded(*key, now)

    def _note_discarded(self, client: bytes, number: int, now: float) -> None:
        highest, _ = self._discarded.pop(client, (number, 0.0))
        self._discarded[client] = number if _is_after(number, highest) else highest, now + KEEP_SECONDS
        if len(self._discarded) > _MOST:
            self._any_discarded_until = self._discarded.popitem(last=False)[1][1]

    def _may_be_discarded(self, client: bytes, number: int, now: float) -> bool:
        if now < self._any_discarded_until:
            return True
        highest, until = self._discarded.get(client, (0, -math.inf))
        return now < until and not _is_after(number, highest)


def _size(reply: bytes | None) -> int:
    return _ENTRY_BYTES + (0 if reply is None else len(reply))


def _is_after(number: int, other: int) -> bool:
    """Return whether a number was counted after another one; numbers begin again after `HIGHEST_NUMBER`."""
    return 0 < (number - other) & HIGHEST_NUMBER <= HIGHEST_NUMBER // 2
