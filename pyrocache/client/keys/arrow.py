"""Content of pyarrow's arrays and tables, and of polars' series and frames.

The chunks of a column, its offset in a larger buffer, and the bytes behind a null do not matter. Types, names, metadata
and the dictionary encoding do. Numbers are compared bit by bit, hence 0.0 and -0.0 differ.

A `LazyFrame` or an expression is encoded by its pickle, the plan, in which the files that it reads are only names.
Without pyarrow, so are polars' other objects.

Neither library is imported here before an object of polars is encoded.

Thread safety: thread-safe; a `_Column` is used by one thread.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pyrocache.client.keys.digests import digest

if TYPE_CHECKING:
    from pyrocache.client.keys.content import ContentEncoding

_ROWS = 1 << 16  # that are copied at a time
_NO_KERNELS = (
    "view",
    "union",
    "run_end",
    "extension",
    "map<",
)  # in the names of types that pyarrow cannot filter


def encode(key: Any, encoding: ContentEncoding) -> bytes | None:
    """Return the bytes of an array, a record batch or a table of pyarrow; None for another object."""
    pa: Any = sys.modules["pyarrow"]
    if isinstance(key, pa.Table | pa.RecordBatch):
        name = "Table" if isinstance(key, pa.Table) else "RecordBatch"
        columns = tuple(_content(column, encoding) for column in key.columns)
        return encoding.compose(f"pyarrow.{name}", bytes(key.schema.serialize()), key.num_rows, columns)
    if isinstance(key, pa.Array | pa.ChunkedArray):
        name = "ChunkedArray" if isinstance(key, pa.ChunkedArray) else "Array"
        schema = bytes(pa.schema([("", key.type)]).serialize())
        return encoding.compose(f"pyarrow.{name}", schema, _content(key, encoding))
    return None


def encode_polars(key: Any, encoding: ContentEncoding) -> bytes | None:
    """Return the bytes of a series or a frame of polars; None for another object."""
    pl: Any = sys.modules["polars"]
    if type(key) not in (pl.Series, pl.DataFrame):
        return None
    try:
        importlib.import_module("pyarrow")
    except ImportError:
        return None
    if type(key) is pl.Series:
        return encoding.compose("polars.Series", *_series(key, encoding))
    columns = tuple(_series(column, encoding) for column in key.get_columns())
    return encoding.compose("polars.DataFrame", key.height, columns)


def _series(series: Any, encoding: ContentEncoding) -> tuple[object, ...]:
    dtype = series.dtype
    # Arrow would get the addresses of Python objects, and knows no integers of 128 bits.
    if any(kind in str(dtype) for kind in ("Object", "Int128")):
        return series.name, dtype, encoding.items(series.to_list())
    kind = series.slice(0, 0).to_arrow().type
    # In pieces, because to_arrow() copies texts.
    pieces = (series.slice(at, _ROWS).to_arrow() for at in range(0, len(series), _ROWS))
    return series.name, dtype, _digest(kind, pieces, encoding)


def _content(key: Any, encoding: ContentEncoding) -> bytes:
    return _digest(key.type, key.chunks if hasattr(key, "chunks") else (key,), encoding)


def _digest(kind: Any, pieces: Iterable[Any], encoding: ContentEncoding) -> bytes:
    column = _Column(kind)
    for piece in pieces:
        column.add(piece)
    return column.digest(encoding)


class _Column:
    """The digests of a column of one type, which it receives in pieces of any length.

    Args:
        kind: the `pyarrow.DataType`.
    """

    def __init__(self, kind: Any) -> None:
        self._pa: Any = sys.modules["pyarrow"]
        self._compute: Any = importlib.import_module("pyarrow.compute")
        self._rows = 0
        self._nulls = hashlib.sha256()  # their positions
        self._lengths = hashlib.sha256()  # of texts and lists
        self._data = hashlib.sha256()
        self._children: list[_Column] = []
        self._items: list[Any] = []  # of a type that is not known here
        self._convert = self._converter_of(kind)  # makes rows of the type of the one child
        self._add = self._adder_of(kind)

    def add(self, piece: Any) -> None:
        """Add the rows of an array."""
        if self._convert is not None:
            for at in range(0, len(piece), _ROWS):
                self._children[0].add(self._convert(piece.slice(at, _ROWS)))
        elif self._add is None:
            self._items.extend(piece.to_pylist())
        elif piece.null_count:
            for at in range(0, len(piece), _ROWS):
                self._add_with_nulls(self._add, piece.slice(at, _ROWS))
        else:
            self._rows += len(piece)
            self._add(piece)

    def digest(self, encoding: ContentEncoding) -> bytes:
        """Return the digest of all rows."""
        children = (child.digest(encoding) for child in self._children)
        others = encoding.items(self._items) if self._items else b""
        own = (found.digest() for found in (self._nulls, self._lengths, self._data))
        return digest((b"%d " % self._rows, *own, *children, others))

    def _add_with_nulls(self, add: Callable[[Any], None], piece: Any) -> None:
        compute = self._compute
        positions = compute.indices_nonzero(compute.is_null(piece))
        _update(self._nulls, compute.add(positions, self._pa.scalar(self._rows, self._pa.uint64())), 8)
        self._rows += len(piece)
        add(compute.drop_null(piece))

    def _converter_of(self, kind: Any) -> Callable[[Any], Any] | None:
        pa, types = self._pa, self._pa.types
        if isinstance(kind, pa.BaseExtensionType):
            self._children = [_Column(kind.storage_type)]
            return lambda rows: rows.storage
        if types.is_dictionary(kind):
            self._children = [_Column(kind.value_type)]
            return lambda rows: rows.dictionary_decode()
        if types.is_boolean(kind):
            other = pa.uint8()
        elif _is(types, kind, "string_view"):
            other = pa.large_string()
        elif _is(types, kind, "binary_view"):
            other = pa.large_binary()
        else:
            return None
        self._children = [_Column(other)]
        return lambda rows: rows.cast(other)

    def _adder_of(self, kind: Any) -> Callable[[Any], None] | None:
        """Return the function that adds rows without nulls; None for a type that is not known here."""
        types = self._pa.types
        if any(word in str(kind) for word in _NO_KERNELS):
            return None
        if types.is_null(kind):
            return lambda piece: None
        if types.is_struct(kind):
            self._children = [_Column(kind.field(at).type) for at in range(kind.num_fields)]
            return self._add_struct
        if _is(types, kind, "list", "large_list", "fixed_size_list"):
            self._children = [_Column(kind.value_type)]
            return self._add_lists
        if _is(types, kind, "string", "large_string", "binary", "large_binary"):
            return self._add_texts
        if types.is_primitive(kind) or _is(types, kind, "decimal", "fixed_size_binary"):
            width = kind.bit_width // 8
            return lambda piece: _update(self._data, piece, width)
        return None

    def _add_struct(self, piece: Any) -> None:
        for child, field in zip(self._children, piece.flatten(), strict=True):
            child.add(field)

    def _add_lists(self, piece: Any) -> None:
        for at in range(0, len(piece), _ROWS):
            rows = piece.slice(at, _ROWS)
            _update(self._lengths, self._compute.list_value_length(rows).cast(self._pa.int64()), 8)
            self._children[0].add(rows.flatten())

    def _add_texts(self, piece: Any) -> None:
        for at in range(0, len(piece), _ROWS):
            rows = piece.slice(at, _ROWS)
            _update(self._lengths, self._compute.binary_length(rows).cast(self._pa.int64()), 8)
        _, offsets, data = piece.buffers()
        if len(piece) and data is not None:
            wide = str(piece.type).startswith("large")
            view = memoryview(offsets).cast("B")
            places = view.cast("q") if wide else view.cast("i")
            start, end = places[piece.offset], places[piece.offset + len(piece)]
            self._data.update(memoryview(data)[start:end])


def _is(types: Any, kind: Any, *names: str) -> bool:
    return any(getattr(types, f"is_{name}", lambda _: False)(kind) for name in names)


def _update(sha: Any, values: Any, width: int) -> None:
    """Add the values of an array of a fixed width, in bytes, that has no nulls."""
    buffer = values.buffers()[1]
    if len(values) and buffer is not None:
        sha.update(memoryview(buffer)[values.offset * width : (values.offset + len(values)) * width])
