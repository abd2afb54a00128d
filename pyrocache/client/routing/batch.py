"""`Batch` and `Round`: divide a call about many keys into messages, by owner, number of keys and bytes.

A message holds at most `MAX_BATCH` keys and `BATCH_BYTES` bytes, both of ``protocol/limits.py``; more bytes only if it
is a single large entry. Pure: no I/O, no threads, no clock.

Thread safety: not thread-safe; one call uses a `Round`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pyrocache.client import replies
from pyrocache.client.routing.retry import LookUp, Retry
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.errors import PyroCacheError, ValueTooLarge
from pyrocache.net.calls import Request
from pyrocache.protocol import commands
from pyrocache.protocol.commands import Command
from pyrocache.protocol.limits import BATCH_BYTES, MAX_BATCH

_ENTRY_BYTES = 20  # what msgpack adds to a key and a value, at most, and a TTL

_ITEMS = {commands.GET_MANY.name: replies.are_frames, commands.GET_ENTRIES.name: replies.are_entries}
"""By name of a command whose reply is a list, the check of its items. Any other reply is a number of entries."""


class Batch(NamedTuple):
    """A call about many keys.

    Attributes:
        command: a command of scope `Scope.KEYS`.
        keys: canonical bytes.
        values: the value frame of each key; None if the command takes no values.
        arguments: the arguments after the columns.
        ttls: the TTL of each key, the column after the values; None if the command takes none, or one for all keys.
    """

    command: Command
    keys: Sequence[bytes]
    values: Sequence[Any] | None = None
    arguments: tuple[Any, ...] = ()
    ttls: Sequence[float] | None = None

    def columns(self, chunk: Sequence[int]) -> list[list[Any]]:
        """Return the keys at these indices and, if there are any, their values and their TTLs."""
        columns = [column for column in (self.keys, self.values, self.ttls) if column is not None]
        if len(chunk) == len(self.keys):
            return [list(column) for column in columns]
        return [list(map(column.__getitem__, chunk)) for column in columns]

    def is_small(self) -> bool:
        """Return whether all keys and values take at most `BATCH_BYTES`."""
        total = sum(map(len, self.keys)) + sum(map(len, self.values or ()))
        return total + _ENTRY_BYTES * len(self.keys) <= BATCH_BYTES

    def halves(self, chunk: Sequence[int]) -> list[list[int]]:
        """Return ``chunk`` split in two, the half with the larger values first."""
        values = self.values
        assert values is not None
        # By size, so that a single large value is separated from small ones after few messages.
        by_size = sorted(chunk, key=lambda index: len(values[index]), reverse=True)
        half = len(by_size) // 2
        return [sorted(by_size[:half]), sorted(by_size[half:])]

    def chunks(self, indices: list[int], small: bool) -> list[list[int]]:
        """Return ``indices`` divided into messages, the last message first; ``small`` is the result of `is_small`."""
        chunks: list[list[int]] = []
        begin = 0
        while begin < len(indices):
            chunk = indices[begin : begin + MAX_BATCH]
            if not small:
                del chunk[self._fitting(chunk) :]
            chunks.append(chunk)
            begin += len(chunk)
        chunks.reverse()  # `Round.ask` pops the next one from the end
        return chunks

    def _fitting(self, indices: Sequence[int]) -> int:
        """Return how many of ``indices``, from the first on, fit in one message; at least one."""
        room = BATCH_BYTES
        for count, index in enumerate(indices):
            value = 0 if self.values is None else len(self.values[index])
            room -= len(self.keys[index]) + value + _ENTRY_BYTES
            if room < 0 and count:
                return count
        return len(indices)

    def answered(self, chunk: Sequence[int], reply: Any, member: Member) -> tuple[Sequence[int], Any]:
        """Return the indices that a reply covers, and the reply; all indices and a `RemoteError` if it is not valid.

        A number covers the whole chunk. A list covers the first keys of the chunk, as many as it has items.
        """
        items_valid = _ITEMS.get(self.command.name)
        if items_valid is None:
            count = len(chunk) if type(reply) is int and 0 <= reply <= len(chunk) else 0
        else:
            count = len(reply) if type(reply) is list and items_valid(reply) else 0
        if not 0 < count <= len(chunk):
            return chunk, replies.wrong(self.command, member.name)
        return (chunk if count == len(chunk) else chunk[:count]), reply


class Round:
    """The requests of a batch; each node has at most one request under way.

    Attributes:
        requests: the requests made so far.
        chunks: the indices that each request covers.
        left: by owner, the chunks that are still to be sent, the next one last.
    """

    __slots__ = ("_asked", "_batch", "_view", "chunks", "left", "requests")

    def __init__(self, batch: Batch, view: ClusterView, indices: Sequence[int]) -> None:
        self._batch = batch
        self.requests: list[Request] = []
        self.chunks: list[list[int]] = []
        self.left: dict[str, list[list[int]]] = {}
        self._asked: set[str] = set()  # those with a request under way
        self.route(view, indices)

    def route(self, view: ClusterView, indices: Sequence[int]) -> None:
        """Route keys, and all that are left, by this view from now on. Ask each owner that is not asked already."""
        self._view = view
        indices = sorted([*indices, *self.unanswered()])
        self.left = {}
        small = self._batch.is_small()  # then no chunk needs to be measured
        for member, owned in zip(view.members, view.split(self._batch.keys, indices), strict=True):
            if owned:
                self.left[member.name] = self._batch.chunks(owned, small)
                if member.name not in self._asked:
                    self.ask(member)

    def left_of(self, member: Member) -> list[list[int]]:
        """Return the chunks that are still to be sent to a node, which has just answered."""
        self._asked.discard(member.name)
        return self.left.setdefault(member.name, [])

    def ask(self, member: Member) -> None:
        """Append the next request to a node, if any chunk is left."""
        left = self.left.get(member.name)
        if not left:
            return
        self._asked.add(member.name)
        chunk = left.pop()
        batch = self._batch
        columns = batch.columns(chunk)
        arguments = (self._view.number, *columns, *batch.arguments)
        largest = 0 if batch.values is None else max(map(len, columns[1]))
        self.chunks.append(chunk)
        self.requests.append(Request(member, batch.command, arguments, largest))

    def take(
        self, member: Member, chunk: list[int], outcome: Any, *, one_reply: bool = False
    ) -> Iterator[tuple[Sequence[int], Any | PyroCacheError]]:
        """Take what a node answered about a chunk, and ask it further. Yield the indices that have an answer, with it.

        Args:
            outcome: the reply; an error; or what the retry policy says before the chunk is sent again.
            one_reply: send no further request to a node that has answered.
        """
        left = self.left_of(member)
        if isinstance(outcome, (Retry, LookUp)):
            left.append(chunk)  # in addition to the keys that were not sent to the node yet
            return
        if isinstance(outcome, ValueTooLarge) and len(chunk) > 1:
            left += self._batch.halves(chunk)
        elif isinstance(outcome, ValueTooLarge):
            yield chunk, outcome
        elif isinstance(outcome, PyroCacheError):
            for unanswered in (chunk, *left):  # the remaining requests would fail as well
                yield unanswered, outcome
            left.clear()
        else:
            answered, outcome = self._batch.answered(chunk, outcome, member)
            yield answered, outcome
            if one_reply:
                left.clear()
            elif len(answered) < len(chunk):
                left.append(chunk[len(answered) :])
        self.ask(member)

    def unanswered(self) -> list[int]:
        """Return the indices that are to be sent again, in order."""
        return sorted(index for left in self.left.values() for chunk in left for index in chunk)
