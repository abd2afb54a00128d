"""Values to pickles: of one value, of many, with out-of-band buffers, and canonical pickles for keys.

A value with a large buffer (an array, for example) is pickled with that buffer out-of-band, so that it is not copied.
Such a value frame consists of a head, the pickle and the buffers; ``codec.py`` documents it.

Raises `SerializationError`, which names the type and never the content. Pickling runs the value's own code.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Sequence
from pickle import dumps
from types import FunctionType, SimpleNamespace
from typing import Any, Final

from pyrocache.client.unpicklable import why
from pyrocache.errors import SerializationError
from pyrocache.protocol.messages import Pieces
from pyrocache.tracebacks import came_from_outside, cause_of

_PROTOCOL = 5

PICKLE_FIRST: Final = pickle.PROTO[0]
"""The first byte of every pickle of this protocol."""

LARGE: Final = 64 * 1024
"""Bytes from which a buffer is stored out-of-band, and a frame is sent in pieces."""

OUT_OF_BAND_KIND: Final = b"v"
OUT_OF_BAND_HEAD: Final = struct.Struct("<c7xII")
ALIGNMENT: Final = 64


def dump(value: object) -> bytes | Pieces:
    """Return the value frame of a pickled value. Raises `SerializationError`."""
    try:
        try:
            # Few values have a large buffer; only these are pickled a second time.
            frame = dumps(value, _PROTOCOL, buffer_callback=_in_band)
            return frame if len(frame) < LARGE else Pieces((frame,))
        except _LargeBuffer:
            buffers: list[memoryview] = []
            data = dumps(value, _PROTOCOL, buffer_callback=lambda found: _keep_large(found, buffers))
            return _join_out_of_band(data, buffers)
    except Exception as error:  # the value's own __reduce__ or __getstate__ may raise anything
        cause = cause_of(error)
        raise _not_pickled(value, error) from cause


def dump_many(values: Sequence[object]) -> list[bytes | Pieces] | None:
    """Return what `dump` returns for each value, faster; None if some value is large. Raises `SerializationError`."""
    frames: list[bytes | Pieces] = []
    sink: Any = SimpleNamespace(write=frames.append)
    pickler = pickle.Pickler(sink, _PROTOCOL, buffer_callback=_in_band)
    dump, forget = pickler.dump, pickler.clear_memo
    value: object = None
    try:
        for value in values:
            dump(value)
            forget()  # or a later pickle would refer to objects of an earlier one
    except _LargeBuffer:
        return None
    except Exception as error:  # the value's own code may raise anything
        cause = cause_of(error)
        raise _not_pickled(value, error) from cause
    # The pickler writes a large value in several parts, or in one part that must become Pieces.
    return frames if len(frames) == len(values) and max(map(len, frames), default=0) < LARGE else None


def canonical_pickle(
    obj: object, persistent_id: Callable[[object], object | None], file: io.BytesIO, shared: bool = False
) -> None:
    """Write a pickle of ``obj`` to ``file`` that does not depend on which of its equal parts are the same object.

    ``persistent_id`` is called with every object that is reached, including ``obj``. Its result is written in place of
    that object; None lets pickle descend into the object. With ``shared``, an object that is reached again is written
    as a reference, so ``obj`` may contain itself. Raises whatever pickling raises.
    """
    _CanonicalPickler(file, persistent_id, shared).dump(obj)


# The hook must be a method of a class: Python 3.13 ignores one that is set on a pickler.
class _CanonicalPickler(pickle.Pickler):
    def __init__(
        self, file: io.BytesIO, persistent_id: Callable[[object], object | None], shared: bool
    ) -> None:
        super().__init__(file, _PROTOCOL)
        # Without its memo, pickle writes equal strings identically, whether they are the same object or not.
        self.fast = not shared
        self._persistent_id = persistent_id

    def persistent_id(self, obj: Any) -> Any:
        return self._persistent_id(obj)


def names_in_main(value: object) -> set[str]:
    """Return the names in ``__main__`` of the classes and functions that the pickle of a value refers to.

    Raises whatever pickling raises.
    """
    found: set[str] = set()
    sink: Any = SimpleNamespace(write=len)

    class Finder(pickle.Pickler):
        def persistent_id(self, part: Any) -> None:
            # Type variables, which are instances of classes of `typing`, are pickled by their names, too.
            if isinstance(part, (type, FunctionType)) or type(part).__module__ == "typing":
                name = getattr(part, "__qualname__", getattr(part, "__name__", None))
                if getattr(part, "__module__", None) in ("__main__", "__mp_main__") and type(name) is str:
                    found.add(name.partition(".")[0])

    Finder(sink, _PROTOCOL, buffer_callback=lambda buffer: False).dump(value)
    return found


def raw_buffer(value: object) -> memoryview | None:
    """Return the bytes of a buffer that an object's pickling code hands out; None if it is not such a buffer."""
    if type(value) is not pickle.PickleBuffer:
        return None
    with memoryview(value) as view:
        return value.raw() if view.contiguous else memoryview(view.tobytes())


def _not_pickled(value: object, error: Exception) -> SerializationError:
    part = value if isinstance(error, (RecursionError, MemoryError)) else _last_reached(value)
    return SerializationError(why(value, part, error))


def _last_reached(value: object) -> object:
    """Return the object in a value at which pickling it fails; the value itself if it does not fail again."""
    reached: Any = value
    file: Any = SimpleNamespace(write=len)

    class Tracer(pickle.Pickler):
        def persistent_id(self, part: object) -> None:
            nonlocal reached
            reached = part

    try:
        Tracer(file, _PROTOCOL, buffer_callback=lambda found: False).dump(value)
    except Exception as error:
        if came_from_outside(error):
            raise
        return reached
    return value


class _LargeBuffer(Exception):
    """A value has a buffer that must be stored out-of-band."""


def _in_band(found: pickle.PickleBuffer) -> bool:
    with memoryview(found) as view:
        if view.nbytes >= LARGE and view.contiguous:
            raise _LargeBuffer
    return True


def _keep_large(found: pickle.PickleBuffer, buffers: list[memoryview]) -> bool:
    """Return whether ``found`` stays in the pickle; if not, append it to ``buffers``."""
    with memoryview(found) as view:
        if view.nbytes < LARGE or not view.contiguous:
            return True
    buffers.append(found.raw())
    return False


def _join_out_of_band(data: bytes, buffers: list[memoryview]) -> Pieces:
    head = OUT_OF_BAND_HEAD.pack(OUT_OF_BAND_KIND, len(buffers), len(data))
    sizes = struct.pack(f"<{len(buffers)}Q", *map(len, buffers))
    pieces: list[bytes | memoryview] = [head + sizes + data]
    length = len(pieces[0])
    for buffer in buffers:
        padding = -length % ALIGNMENT
        pieces += (bytes(padding), buffer)
        length += padding + len(buffer)
    return Pieces(pieces)
