"""The file of a dump: read as it was written, and refused if it was cut off, changed, or made wrong on purpose."""

from __future__ import annotations

import io
import math
from typing import Any

import msgpack
import pytest

from pyrocache.client import dump_format
from pyrocache.client.dump_format import MAGIC, Reader, Record, Writer
from pyrocache.client.keys.format import namespace_prefix
from pyrocache.errors import ConfigurationError
from pyrocache.protocol.limits import MAX_TAGS

PREFIX = namespace_prefix("shop", "users")
RECORDS = [
    Record(PREFIX + b"skey", b"frame", None, []),
    Record(PREFIX + b"sttl", b"", 1700000000.5, [PREFIX + b"a", b"foreign"]),
    Record(PREFIX + b"s" + bytes(range(256)), bytes(3000), -1.0, []),
]


class Written:
    """A dump in memory, with the offsets where blocks begin."""

    def __init__(self, records: list[Record], each: int = 1000) -> None:
        self.file, self.offsets = io.BytesIO(), [0]
        writer = Writer(self._write, PREFIX, created=1.5, by="0.1.0")
        for number, record in enumerate(records, 1):
            writer.add(record)
            if number % each == 0:
                writer.flush()
        writer.end()
        self.bytes = self.file.getvalue()

    def _write(self, data: bytes) -> None:
        if len(data) == dump_format._HEAD.size:
            self.offsets.append(self.file.tell())
        self.file.write(data)


def records_of(data: bytes) -> list[Record]:
    return [record for block in Reader(io.BytesIO(data).read).blocks() for record in block]


def test_what_was_written_is_read() -> None:
    reader = Reader(io.BytesIO(Written(RECORDS, each=2).bytes).read)
    assert reader.header == (PREFIX, ("shop", "users"), 1.5, "0.1.0")
    assert list(reader.blocks()) == [RECORDS[:2], RECORDS[2:]]
    assert records_of(Written([]).bytes) == []


def test_frames_may_be_views_and_reads_may_be_short() -> None:
    data = Written([Record(PREFIX + b"s", memoryview(b"xyz"), None, [])]).bytes
    source = io.BytesIO(data)
    reader = Reader(lambda size: source.read(min(size, 3)))
    assert list(reader.blocks()) == [[Record(PREFIX + b"s", b"xyz", None, [])]]


def test_blocks_are_bounded() -> None:
    half = bytes(dump_format.BLOCK_BYTES // 2)
    large = [Record(PREFIX + bytes([number]), half, None, []) for number in range(5)]
    many = [Record(PREFIX + b"%d" % number, b"", None, []) for number in range(2500)]
    for records, sizes in ((large, [2, 2, 1]), (many, [1000, 1000, 500])):
        reader = Reader(io.BytesIO(Written(records).bytes).read)
        assert [len(block) for block in reader.blocks()] == sizes


def test_a_file_that_was_cut_off_anywhere_is_refused() -> None:
    written = Written(RECORDS, each=1)
    assert len(written.offsets) == 6  # the line, the header, three blocks, the end
    short = Written([Record(PREFIX + b"s", b"f", 2.5, [b"t"])] * 3, each=1).bytes
    for data, lengths in ((written.bytes, written.offsets), (short, range(len(short)))):
        for length in lengths:
            with pytest.raises(ConfigurationError, match=r"cut off|not a dump"):
                records_of(data[:length])


def test_a_file_that_was_changed_anywhere_is_refused() -> None:
    data = Written([Record(PREFIX + b"s", b"frame", 2.5, [b"t"])] * 2, each=1).bytes
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :]
        with pytest.raises(ConfigurationError):
            records_of(changed)


def test_blocks_that_are_missing_swapped_repeated_or_added_are_refused() -> None:
    written = Written(RECORDS, each=1)
    blocks = [
        written.bytes[begin:end]
        for begin, end in zip(written.offsets, [*written.offsets[1:], None], strict=True)
    ]
    start, header, one, two, three, end = blocks
    for wrong in (
        [start, header, one, three, end],
        [start, header, one, three, two, end],
        [start, header, one, two, two, three, end],
        [start, header, one, two, three, end, end],
        [start, header, one, two, three, end, b"x"],
        [start, one, two, three, end],
    ):
        with pytest.raises(ConfigurationError, match=r"changed|cut off"):
            records_of(b"".join(wrong))


@pytest.mark.parametrize("data", [b"", b"P", b"hello, world, this is no dump\n" * 10, bytes(1000)])
def test_another_file_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match="not a dump"):
        Reader(io.BytesIO(data).read)


@pytest.mark.parametrize("number", [2, 10, 123456])
def test_another_format_is_named(number: int) -> None:
    data = Written(RECORDS).bytes.replace(MAGIC, b"pyrocache dump %d\n" % number)
    with pytest.raises(ConfigurationError, match=f"format {number}, and this pyrocache reads format 1"):
        Reader(io.BytesIO(data).read)


def test_a_wrong_length_takes_no_memory() -> None:
    asked = []
    head = dump_format._HEAD.pack(b"H", 2**32 - 1, bytes(16))
    source = io.BytesIO(MAGIC + head)

    def read(size: int) -> bytes:
        asked.append(size)
        return source.read(size)

    with pytest.raises(ConfigurationError, match="cut off"):
        Reader(read)
    assert max(asked) <= 2**20


def forged(header: Any, *blocks: Any, end: Any = None) -> bytes:
    """A file whose checksums are right, whatever its content."""
    out, checksum = [MAGIC], b""
    for kind, content in ((b"H", header), *((b"E", block) for block in blocks), (b"Z", end)):
        payload = content if isinstance(content, bytes) else msgpack.packb(content)
        checksum = dump_format._checksum(checksum, kind, payload)
        out += [dump_format._HEAD.pack(kind, len(payload), checksum), payload]
    return b"".join(out)


GOOD = {"namespace": PREFIX, "created": 1.0, "by": "x"}
KEY = PREFIX + b"s"


def test_a_forged_file_that_is_valid_is_read() -> None:
    assert records_of(forged(GOOD, [[KEY, b"f", None, []]], end={"entries": 1})) == [(KEY, b"f", None, [])]


@pytest.mark.parametrize(
    "header",
    [
        None,
        [],
        {},
        {**GOOD, "namespace": b"\xff\xff\xff"},
        {**GOOD, "namespace": KEY},
        {**GOOD, "namespace": "x"},
        {**GOOD, "created": "x"},
        b"\xc1",
        b"\x91" * 5000,
    ],
)
def test_a_wrong_header_is_refused(header: Any) -> None:
    with pytest.raises(ConfigurationError, match="changed"):
        records_of(forged(header, end={"entries": 0}))


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        [KEY, b"f", None],
        [KEY, b"f", None, [], 1],
        [PREFIX, b"f", None, []],  # no key
        [namespace_prefix("else") + b"s", b"f", None, []],
        [PREFIX + bytes(70_000), b"f", None, []],
        [KEY, "f", None, []],
        [KEY, b"f", math.nan, []],
        [KEY, b"f", math.inf, []],
        [KEY, b"f", 5, []],
        [KEY, b"f", None, None],
        [KEY, b"f", None, ["t"]],
        [KEY, b"f", None, [bytes(5000)]],
        [KEY, b"f", None, [b"t"] * (MAX_TAGS + 1)],
    ],
)
def test_a_wrong_record_is_refused(record: Any) -> None:
    with pytest.raises(ConfigurationError, match="changed"):
        records_of(forged(GOOD, [record], end={"entries": 1}))


@pytest.mark.parametrize("end", [None, {}, {"entries": 2}, 1])
def test_a_wrong_end_is_refused(end: Any) -> None:
    with pytest.raises(ConfigurationError, match="changed"):
        records_of(forged(GOOD, [[KEY, b"f", None, []]], end=end))
