"""Content of numpy arrays: class, dtype, shape, and the elements in C order, whatever the layout in memory.

Elements are compared bit by bit, hence 0.0 and -0.0 differ, except elements of object arrays and variable-length
strings, which are encoded one by one. Padding within structured elements is left out.

numpy is not imported here: whoever has an array has imported it.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyrocache.client.keys.digests import CHUNK, digest
from pyrocache.client.keys.objects import encode_pickled
from pyrocache.errors import InvalidKey

if TYPE_CHECKING:
    from pyrocache.client.keys.content import ContentEncoding

_PLAIN = frozenset("biufcSUMmV")  # kinds of dtypes whose elements are nothing but their bytes


def encode(key: Any, encoding: ContentEncoding) -> bytes | None:
    """Return the bytes of an array; None for another object, or for an array with pickling code of its own."""
    np: Any = sys.modules["numpy"]
    cls = type(key)
    plain = np.ndarray
    if not isinstance(key, plain) or (cls.__reduce__, cls.__reduce_ex__) != (
        plain.__reduce__,
        plain.__reduce_ex__,
    ):
        return None
    name = "ndarray" if cls is np.memmap else cls.__qualname__
    dtype = key.dtype
    kind = dtype.str if dtype.kind in _PLAIN and dtype.names is None and dtype.metadata is None else dtype
    return encoding.compose("numpy", name, kind, key.shape, elements(key, encoding))


def elements(key: Any, encoding: ContentEncoding) -> bytes:
    """Return the digest of an array's elements."""
    np: Any = sys.modules["numpy"]
    key = np.asarray(key)
    if key.dtype.names is not None:
        return digest(elements(key[name], encoding) for name in key.dtype.names)
    if key.dtype.hasobject or key.dtype.kind not in _PLAIN:
        return encoding.items(key.ravel().tolist())
    return digest(_buffers(key, np))


def _buffers(key: Any, np: Any) -> Iterator[Any]:
    if not key.nbytes:
        return
    if key.flags.c_contiguous:
        yield key.reshape(-1).view(np.uint8)
        return
    flags = ["external_loop", "buffered"]
    size = max(1, CHUNK // key.itemsize)
    for chunk in np.nditer(key, flags, [["readonly", "contig"]], order="C", buffersize=size):
        yield chunk.view(np.uint8)


def scalar_encoder(encoder: Callable[[Any], bytes], encoding: ContentEncoding) -> Callable[[Any], bytes]:
    """Return an encoder of numpy scalars that also accepts NaN, NaT, and more digits than a float holds."""

    def encode(key: Any) -> bytes:
        if key != key:
            kind = key.dtype.kind
            return encoding.encode(complex(key)) if kind == "c" else b"Q" + kind.encode()
        try:
            return encoder(key)
        except InvalidKey:
            return encode_pickled(key, encoding.encode_part, float("inf"))

    return encode
