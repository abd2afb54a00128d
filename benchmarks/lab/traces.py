"""Traces of cache accesses, read as streams.

Owns the formats, which are told apart by what a file holds and never by its name. Around the text there may be zstd,
gzip or xz. The first line that is not blank says how the text is written::

    start count 0 n    four integers: ARC's .lis, accesses to the pages start … start + count - 1
    time id size       a number, any text without blanks, an integer: one access to an object of that many bytes
    key                anything else: one access, the line without the blanks around it

It refuses whatever it cannot read to the end (`TraceError`, one sentence), and keeps no more of a file in memory than
a few blocks, however long its lines are or however much its compressed bytes unfold to.

Threading: an iterator belongs to one thread at a time, and has its file open until it ends or is closed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import BufferedIOBase, BufferedReader
from pathlib import Path

from pyrocache.errors import PyroCacheError

__all__ = ["Access", "TraceError", "read_trace", "trace_format"]

Access = tuple[int | str, int | None]
"""A key, and the size of its value in bytes, where the trace tells it."""

_CHUNK_BYTES = 64 * 1024
_LONGEST_LINE = 16 * 1024
_ZSTD_BYTES = 1024
"""Compressed bytes taken at once: a block of 4 may unfold to 128 KiB, so these to 32 MiB at the very most."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_INTEGER = re.compile(rb"-?\d{1,18}")
_COUNT = re.compile(rb"\d{1,18}")
_NUMBER = re.compile(rb"-?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][+-]?\d{1,3})?")

_Parser = Callable[[bytes], Iterable[Access]]


class TraceError(PyroCacheError):
    """A trace that cannot be read, or not to its end."""


class _Malformed(Exception):
    """A line that is not written like the first one; the argument says what it should be."""


class _Broken(Exception):
    """What is wrong with the file's content, as the predicate of a sentence."""


def read_trace(path: Path | str) -> Iterator[Access]:
    """The accesses of the trace at ``path``, in order; nothing is opened before the first one is asked for.

    Keys are ints in ARC's format, and in the others str, but for ids of digits alone.

    Raises:
        TraceError: there is no such file, it cannot be read, it is empty, its compression is broken, or a line does not
            belong to the format of the first one.
    """
    empty = True
    try:
        with open(path, "rb") as file:
            for access in _accesses(_lines(_text(file))):
                empty = False
                yield access
    except FileNotFoundError:
        raise TraceError(f"There is no trace at {path}.") from None
    except IsADirectoryError:
        raise TraceError(f"{path} is a directory; name the trace in it.") from None
    except (OSError, ValueError) as error:  # ValueError: no path at all
        why = getattr(error, "strerror", None) or error
        raise TraceError(f"The trace {path} cannot be read: {why}.") from error
    except _Broken as error:
        raise TraceError(f"The trace {path} {error}.") from error
    if empty:
        raise TraceError(f"The trace {path} is empty: it holds no access.")


def trace_format(path: Path | str) -> str:
    """How the trace at ``path`` is written: ``"start count 0 n"``, ``"time id size"`` or ``"a key a line"``.

    Raises:
        TraceError: as `read_trace`.
    """
    names: dict[_Parser, str] = {
        _parse_pages: "start count 0 n",
        _parse_sized: "time id size",
        _parse_key: "a key a line",
    }
    next(read_trace(path))  # says what is wrong, if anything is
    with open(path, "rb") as file:
        _, line = next(_lines(_text(file)))
    return names[_parser_for(line.removeprefix(_BYTE_ORDER_MARK))]


# Text, in lines --------------------------------------------------------------------------------------------


def _lines(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    number, rest = 1, b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            _check_length(number, line)
            if text := line.strip():
                yield number, text
            number += 1
        _check_length(number, rest)
    if text := rest.strip():
        yield number, text


def _check_length(number: int, line: bytes) -> None:
    if len(line) > _LONGEST_LINE:
        raise _Broken(f"has a line, number {number}, of more than {_LONGEST_LINE} bytes")


def _accesses(lines: Iterator[tuple[int, bytes]]) -> Iterator[Access]:
    parse: _Parser | None = None
    for number, line in lines:
        if parse is None:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            parse = _parser_for(line)
        try:
            yield from parse(line)
        except _Malformed as error:
            raise _Broken(f"is malformed in line {number}, which should be {error}") from None


def _parser_for(line: bytes) -> _Parser:
    words = line.split()
    if len(words) == 4 and all(map(_INTEGER.fullmatch, words)):
        return _parse_pages
    if len(words) == 3 and _NUMBER.fullmatch(words[0]) and _INTEGER.fullmatch(words[2]):
        return _parse_sized
    return _parse_key


def _parse_pages(line: bytes) -> Iterable[Access]:
    words = line.split()
    if len(words) != 4 or not all(map(_COUNT.fullmatch, words)):
        raise _Malformed("four integers from 0 up: start, count, 0, number of the request")
    start, count = int(words[0]), int(words[1])
    return ((page, None) for page in range(start, start + count))


def _parse_sized(line: bytes) -> Iterable[Access]:
    words = line.split()
    if len(words) != 3 or not _NUMBER.fullmatch(words[0]) or not _COUNT.fullmatch(words[2]):
        raise _Malformed("a time, an id and a size in bytes")
    return ((int(words[1]) if _COUNT.fullmatch(words[1]) else _key(words[1]), int(words[2])),)


def _parse_key(line: bytes) -> Iterable[Access]:
    return ((_key(line), None),)


def _key(text: bytes) -> str:
    try:
        if b"\0" not in text:
            return text.decode()
    except UnicodeDecodeError:
        pass
    raise _Malformed("a key in UTF-8")


# Compression -----------------------------------------------------------------------------------------------


def _text(file: BufferedReader) -> Iterator[bytes]:
    """What the file holds once unpacked, in chunks of bounded size."""
    magic = file.peek(6)[:6]
    if magic.startswith(b"\x28\xb5\x2f\xfd") or magic[1:4] == b"\x2a\x4d\x18":  # a frame, or one to skip
        return _unpack_zstd(file)
    if magic.startswith(b"\x1f\x8b"):
        return _unpack_gzip(file)
    if magic == b"\xfd7zXZ\x00":
        return _unpack_xz(file)
    return _chunks(file)


def _chunks(file: BufferedIOBase) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def _unpack_gzip(file: BufferedReader) -> Iterator[bytes]:
    import gzip

    try:
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield from _chunks(unpacked)
    except EOFError:
        raise _Broken("is cut short: its gzip stream has no end") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _Broken("is damaged: its gzip stream does not unpack") from error


def _unpack_xz(file: BufferedReader) -> Iterator[bytes]:
    import lzma

    try:
        with lzma.LZMAFile(file) as unpacked:
            yield from _chunks(unpacked)
    except EOFError:
        raise _Broken("is cut short: its xz stream has no end") from None
    except lzma.LZMAError as error:
        raise _Broken("is damaged: its xz stream does not unpack") from error


def _unpack_zstd(file: BufferedReader) -> Iterator[bytes]:
    import zstandard

    # Its stream_reader takes the end of the file for the end of the frame; this one can tell.
    unpacker = zstandard.ZstdDecompressor().decompressobj()
    try:
        while packed := file.read(_ZSTD_BYTES):
            while packed:
                if unpacker.eof:  # one more frame
                    unpacker = zstandard.ZstdDecompressor().decompressobj()
                text = unpacker.decompress(packed)
                yield from (text[at : at + _CHUNK_BYTES] for at in range(0, len(text), _CHUNK_BYTES))
                packed = unpacker.unused_data
    except zstandard.ZstdError as error:
        raise _Broken("is damaged: its zstd stream does not unpack") from error
    if not unpacker.eof:
        raise _Broken("is cut short: its zstd stream has no end")
