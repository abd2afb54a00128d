"""Arguments of memoized calls: equal ones make one key, unequal ones make two, whatever they are and however large.

Also runs with pandas 2, in an environment of its own (``.ci/run``).
"""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.client.context import ClientContext
from pyrocache.client.features.load_once import LoadOptions
from pyrocache.client.features.memoize import Memoizer
from pyrocache.client.keys import content
from pyrocache.client.keys.content import Content, content_of
from pyrocache.client.keys.encoding import decode_key, encode_key
from pyrocache.config import ClientConfig
from pyrocache.errors import InvalidKey

CONTEXT = ClientContext(ClientConfig(), object())  # type: ignore[arg-type]


def take(argument: Any, *more: Any, **named: Any) -> None:
    """Is memoized."""


TAKE = Memoizer(CONTEXT, LoadOptions())(take)
TYPED = Memoizer(CONTEXT, LoadOptions(), typed=True)(take)


def key(*arguments: Any, **named: Any) -> bytes:
    """The bytes of the key of a call, which are those of the key that is shown."""
    encoded = TAKE._plan.encoded(arguments, named)
    assert encoded == encode_key(TAKE.key(*arguments, **named))
    assert len(encoded) < 20_000
    return encoded


def same(*arguments: Any) -> None:
    first, *others = map(key, arguments)
    assert all(other == first for other in others)


def different(*arguments: Any) -> None:
    assert len(set(map(key, arguments))) == len(arguments)


class Plain:
    """Compared by its state."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)


class Buffered:
    """Hands out its buffer when it is pickled."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Buffered, (pickle.PickleBuffer(self.data),)


Pair = namedtuple("Pair", "one other")


@dataclass
class Record:
    number: Any


# Any object --------------------------------------------------------------------------------------------------


def test_small_arguments_are_in_the_key_as_they_are() -> None:
    shown = TAKE.key(1, "text", x=[2.5, None])
    assert shown[2] == (1, ("text",), {"x": [2.5, None]})
    assert decode_key(TAKE._plan.encoded((1, "text"), {"x": [2.5, None]})) == shown


def test_equal_numbers_are_one_argument_in_any_size() -> None:
    same(1, 1.0, True, np.int8(1), Decimal(1))
    same([1] * 1000, [1.0] * 1000, [np.float32(1)] * 1000)
    same(("a",) * 1000, (np.str_("a"),) * 1000)
    same("a" * 5000, np.str_("a" * 5000))
    same(b"a" * 5000, bytearray(b"a" * 5000), np.bytes_(b"a" * 5000))
    same([0.0] * 500, [-0.0] * 500)
    different([1] * 1000, (1,) * 1000, [1] * 999, [2] + [1] * 999, ["1"] * 1000, "1" * 1000)


def test_typed_tells_them_apart() -> None:
    assert TYPED.key([1] * 1000) == TYPED.key([1.0] * 1000)  # as for small ones: the type of the argument
    assert TYPED.key(1, math.nan) != TYPED.key(1.0, math.nan)
    assert TYPED.key(math.nan) == TYPED.key(math.nan)


def test_nan_is_equal_to_itself() -> None:
    same(math.nan, float("nan"), np.float64("nan"), np.float32("nan"))
    same([math.nan, 1], [math.nan, 1.0])
    same({"x": math.nan}, {"x": math.nan})
    same(complex(math.nan, 1), np.complex128(complex(math.nan, 1)))
    same(np.datetime64("NaT"), np.datetime64("NaT"))
    same(Record(math.nan), Record(math.nan))
    different(
        math.nan, complex(math.nan, 1), complex(1, math.nan), Decimal("nan"), np.datetime64("NaT"), None
    )
    same(np.longdouble(1) / 3, np.longdouble(1) / 3)


def test_neither_order_nor_sharing_nor_interning_matters() -> None:
    text = "".join(["long ", "text"])
    shared = [text, text]
    long = ["x" * 10] * 200
    same(Plain(a=shared, b=shared), Plain(b=["long text", "long " + "text"], a=[text, "long text"]))
    same({i: str(i) for i in range(2000)}, {i: str(i) for i in reversed(range(2000))})
    same(set(range(2000)), set(range(1999, -1, -1)))
    same([long, long], [list(long), list(long)])
    same(UserDict(a=long, b=1), UserDict(b=1, a=long))
    different(Plain(a=1), Plain(a=2), Plain(b=1), UserDict(a=1))


def test_texts_among_other_items() -> None:
    items = ["a", None, "", 1, math.nan, "\ud800", "é"] * 100
    same(items, [*items])
    different(items, items[::-1], [*items, ""], [None if item == "" else item for item in items])
    different(["ab", "c"] * 200, ["a", "bc"] * 200, ["abc", ""] * 200)
    different([1, "a"] * 200, ["a", 1] * 200)


def test_an_object_that_contains_itself() -> None:
    def cycle(number: int) -> Any:
        node = Plain(number=number, text="te" + "xt", array=np.arange(number))
        node.children = [Plain(parent=node), node]
        return node

    same(cycle(1), cycle(1))
    different(cycle(1), cycle(2))


def test_an_object_that_is_reached_by_many_paths_is_encoded_once() -> None:
    nested: Any = [1]
    object_ = Plain()
    for _ in range(60):
        nested, object_ = [nested, nested], Plain(one=object_, other=object_)
    same(nested, nested)
    same(object_, object_)


def test_buffers_of_pickles_are_compared() -> None:
    same(
        Buffered(b"abc" * 1000),
        Buffered(bytearray(b"abc" * 1000)),
        Buffered(np.frombuffer(b"abc" * 1000, "u1")),
    )
    different(Buffered(b"abc" * 1000), Buffered(b"abd" * 1000))
    same(Buffered(memoryview(b"axbxcx")[::2]), Buffered(memoryview(b"aybycy")[::2]))


def test_what_stands_for_an_argument_is_not_equal_to_it_as_an_argument() -> None:
    [stand_in] = TAKE.key("x" * 2000)[2][:1]
    assert isinstance(stand_in, Content)
    different("x" * 2000, stand_in, stand_in.digest)


def test_many_arguments() -> None:
    same_arguments = [f"{number} {'x' * 900}" for number in range(500)]
    assert key(*same_arguments) == key(*same_arguments) != key(*same_arguments[::-1])
    assert key(1, **{f"n{number}": number for number in range(3000)})


def test_large_arguments_are_not_copied() -> None:
    large = [
        np.zeros(1 << 22),
        b"x" * (1 << 25),
        "x" * (1 << 25),
        Plain(array=np.zeros((1 << 11, 1 << 11)).T),
    ]
    tracemalloc.start()
    try:
        content_of(large)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def local_class() -> Any:
    @dataclass
    class Local:
        number: int = 1

    return Local()


@pytest.mark.parametrize(
    "argument", [threading.Lock(), lambda: 1, [threading.Lock()], local_class(), Plain(f=open)]
)
def test_what_does_not_pickle_is_refused_by_its_name(argument: Any) -> None:
    if isinstance(argument, Plain):
        argument = Plain(f=(n for n in ()))
    with pytest.raises(InvalidKey, match=r"argument 'more' of take cannot be a key.*ignore=.*key="):
        TAKE.key(1, argument)
    with pytest.raises(InvalidKey, match="argument 'more' of take"):
        TAKE._plan.encoded((1, argument), {})


def test_keys_of_users_stay_as_strict_as_they_were() -> None:
    for refused in (math.nan, np.datetime64("NaT"), "x" * 100_000):
        with pytest.raises(InvalidKey):
            encode_key(refused)


def test_the_result_of_a_key_function_may_be_anything_too() -> None:
    by_key = Memoizer(CONTEXT, LoadOptions(), key=lambda argument: argument)(lambda argument: None)
    assert by_key.key(np.arange(10_000)) == by_key.key(np.arange(10_000)) != by_key.key(np.arange(10_001))
    assert by_key.key(math.nan) == by_key.key(math.nan)


def test_a_datetime_in_a_fold_is_an_argument() -> None:
    zoneinfo = pytest.importorskip("zoneinfo")
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    same(datetime(2020, 10, 25, 2, 30, tzinfo=zone), datetime(2020, 10, 25, 2, 30, fold=1, tzinfo=zone))


ELSEWHERE = """
import sys, math
import numpy as np
from collections import UserDict
from pyrocache.client.keys.content import content_of
objects = [
    [math.nan, {"a", "b", "c"}, {"x": 1, "y": UserDict(z="text" * 500)}],
    np.array([("a", 1.5), ("b", 2.5)], dtype="U3,f8"), np.array(["a", None, {"u", "v"}], object),
    np.arange(5000.0)[::2],
]
try:
    import pandas as pd
    objects += [pd.DataFrame({"v": [1, 2, 3], "t": ["a", None, "b"], "c": pd.Categorical(list("aba"))})]
    import polars as pl, pyarrow as pa
    objects += [pl.DataFrame({"v": [1, None], "t": ["a", None]}), pa.table({"v": [1, None], "t": ["a", None]})]
    objects += [pl.LazyFrame({"v": [1, 2]}).select(pl.col("v") + 1), pl.col("v") * 2]
except ImportError:
    pass
print([content_of(thing).digest.hex()[:8] for thing in objects])
"""


def test_digests_are_the_same_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", ELSEWHERE],
            env={"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(outputs) == 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats(-1, 1, width=16)
    | st.text("ab", max_size=3)
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner, inner)
        | st.dictionaries(st.text("ab", max_size=2) | st.integers(0, 3), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(VALUES, VALUES)
def test_two_values_are_one_argument_where_they_are_one_key(one: Any, other: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "LARGE", 8)  # so that digests and columns are within each other
        patch.setattr(content, "LONG", 3)
        equal = encode_key(one) == encode_key(other)
        assert (content_of(one) == content_of(other)) is equal
        assert content_of(one) == content_of(decode_key(encode_key(one)))


# Arrays ------------------------------------------------------------------------------------------------------


def test_the_layout_of_an_array_does_not_matter_but_dtype_and_shape_do() -> None:
    array = np.arange(2400.0).reshape(40, 60)
    same(array, np.asfortranarray(array), np.repeat(array, 2, axis=0)[::2], array[::-1][::-1], array.copy())
    different(array, array.reshape(60, 40), array.T, array.astype("f4"), array.view("i8"), array.ravel())
    different(np.zeros(3), np.zeros(3, "i8"), np.zeros(3, "u8"), np.zeros(3, "M8[s]"), np.zeros(3, "M8[ns]"))
    different(np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(0), np.zeros(0, "i1"), np.array(0.0))
    different(np.array(["a", "b"]), np.array(["a", "c"]), np.array(["a", "b"], "U2"), np.array([b"a", b"b"]))
    different(np.array([1]), 1, [1], (1,))
    same(np.array([1.0, math.nan]), np.array([1.0, math.nan]))
    small = np.arange(6).reshape(2, 3)
    same([small], [np.asfortranarray(small)])
    same(Plain(a=small), Plain(a=np.asfortranarray(small)))


def test_arrays_of_objects_and_of_records() -> None:
    def objects(*items: Any) -> Any:
        array = np.empty(len(items), object)
        array[:] = items
        return array

    same(objects("a", None, [1]), objects("a", None, [1.0]), objects("a", 0, None, 0, [1], 0)[::2])
    different(objects("a"), objects("b"), objects(["a"]), np.array(["a"]))
    same(objects(*["text", None] * 500), objects(*["te" + "xt", None] * 500))
    padded = np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 8], "itemsize": 16})
    clean, dirty = np.zeros(3, padded), np.frombuffer(bytearray(b"\xff" * 48), padded).copy()
    dirty["a"], dirty["b"] = 0, 0
    same(clean, dirty)
    different(clean, clean[["a"]], clean.astype([("a", "i1"), ("c", "f8")]), np.zeros(4, padded))
    with_objects = np.array([(1, "x"), (2, None)], dtype=[("n", "i4"), ("o", object)])
    same(with_objects, with_objects.copy())


def test_subclasses_of_arrays(tmp_path: Any) -> None:
    array = np.arange(10.0)
    mapped = np.memmap(tmp_path / "array", "f8", "w+", shape=10)
    mapped[:] = array
    same(array, mapped)
    masked = np.ma.masked_array(array, array > 5)
    same(masked, masked.copy())
    different(array, masked, array.reshape(1, 10).view(np.matrix), array.reshape(1, 10), masked[1:])
    if hasattr(np, "dtypes") and hasattr(np.dtypes, "StringDType"):
        text = np.array(["a", "long text " * 10], np.dtypes.StringDType())
        same(text, np.array(["a", "long text " * 10], np.dtypes.StringDType()))
        different(text, text[::-1], text.astype("U200"))


# pandas ------------------------------------------------------------------------------------------------------

PANDAS: dict[str, Callable[[Any], Any]] = {
    "numbers": lambda pd: pd.DataFrame({"v": [1, 2, 3], "w": [1.5, math.nan, 3.0]}),
    "text": lambda pd: pd.DataFrame({"t": ["a", None, "c" * 50]}),
    "object": lambda pd: pd.DataFrame({"t": ["a", None, 3]}, dtype=object),
    "string": lambda pd: pd.Series(["a", None, "c"], dtype="string"),
    "string[python]": lambda pd: pd.Series(["a", None, "c"], dtype="string[python]"),
    "categorical": lambda pd: pd.Series(["a", None, "c"], dtype="category"),
    "nullable": lambda pd: pd.Series([1, None, 3], dtype="Int64"),
    "boolean": lambda pd: pd.Series([True, None, False], dtype="boolean"),
    "Float64": lambda pd: pd.Series([1.5, None, 3], dtype="Float64"),
    "times": lambda pd: pd.Series(pd.to_datetime(["2020-01-01", None, "2020-01-03"])),
    "zone": lambda pd: pd.Series(pd.to_datetime(["2020-01-01", None, "2020-01-03"])).dt.tz_localize(
        "Asia/Tokyo"
    ),
    "deltas": lambda pd: pd.Series(pd.to_timedelta([1, None, 3], unit="s")),
    "periods": lambda pd: pd.Series(pd.period_range("2020", periods=3, freq="M")),
    "intervals": lambda pd: pd.Series(pd.interval_range(0, 3)),
    "sparse": lambda pd: pd.Series([1, 0, 0], dtype="Sparse[int]"),
    "index": lambda pd: pd.Index(["a", "b", "c"], name="name"),
    "range": lambda pd: pd.RangeIndex(3),
    "time index": lambda pd: pd.date_range("2020", periods=3, freq="D"),
    "multi": lambda pd: pd.MultiIndex.from_tuples([(1, "a"), (1, "b"), (2, "a")]),
    "frame with multi": lambda pd: pd.DataFrame(
        np.zeros((3, 2)),
        index=pd.MultiIndex.from_tuples([(1, "a"), (1, "b"), (2, "a")]),
        columns=pd.MultiIndex.from_tuples([("x", 1), ("y", 2)]),
    ),
    "array": lambda pd: pd.array([1, None, 3]),
    "timestamp": lambda pd: pd.Timestamp("2020-01-01", tz="UTC"),
}


@pytest.mark.parametrize("kind", PANDAS)
def test_equal_objects_of_pandas_are_one_argument(kind: str) -> None:
    pd = pytest.importorskip("pandas")
    make = PANDAS[kind]
    thing = make(pd)
    same(
        thing,
        make(pd),
        pickle.loads(pickle.dumps(thing)),
        *([thing.copy()] if hasattr(thing, "copy") else ()),
    )
    same([thing], [make(pd)])
    if hasattr(thing, "__len__"):
        different(thing, thing[:2], thing[::-1])


def test_objects_of_pandas_that_differ_in_one_thing() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"v": [1, 2, 3], "w": [4, 5, 6]})
    with_attributes = frame.copy()
    with_attributes.attrs["unit"] = "m"
    different(
        frame,
        frame.astype({"v": "int32"}),
        frame.astype({"v": "float64"}),
        frame.astype({"v": object}),
        frame.astype({"v": "Int64"}),
        frame.rename(columns={"v": "u"}),
        frame[["w", "v"]],
        frame.set_axis([1, 2, 3]),
        frame.rename_axis("rows"),
        frame.v,
        frame.w,
        frame.v.rename("w"),
        frame.v.to_numpy(),
        frame.set_flags(allows_duplicate_labels=False),
        with_attributes,
    )
    different(*(pd.Series(["a", "b"], dtype=dtype) for dtype in ("object", "string", "category")))
    different(pd.Series(["a", None], dtype=object), pd.Series(["a", math.nan], dtype=object))
    different(pd.NaT, pd.NA, None, math.nan)


def test_how_pandas_keeps_a_frame_does_not_matter() -> None:
    pd = pytest.importorskip("pandas")
    values = np.arange(3000.0).reshape(1000, 3)
    together = pd.DataFrame(values, columns=list("abc"))
    apart = pd.DataFrame({"a": values[:, 0].copy()})
    for at, name in ((1, "b"), (2, "c")):
        apart[name] = values[:, at]
    same(together, apart, pd.DataFrame(np.asfortranarray(values), columns=list("abc")))
    same(together[together.a > 1500], apart[apart.a > 1500])
    same(together[::2], together.iloc[::2].copy())
    texts = pd.DataFrame({"t": [f"text {number}" for number in range(1000)]})
    same(texts[100:], texts.iloc[100:].copy(), pickle.loads(pickle.dumps(texts[100:])))
    same(pd.concat([texts[:500], texts[500:]]), texts)
    # Behind a missing value there may be anything.
    one, other = pd.array([1, 2, 3]), pd.array([1, 5, 3])
    one[1] = other[1] = pd.NA
    same(one, other)
    both = pd.MultiIndex.from_product([[1, 2], ["a", "b"]])
    same(both[:2], pd.MultiIndex.from_product([[1], ["a", "b"]]))
    same(pd.RangeIndex(0, 5, 2), pd.RangeIndex(0, 6, 2))


# Arrow and polars --------------------------------------------------------------------------------------------

ARROW: dict[str, Callable[[Any], Any]] = {
    "int": lambda pa: pa.array([1, None, 3, 4, 5]),
    "float": lambda pa: pa.array([1.5, math.nan, None]),
    "bool": lambda pa: pa.array([True, None, False] * 5),
    "text": lambda pa: pa.array(["a", None, "", "long text" * 5]),
    "text without nulls": lambda pa: pa.array(["a", "", "long text" * 5]),
    "large": lambda pa: pa.array(["a", None, "b"], pa.large_string()),
    "view": lambda pa: pa.array(["a", None, "b" * 20], pa.string_view()),
    "bytes": lambda pa: pa.array([b"a", None, b"b"]),
    "fixed bytes": lambda pa: pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "decimal": lambda pa: pa.array([Decimal("1.5"), None, Decimal("2.5")]),
    "half": lambda pa: pa.array([np.float16(1), None, np.float16(2)], pa.float16()),
    "date": lambda pa: pa.array([1, None, 3], pa.date32()),
    "zone": lambda pa: pa.array([1, None, 3], pa.timestamp("us", "UTC")),
    "null": lambda pa: pa.array([None, None, None]),
    "lists": lambda pa: pa.array([[1, None], None, [], [3]]),
    "lists of text": lambda pa: pa.array([["a", None], None, [], ["bc"]]),
    "fixed lists": lambda pa: pa.array([[1, 2], None, [3, None]], pa.list_(pa.int8(), 2)),
    "maps": lambda pa: pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int8())),
    "structs": lambda pa: pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}]),
    "dictionary": lambda pa: pa.array(["a", None, "b", "a"]).dictionary_encode(),
    "list views": lambda pa: pa.array([[1], None, [2, 3]], pa.list_view(pa.int8())),
    "structs of views": lambda pa: pa.array([{"a": "x"}, None], pa.struct([("a", pa.string_view())])),
    "run ends": lambda pa: pa.RunEndEncodedArray.from_arrays([2, 3], [5, 6]),
}


@pytest.mark.parametrize("kind", ARROW)
def test_equal_arrays_of_arrow_are_one_argument(kind: str) -> None:
    pa = pytest.importorskip("pyarrow")
    array = ARROW[kind](pa)
    same(array, ARROW[kind](pa), pickle.loads(pickle.dumps(array)))
    whole = pa.chunked_array([array])
    parts = pa.chunked_array([array[:1], array[1:1], array[1:]])
    same(whole, parts, pa.chunked_array([ARROW[kind](pa)]))
    different(array, array.slice(0, len(array) - 1), whole)
    if kind not in ("dictionary", "run ends"):  # which cannot be made of Python objects
        same(array[1:], pa.array(array.to_pylist()[1:], array.type))


def test_nulls_are_told_from_anything_else() -> None:
    pa = pytest.importorskip("pyarrow")
    different(
        *(pa.array(items, pa.int64()) for items in ([0, 1], [None, 1], [1, None], [1], [None, 0, 1], []))
    )
    different(*(pa.array(items, pa.string()) for items in (["", "a"], [None, "a"], ["a", None], ["a"])))
    different(*(pa.array(items) for items in ([[1], [2]], [[1, 2], []], [[], [1, 2]], [[1], [2], None])))
    garbage = pa.Array.from_buffers(
        pa.int64(), 2, [pa.py_buffer(b"\x01"), pa.py_buffer(np.array([1, 99]).tobytes())]
    )
    same(garbage, pa.array([1, None]))


def test_tables_of_arrow() -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"n": [1, 2, None, 4], "t": ["a", None, "b", "c"]})
    same(table, pa.concat_tables([table[:1], table[1:]]), table.combine_chunks())
    different(
        table,
        table[:3],
        table.select(["t", "n"]),
        table.rename_columns(["m", "t"]),
        table.replace_schema_metadata({"a": "b"}),
        table.to_batches()[0],
    )


POLARS: dict[str, Callable[[Any], Any]] = {
    "int": lambda pl: pl.Series("s", [1, None, 3]),
    "text": lambda pl: pl.Series("s", ["a", None, "long text" * 5]),
    "bool": lambda pl: pl.Series("s", [True, None, False]),
    "zone": lambda pl: pl.Series("s", [datetime(2020, 1, 1), None]).dt.replace_time_zone("UTC"),
    "lists": lambda pl: pl.Series("s", [["a"], None, ["b", None]]),
    "structs": lambda pl: pl.Series("s", [{"a": 1, "b": "x"}, {"a": None, "b": "y"}]),
    "categorical": lambda pl: pl.Series("s", ["a", None, "b"], dtype=pl.Categorical),
    "enum": lambda pl: pl.Series("s", ["a", None, "b"], dtype=pl.Enum(["a", "b", "c"])),
    "object": lambda pl: pl.Series("s", [Plain(a=1), None, Plain(a=2)], dtype=pl.Object),
    "int128": lambda pl: pl.Series("s", [1, None, 3], dtype=pl.Int128),
    "null": lambda pl: pl.Series("s", [None, None, None]),
    "frame": lambda pl: pl.DataFrame({"n": [1, None, 3], "t": ["a", None, "b"]}),
}


@pytest.mark.parametrize("kind", POLARS)
def test_equal_objects_of_polars_are_one_argument(kind: str) -> None:
    pl = pytest.importorskip("polars")
    thing = POLARS[kind](pl)
    same(thing, POLARS[kind](pl), thing.clone())
    different(thing, thing[:1], thing[1:])
    if kind != "object":
        parts = (
            thing[:1].clone().append(thing[1:])
            if isinstance(thing, pl.Series)
            else thing[:1].vstack(thing[1:])
        )
        same(thing, parts, pickle.loads(pickle.dumps(thing)))


def test_objects_of_polars_that_differ_in_one_thing() -> None:
    pl = pytest.importorskip("polars")
    series = pl.Series("s", [1, 2, 3])
    lazy = pl.LazyFrame({"a": [1, 2]}).select(pl.col("a") + 1)
    different(
        series, series.alias("t"), series.cast(pl.Int32), series.to_frame(), series.to_frame().lazy(), lazy
    )
    different(lazy, pl.LazyFrame({"a": [1, 2]}).select(pl.col("a") + 2), pl.col("a"), pl.col("b"))
    enums = (pl.Enum(["a", "b"]), pl.Enum(["a", "b", "c"]), pl.Enum(["b", "a"]), pl.Categorical, pl.String)
    different(*(pl.Series("s", ["a"], dtype=dtype) for dtype in enums))


# Time --------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_64_mb_take_a_fraction_of_a_second() -> None:
    size = 8 << 20
    numbers = np.arange(float(size))
    texts = [f"text {number:059}" for number in range(1 << 20)]
    assert fastest(lambda: content_of(numbers)) < 1  # 0.04 s on a CPU with instructions for SHA-256
    for argument in (np.asfortranarray(numbers.reshape(1024, -1)), texts, "x" * size * 8):
        assert fastest(lambda argument=argument: content_of(argument)) < 3  # about 0.1 s


def fastest(call: Callable[[], object]) -> float:
    def seconds() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return min(seconds() for _ in range(3))


def test_frames_of_many_columns() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(np.arange(700.0).reshape(7, 100))
    blocks = pd.concat([frame.iloc[:, :50].copy(), frame.iloc[:, 50:].copy()], axis=1)
    same(frame, blocks, frame.copy(), pd.DataFrame(np.asfortranarray(frame.to_numpy())))
    one = frame.copy()
    one.iloc[3, 4] += 1
    mixed = frame.astype({3: int, 7: "datetime64[ns]"}).assign(text="x")
    swapped = mixed[[*mixed.columns[:3], mixed.columns[4], mixed.columns[3], *mixed.columns[5:]]]
    different(frame, one, frame.astype("float32"), frame.T, mixed, swapped, mixed.assign(text="y"))
    same(mixed, mixed.copy(), mixed[mixed.columns])
