"""Signed value frames, and signed parts of keys: whoever lacks the signing key can neither make nor change them.

Nodes never see the key, so neither a node nor whoever stands between two hosts can forge a value, or give the value of
one key for another. They can still delete an entry, return an older value of the same key, or give an entry other
tags and another time to live: those are not signed.

A signed frame is a value frame of kind S. Its head has 32 bytes, so that arrays in the frame inside stay aligned::

    offset  bytes
    0       1      S
    1       7      the key id, which says which key has signed
    8       24     the tag
    32             the frame inside

The tag is keyed BLAKE2b over the format version (a byte, 1), the key id, the length of the encoded key (u32,
big-endian), the encoded key, which begins with its namespace, and the frame inside, which begins with its kind. It is
compared in constant time before the frame inside is looked at: before decompression, and before unpickling.

In keys, every part that names a class (kinds e, F, D and P of ``keys/encoding.py``) becomes a part of kind G: a tag of
16 bytes, made by the first key, and the part. It is the same in every process, so that keys stay equal.

BLAKE2b was measured faster than HMAC-SHA-256 for 100 bytes. Its parameter "person" separates the three uses of a key.
A large value is hashed in its pieces. If another thread changes an array while it is stored, its tag does not hold.

Raises `TamperedValue`. Pure: no I/O, no threads, no clock.

Thread safety: thread-safe; nothing changes after it was made.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from pyrocache.client.codec import SIGNED_KIND, Codec
from pyrocache.errors import TamperedValue
from pyrocache.late_imports import at_first_use
from pyrocache.protocol.int_frame import INT_KIND
from pyrocache.protocol.messages import Pieces

__all__ = ["Signer", "SigningCodec"]

_VERSION = b"\1"
_ID_BYTES, _TAG_BYTES, _PART_TAG_BYTES = 7, 24, 16
_TAG_AT = 1 + _ID_BYTES
_HEAD_BYTES = _TAG_AT + _TAG_BYTES
_KEY_ID, _VALUE, _PART = b"pyrocache id", b"pyrocache value", b"pyrocache key"
_SIGNED_PART = b"G"
_length = struct.Struct(">I").pack
_REMEDY = (
    "Give all clients of these entries the same signing_key_file; remove the entry, or clear() the namespace."
)


class Signer:
    """Signs with the first key, and verifies with each.

    Args:
        keys: the keys, of 32 bytes each.
    """

    __slots__ = ("_copies", "_equal", "_head", "_new", "_parts")

    def __init__(self, keys: Sequence[bytes]) -> None:
        with at_first_use:
            from hashlib import blake2b  # imported here: most clients sign nothing
            from hmac import compare_digest
        self._equal = compare_digest  # in constant time
        ids = [blake2b(key=key, digest_size=_ID_BYTES, person=_KEY_ID).digest() for key in keys]
        # A state has hashed what begins every message, so that a tag begins with a copy of it.
        states = [
            blake2b(_VERSION + key_id, key=key, digest_size=_TAG_BYTES, person=_VALUE)
            for key, key_id in zip(keys, ids, strict=True)
        ]
        heads = [SIGNED_KIND + key_id for key_id in ids]
        self._head, self._new = heads[0], states[0].copy
        self._copies = {head: state.copy for head, state in zip(heads, states, strict=True)}
        self._parts = [blake2b(key=key, digest_size=_PART_TAG_BYTES, person=_PART) for key in keys]

    def sign(self, key: bytes, frame: bytes | Pieces) -> bytes | Pieces:
        """Return the signed form of the value frame that is to be stored under an encoded key."""
        state = self._new()
        state.update(_length(len(key)) + key)
        if isinstance(frame, bytes):
            state.update(frame)
            return self._head + state.digest() + frame
        for buffer in frame.buffers:
            state.update(buffer)
        return Pieces((self._head + state.digest(), *frame.buffers))

    def opened(self, key: bytes, frame: Any) -> Any:
        """Return the frame in a signed frame; None if it was not signed with one of these keys for this encoded key."""
        new = self._copies.get(bytes(frame[:_TAG_AT]))
        if new is None:
            return None
        state, inner = new(), frame[_HEAD_BYTES:]
        state.update(_length(len(key)) + key)
        state.update(inner)
        return inner if self._equal(state.digest(), frame[_TAG_AT:_HEAD_BYTES]) else None

    def knows(self, frame: Any) -> bool:
        """Return whether a signed frame says that one of these keys has signed it."""
        return bytes(frame[:_TAG_AT]) in self._copies

    def sign_part(self, encoded: bytes) -> bytes:
        """Return the signed form of a part of a key: type byte and payload."""
        return _SIGNED_PART + _tag(self._parts[0], encoded) + encoded

    def opened_part(self, payload: bytes) -> bytes | None:
        """Return the part in the payload of a signed one; None if it was not signed with one of these keys."""
        tag, encoded = payload[:_PART_TAG_BYTES], payload[_PART_TAG_BYTES:]
        held = [self._equal(_tag(state, encoded), tag) for state in self._parts]
        return encoded if any(held) else None


def _tag(state: Any, data: bytes) -> bytes:
    state = state.copy()
    state.update(data)
    return state.digest()  # type: ignore[no-any-return]


class SigningCodec:
    """A codec whose value frames are signed. It has the methods of the `Codec` that it wraps.

    Args:
        codec: encodes and decodes the frames inside.
        signer: has the keys.
        namespace: how errors name the namespace.
        counters: whether ints are not signed, so that nodes can add to them.
    """

    __slots__ = ("_counters", "_inner", "_namespace", "_signer", "check_class", "reads_pickles")

    def __init__(self, codec: Codec, signer: Signer, namespace: str, counters: bool) -> None:
        self._inner, self._signer, self._namespace, self._counters = codec, signer, namespace, counters
        self.reads_pickles = codec.reads_pickles
        self.check_class = codec.check_class

    def encode(self, key: bytes, value: object) -> bytes | Pieces:
        """Return the signed value frame of a value. Raises as `Codec.encode`."""
        frame = self._inner.encode(key, value)
        return frame if self._counters and type(value) is int else self._signer.sign(key, frame)

    def decode(self, key: bytes, frame: bytes | memoryview) -> object:
        """Return the value in a signed value frame. Raises `TamperedValue`, and as `Codec.decode`."""
        return self._inner.decode(key, self._opened(key, frame))

    def encode_many(self, keys: Sequence[bytes], values: Iterable[object]) -> list[bytes | Pieces]:
        """Return the value frame of each key and value."""
        values = list(values)
        frames = self._inner.encode_many(keys, values)
        if not self._counters:
            return list(map(self._signer.sign, keys, frames))
        sign = self._signer.sign
        return [
            frame if type(value) is int else sign(key, frame)
            for key, value, frame in zip(keys, values, frames, strict=True)
        ]

    def decode_many(self, keys: Sequence[bytes], frames: Sequence[Any], missing: Any) -> list[Any]:
        """Return the value in each frame, and ``missing`` for None."""
        opened = [
            None if frame is None else self._opened(key, frame)
            for key, frame in zip(keys, frames, strict=True)
        ]
        return self._inner.decode_many(keys, opened, missing)

    def opened_part(self, payload: bytes) -> bytes:
        """Return the part in the payload of a signed part of a key. Raises `TamperedValue`."""
        encoded = self._signer.opened_part(payload)
        if encoded is None:
            raise TamperedValue(
                f"A key in {self._namespace} was not signed with a key of this client's signing_key_file, or was "
                f"changed. It was not decoded. {_REMEDY}"
            )
        return encoded

    def unsigned_part(self) -> TamperedValue:
        """Return the error for a part of a key that names a class and is not signed."""
        return TamperedValue(
            f"A key in {self._namespace} is an object, and is not signed. It was not decoded. {_REMEDY}"
        )

    def _opened(self, key: bytes, frame: Any) -> Any:
        inner = self._signer.opened(key, frame)
        if inner is not None:
            return inner
        if self._counters and frame[:1] == INT_KIND:
            return frame
        raise self._tampered(frame)

    def _tampered(self, frame: Any) -> TamperedValue:
        if frame[:1] != SIGNED_KIND:
            counter = ""
            if frame[:1] == INT_KIND:
                counter = " (an int, as incr stores it: read those with counters=True)"
            problem = f"is not signed{counter}"
        elif not self._signer.knows(frame):
            problem = "was not signed with a key of this client's signing_key_file"
        else:
            problem = "does not have the signature of its key: it was changed, or stored under another key"
        return TamperedValue(f"A value in {self._namespace} {problem}. It was not decoded. {_REMEDY}")
