"""The file of a dump: the entries of a namespace as the nodes store them, in blocks with checksums.

A file begins with `MAGIC`, a line with the number of the format. Then there are blocks::

    bytes
    1       kind: H header, E entries, Z end
    4       length of the payload, big-endian
    16      checksum
    length  payload, msgpack

The header is the first block, a map: ``namespace``, the bytes that begin every key and every tag of the namespace;
``created``, a Unix time; ``by``, the version of pyrocache. A block of entries is a list of ``[key, frame, expires_at,
tags]``: the encoded key with the namespace, the value frame, a Unix time (nil: no expiry), and the encoded tags. The
end is a map with ``entries``, their number.

The checksum is BLAKE2b over the checksum of the block before, the kind and the payload. So a file that was changed or
cut off, also between two blocks, is recognized. It protects from accidents: whoever writes a file can compute it.
Frames are never decoded here.

Raises `ConfigurationError`. Pure: no I/O of its own, no threads, no clock.

Thread safety: not thread-safe; a writer or a reader is used by one thread.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import msgpack

from pyrocache.client.keys.format import path_text, split_namespace
from pyrocache.errors import ConfigurationError, InvalidKey
from pyrocache.protocol.limits import MAX_KEY_BYTES, MAX_TAG_BYTES, MAX_TAGS

MAGIC = b"pyrocache dump 1\n"

MOST_ENTRIES = 1000
"""The most entries of a block."""

BLOCK_BYTES = 4 * 2**20
"""Bytes of values after which a block ends."""

_MAGIC = re.compile(rb"pyrocache dump (\d{1,9})\n")
_HEAD = struct.Struct(">cI16s")
_HEADER, _ENTRIES, _END = b"H", b"E", b"Z"
_DIGEST_BYTES = 16
_PIECE = 2**20  # bytes that are read at once: a length that is wrong must not take memory


class Record(NamedTuple):
    """An entry in a file.

    Attributes:
        key: encoded, with its namespace.
        frame: the value frame.
        expires_at: a Unix time; None for no expiry.
        tags: encoded.
    """

    key: bytes
    frame: Any
    expires_at: float | None
    tags: list[bytes]


class Header(NamedTuple):
    """What a file says of itself: the prefix and the path of the namespace, when it was made, and by which version."""

    prefix: bytes
    path: tuple[str, ...]
    created: float
    by: str


class Writer:
    """Writes a dump.

    Args:
        write: takes bytes in the order of the file.
        prefix: that of the namespace.
        created: the Unix time.
        by: the version of pyrocache.

    Attributes:
        entries: how many were written, or wait for their block to be full.
    """

    def __init__(
        self, write: Callable[[bytes], object], prefix: bytes, *, created: float = 0.0, by: str = ""
    ) -> None:
        self.entries = 0
        self._write = write
        self._checksum = b""
        self._waiting: list[Record] = []
        self._waiting_bytes = 0
        write(MAGIC)
        self._block(_HEADER, {"namespace": prefix, "created": created, "by": by})

    def add(self, record: Record) -> None:
        """Write an entry, perhaps later."""
        self._waiting.append(record)
        self._waiting_bytes += len(record.frame)
        self.entries += 1
        if len(self._waiting) >= MOST_ENTRIES or self._waiting_bytes >= BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the entries that wait."""
        if self._waiting:
            waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
            self._block(_ENTRIES, waiting)

    def end(self) -> None:
        """Write what says that the dump is complete."""
        self.flush()
        self._block(_END, {"entries": self.entries})

    def _block(self, kind: bytes, content: Any) -> None:
        payload = msgpack.packb(content)
        self._checksum = _checksum(self._checksum, kind, payload)
        self._write(_HEAD.pack(kind, len(payload), self._checksum))
        self._write(payload)


class Reader:
    """Reads a dump.

    Args:
        read: returns up to so many bytes of the file, none at its end.

    Attributes:
        header: what the file says of itself.

    Raises:
        ConfigurationError: this is no dump, of another format, or it was changed.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._checksum = b""
        self._entries = 0
        self._line()
        kind, content = self._block()
        if kind != _HEADER:
            raise _changed()
        self.header = _header(content)

    def blocks(self) -> Iterator[list[Record]]:
        """Yield the entries, one block after the other.

        Raises:
            ConfigurationError: the file ends early, or was changed. What was yielded before is as it was written.
        """
        while True:
            kind, content = self._block()
            if kind == _END:
                break
            if kind != _ENTRIES or not isinstance(content, list):
                raise _changed()
            records = [_record(each, self.header) for each in content]
            self._entries += len(records)
            yield records
        if not isinstance(content, dict) or content.get("entries") != self._entries or self._read(1):
            raise _changed()

    def _line(self) -> None:
        line = self._exactly(len(MAGIC), short=True)
        if line == MAGIC:
            return
        match = _MAGIC.match(line) or _MAGIC.match(line + self._exactly(8, short=True))
        if match is None:
            raise ConfigurationError("This is not a dump of pyrocache.")
        raise ConfigurationError(
            f"This dump has format {int(match[1])}, and this pyrocache reads format 1: use the one that has made it."
        )

    def _block(self) -> tuple[bytes, Any]:
        kind, size, checksum = _HEAD.unpack(self._exactly(_HEAD.size))
        payload = self._exactly(size)
        self._checksum = _checksum(self._checksum, kind, payload)
        if self._checksum != checksum:
            raise _changed()
        try:
            return kind, msgpack.unpackb(payload, strict_map_key=True)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
            raise _changed() from None

    def _exactly(self, size: int, *, short: bool = False) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._read(min(size - len(data), _PIECE))
            if not piece:
                if short:
                    break
                raise ConfigurationError("This dump ends early: it was cut off. Make it again.")
            data += piece
        return bytes(data)


def _checksum(before: bytes, kind: bytes, payload: bytes) -> bytes:
    digest = blake2b(before + kind, digest_size=_DIGEST_BYTES, person=b"pyrocache dump")
    digest.update(payload)
    return digest.digest()


def _header(content: Any) -> Header:
    if not isinstance(content, dict):
        raise _changed()
    prefix, created, by = (content.get(name) for name in ("namespace", "created", "by"))
    if type(prefix) is not bytes or type(created) is not float or type(by) is not str:
        raise _changed()
    try:
        path, rest = split_namespace(prefix)
    except InvalidKey:
        raise _changed() from None
    if rest:
        raise _changed()
    return Header(prefix, path, created, by)


def _record(content: Any, header: Header) -> Record:
    """Return a record. Whoever made the file may have made it wrong on purpose, and computed its checksums."""
    if not isinstance(content, list) or len(content) != 4:
        raise _changed()
    key, frame, expires_at, tags = content
    valid = (
        type(key) is bytes
        and len(header.prefix) < len(key) <= MAX_KEY_BYTES
        and key.startswith(header.prefix)
        and type(frame) is bytes
        and (expires_at is None or (type(expires_at) is float and math.isfinite(expires_at)))
        and type(tags) is list
        and len(tags) <= MAX_TAGS
        and all(type(tag) is bytes and len(tag) <= MAX_TAG_BYTES for tag in tags)
    )
    if not valid:
        raise _changed()
    return Record(key, frame, expires_at, tags)


def _changed() -> ConfigurationError:
    return ConfigurationError("This dump was changed or damaged: its checksum or its content is wrong.")


def name_of(path: tuple[str, ...]) -> str:
    """Return how sentences name a namespace."""
    return f"namespace {path_text(path)}" if path else "the root namespace"
