"""Content of pandas objects: the dtype and the values of each column, the index, names, attributes and flags.

How the columns are gathered in blocks, which chunks a column of Arrow has, the levels of a `MultiIndex` that no row
uses, and the values behind a missing one do not matter. A column of pandas 2 with the dtype ``object`` and one of
pandas 3 with the dtype ``str`` are different, as are the storages of a text column.

Subclasses of frames, and columns of kinds that are not known here, are encoded by their pickles.

pandas is not imported here: whoever has a frame has imported it.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyrocache.client.keys.digests import digest

if TYPE_CHECKING:
    from pyrocache.client.keys.content import ContentEncoding

_MANY = 64  # columns, from which those of one dtype are encoded together: each by itself takes about 50 us
_ROWS = 1 << 17  # that are copied at a time


def encode(key: Any, encoding: ContentEncoding) -> bytes | None:
    """Return the bytes of a frame, a series, an index or an array of pandas; None for another object."""
    pd: Any = sys.modules["pandas"]
    if type(key) is pd.DataFrame:
        if key.shape[1] > _MANY:
            columns = tuple(_by_dtype(key))
        else:
            columns = tuple(key.iloc[:, at].array for at in range(key.shape[1]))
        return encoding.compose("pandas.DataFrame", columns, key.columns, *_around(key))
    if type(key) is pd.Series:
        return encoding.compose("pandas.Series", key.array, key.name, *_around(key))
    if isinstance(key, pd.Index):
        return encoding.compose("pandas.Index", type(key).__name__, tuple(key.names), *_index(key, pd))
    if isinstance(key, pd.api.extensions.ExtensionArray):
        return _array(key, pd, encoding)
    return None


def _by_dtype(frame: Any) -> Iterator[tuple[object, ...]]:
    """Yield the columns of each dtype: which they are, and their values, as one array if they can be."""
    places: dict[Any, list[int]] = {}
    for at, dtype in enumerate(frame.dtypes.array):
        places.setdefault(dtype, []).append(at)
    for dtype, found in places.items():
        if getattr(dtype, "kind", "O") in "biufcmM" and type(dtype).__module__.startswith("numpy"):
            values = frame if len(places) == 1 else frame.iloc[:, found]
            yield found, str(dtype), values.to_numpy()
        else:
            yield found, str(dtype), tuple(frame.iloc[:, at].array for at in found)


def _around(key: Any) -> tuple[object, ...]:
    return key.index, dict(key.attrs), key.flags.allows_duplicate_labels


def _index(key: Any, pd: Any) -> tuple[object, ...]:
    if isinstance(key, pd.RangeIndex):
        return key.start, key.step, len(key)
    if isinstance(key, pd.MultiIndex):
        return tuple(key.get_level_values(at) for at in range(key.nlevels))
    return key.array, getattr(key, "freq", None)


def _array(values: Any, pd: Any, encoding: ContentEncoding) -> bytes | None:
    """Return the bytes of an extension array; None if its kind is not known."""
    dtype = values.dtype
    name = type(dtype).__name__, str(dtype)
    if isinstance(dtype, pd.CategoricalDtype):
        return encoding.compose("pandas.Categorical", dtype.categories, dtype.ordered, values.codes)
    if isinstance(dtype, pd.ArrowDtype) or getattr(dtype, "storage", None) in ("pyarrow", "pyarrow_numpy"):
        return encoding.compose("pandas.arrow", name, _storage(dtype), values.__arrow_array__())
    if isinstance(values, pd.arrays.NumpyExtensionArray):
        return encoding.compose("pandas.array", name, _storage(dtype), values.to_numpy())
    if isinstance(values, pd.arrays.DatetimeArray | pd.arrays.TimedeltaArray | pd.arrays.PeriodArray):
        return encoding.compose("pandas.time", name, values.asi8)
    if isinstance(values, pd.arrays.IntegerArray | pd.arrays.FloatingArray | pd.arrays.BooleanArray):
        return encoding.compose("pandas.nullable", name, values.isna(), digest(_without_missing(values)))
    return None


def _storage(dtype: Any) -> object:
    return getattr(dtype, "storage", None), str(getattr(dtype, "na_value", None))


def _without_missing(values: Any) -> Iterator[Any]:
    """Yield the values of a nullable array, with 0 for missing ones, behind which there may be anything."""
    numpy_dtype = values.dtype.numpy_dtype
    for at in range(0, len(values), _ROWS):
        yield values[at : at + _ROWS].to_numpy(dtype=numpy_dtype, na_value=0)
