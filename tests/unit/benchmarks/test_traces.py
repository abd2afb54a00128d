"""Traces: each format in each compression, the traces we have, and what is wrong with broken ones."""

from __future__ import annotations

import gzip
import lzma
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.lab.traces import TraceError, _lines, read_trace, trace_format
from pyrocache import PyroCacheError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
FORMATS = {
    "pages": (b"7 3 0 0\n100 1 0 1\n5 0 0 2\n", [(7, None), (8, None), (9, None), (100, None)]),
    "sized": (b"1 42 100\n2.5 -3 0\n3e0 a:b 9\n", [(42, 100), ("-3", 0), ("a:b", 9)]),
    "keys": (b"12\nuser:1 x\n\xc3\xa9\n12\n", [("12", None), ("user:1 x", None), ("é", None), ("12", None)]),
}
PACKED = [name for name in COMPRESSIONS if name != "plain"]


@pytest.fixture
def trace(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes a trace; its name says nothing."""

    def write(data: bytes) -> Path:
        path = tmp_path / "trace"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_in_each_compression(trace: Callable[[bytes], Path], kind: str, compression: str) -> None:
    text, accesses = FORMATS[kind]
    assert list(read_trace(trace(COMPRESSIONS[compression](text)))) == accesses


@pytest.mark.parametrize("kind", FORMATS)
def test_blank_lines_line_ends_and_the_last_line(trace: Callable[[bytes], Path], kind: str) -> None:
    text, accesses = FORMATS[kind]
    windows = b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n\r\n").rstrip()
    assert list(read_trace(trace(b"\n  \n" + windows.removeprefix(b"\xef\xbb\xbf")))) == accesses
    assert list(read_trace(str(trace(windows)))) == accesses


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_parts_packed_one_by_one(trace: Callable[[bytes], Path], compression: str) -> None:
    pack = COMPRESSIONS[compression]
    path = trace(pack(b"a\nb") + pack(b"c\nd\n"))
    assert [key for key, _ in read_trace(path)] == ["a", "bc", "d"]


def test_a_zstd_file_that_begins_with_a_frame_to_skip(trace: Callable[[bytes], Path]) -> None:
    skipped = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    assert list(read_trace(trace(skipped + COMPRESSIONS["zstd"](b"a\n")))) == [("a", None)]


@pytest.mark.parametrize(
    ("first", "keys"),
    [
        (b"1 2 3 4 5", ["1 2 3 4 5", "1 2 3 4"]),
        (b"1 2", ["1 2", "1 2 3 4"]),
        (b"get user 1", ["get user 1", "1 2 3 4"]),
        (b"1 user x", ["1 user x", "1 2 3 4"]),
        (b"1.5 2 0 0", ["1.5 2 0 0", "1 2 3 4"]),
    ],
)
def test_the_first_line_tells_the_format(
    trace: Callable[[bytes], Path], first: bytes, keys: list[str]
) -> None:
    assert [key for key, _ in read_trace(trace(first + b"\n1 2 3 4\n"))] == keys


@pytest.mark.parametrize(
    ("text", "name"),
    [(b"\n1 2 0 0\n", "start count 0 n"), (b"0.5 /a/b?c 10\n", "time id size"), (b"k\n", "a key a line")],
)
def test_the_format_has_a_name(trace: Callable[[bytes], Path], text: bytes, name: str) -> None:
    assert trace_format(trace(text)) == name


def test_ids_may_be_any_text(trace: Callable[[bytes], Path]) -> None:
    assert list(read_trace(trace(b"1 x 10\n2 7 20\n"))) == [("x", 10), (7, 20)]


def test_many_pages_in_one_line_are_not_kept(trace: Callable[[bytes], Path]) -> None:
    accesses = read_trace(trace(b"0 100000000000000000 0 0\n"))
    assert list(islice(accesses, 3)) == [(0, None), (1, None), (2, None)]


@given(
    keys=st.lists(st.from_regex(r"[a-zé][a-z0-9: é]{0,30}[a-zé]", fullmatch=True), min_size=1, max_size=50),
    compression=st.sampled_from(sorted(COMPRESSIONS)),
)
def test_keys_come_back_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], compression: str
) -> None:
    path = tmp_path_factory.mktemp("traces") / "trace"
    path.write_bytes(COMPRESSIONS[compression]("\n".join(keys).encode()))
    assert list(read_trace(path)) == [(key, None) for key in keys]


@given(data=st.lists(st.sampled_from([b"a", b"bc", b" ", b"\n", b"\r\n", b"\n\n"])), cuts=st.data())
def test_lines_do_not_depend_on_where_chunks_end(data: list[bytes], cuts: st.DataObject) -> None:
    text = b"".join(data)
    at = sorted(cuts.draw(st.lists(st.integers(0, len(text)))))
    chunks = [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]
    expected = [(n, line.strip()) for n, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    assert list(_lines(chunks)) == expected


@given(
    data=st.binary(max_size=200),
    magic=st.sampled_from([b"", b"\x28\xb5\x2f\xfd", b"\x1f\x8b", b"\xfd7zXZ\x00"]),
)
def test_garbage_is_either_keys_or_a_trace_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, magic: bytes
) -> None:
    path = tmp_path_factory.mktemp("traces") / "trace"
    path.write_bytes(magic + data)
    try:
        assert all(key or key == "" for key, _ in islice(read_trace(path), 1000))
    except TraceError as error:
        _is_one_sentence(error)


# What is wrong ---------------------------------------------------------------------------------------------


def _error(path: Path | str) -> str:
    with pytest.raises(TraceError) as caught:
        for _ in read_trace(path):
            pass
    _is_one_sentence(caught.value)
    return str(caught.value)


def _is_one_sentence(error: TraceError) -> None:
    assert isinstance(error, PyroCacheError)
    assert "\n" not in str(error)
    assert str(error).endswith(".")


def test_no_such_file(tmp_path: Path) -> None:
    assert _error(tmp_path / "none") == f"There is no trace at {tmp_path / 'none'}."


def test_a_directory(tmp_path: Path) -> None:
    assert "is a directory" in _error(tmp_path)


def test_what_is_no_path_or_cannot_be_opened(trace: Callable[[bytes], Path]) -> None:
    assert "cannot be read" in _error("a\0b")
    assert "cannot be read: Not a directory" in _error(trace(b"a\n") / "b")


def test_a_file_without_leave_to_read_it(
    trace: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # root reads everything
    with pytest.raises(TraceError, match=r"cannot be read: Permission denied\."):
        next(read_trace("trace"))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("text", [b"", b"\n \r\n", b"5 0 0 0\n"])
def test_an_empty_trace(trace: Callable[[bytes], Path], compression: str, text: bytes) -> None:
    assert "is empty" in _error(trace(COMPRESSIONS[compression](text)))


@pytest.mark.parametrize("compression", PACKED)
def test_every_truncation_is_told(trace: Callable[[bytes], Path], compression: str) -> None:
    packed = COMPRESSIONS[compression](b"".join(b"key %d\n" % n for n in range(20)))
    for length in range(6, len(packed)):
        assert "is cut short" in _error(trace(packed[:length])), length


@pytest.mark.parametrize("compression", PACKED)
def test_corrupt_compression(trace: Callable[[bytes], Path], compression: str) -> None:
    packed = bytearray(COMPRESSIONS[compression](b"".join(b"key %d\n" % (n * n) for n in range(5000))))
    packed[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
    assert "is damaged" in _error(trace(bytes(packed)))


@pytest.mark.parametrize("compression", PACKED)
def test_what_comes_before_the_damage_is_read(trace: Callable[[bytes], Path], compression: str) -> None:
    keys = [str(n * n) for n in range(40_000)]
    path = trace(COMPRESSIONS[compression]("\n".join(keys).encode())[:-3])
    assert [key for key, _ in islice(read_trace(path), 20_000)] == keys[:20_000]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (b"1 1 0 0\n\n2 x 0 0\n", 3),
        (b"1 1 0 0\n2 2\n", 2),
        (b"-1 1 0 0\n", 1),
        (b"1 1 0 0\n1 9999999999999999999 0 0\n", 2),
        (b"1 1 1\n2 2 -2\n", 2),
        (b"1 1 1\n2 2\n", 2),
        (b"1 1 1\nx 2 2\n", 2),
        (b"1 1 1\n2 2 2.5\n", 2),
        (b"a\nb\n\xff\n", 3),
        (b"a\nb\0c\n", 2),
    ],
)
def test_a_malformed_line(trace: Callable[[bytes], Path], text: bytes, number: int) -> None:
    assert f"line {number}," in _error(trace(text))


@pytest.mark.parametrize("line", [b"x" * 20_000, b" " * 20_000, b"x" * 5_000_000])
def test_a_line_that_is_too_long(trace: Callable[[bytes], Path], line: bytes) -> None:
    assert "number 2, of more than" in _error(trace(b"a\n" + line + b"\nb\n"))


def test_the_module_does_not_import_zstandard() -> None:
    code = "import sys, benchmarks.lab.traces; sys.exit('zstandard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.full
def test_a_bomb_does_not_fill_the_memory(trace: Callable[[bytes], Path]) -> None:
    blank = COMPRESSIONS["zstd"]((b" " * 15_999 + b"\n") * 2000)  # 32 MB
    path = trace(blank * 16 + COMPRESSIONS["zstd"](b"a"))
    code = (
        "import resource, sys; from benchmarks.lab.traces import read_trace, trace_format\n"
        "resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))\n"
        "print(next(read_trace(sys.argv[1])))"
    )
    process = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert process.stdout == "('a', None)\n", process.stderr[-500:]


# The traces that we have -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "accesses", "distinct", "kind"),
    [
        pytest.param("OLTP.lis.zst", 914_145, 186_880, int, marks=pytest.mark.full),
        ("sprite.trace.gz", 133_996, None, str),
        ("adapt_size.trace.xz", 66_987, None, int),
    ],
)
def test_real_traces(name: str, accesses: int, distinct: int | None, kind: type) -> None:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not here")
    read = list(read_trace(DATA / name))
    keys = {key for key, _ in read}
    assert len(read) == accesses
    assert distinct in (None, len(keys))
    assert {type(key) for key in keys} == {kind}
    assert all((size is not None) == (name == "adapt_size.trace.xz") for _, size in read)
