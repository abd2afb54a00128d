"""The grammar of encoded keys: varints, nesting, ints, strings and the prefixes of namespaces; and two errors.

Defines how a length, an int and a string are written and read, how a key is nested in another one, and the prefix of a
namespace. It knows no kind of key and does not interpret type bytes.

Raises `InvalidKey` for a length that is truncated or not minimal, and for a nested key or a prefix that is truncated.
Pure: no I/O, no threads, no clock.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

from pyrocache.client.unpicklable import type_name
from pyrocache.errors import InvalidKey, KeyTooLarge
from pyrocache.protocol.limits import MAX_KEY_BYTES

_ONE_BYTE = [bytes((size,)) for size in range(0x80)]


def varint(number: int) -> bytes:
    """Return a length in LEB128."""
    if number < 0x80:
        return _ONE_BYTE[number]
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the length that begins at an index, and the index after it. Raises `InvalidKey`."""
    number = 0
    for shift in range(0, 21, 7):  # enough for every length up to MAX_KEY_BYTES
        if at >= len(data):
            raise InvalidKey("an encoded key ends within a length")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if not byte and shift:
                break
            return number, at
    raise InvalidKey("an encoded key has a length that is not in its canonical form")


def nest(encoded: bytes) -> bytes:
    """Return the nested form of an encoded key (type byte, payload): type byte, payload length, payload."""
    size = len(encoded) - 1
    if size < 0x80:
        return encoded[:1] + _ONE_BYTE[size] + encoded[1:]  # `varint`, inlined for speed
    return encoded[:1] + varint(size) + encoded[1:]


def split(payload: bytes) -> list[bytes]:
    """Return the nested keys of a payload, each without its length. `nest` is the inverse. Raises `InvalidKey`."""
    keys = []
    at = 0
    while at < len(payload):
        size, start = read_varint(payload, at + 1)
        end = start + size
        if end > len(payload):
            raise InvalidKey("an encoded key ends within a nested one")
        keys.append(payload[at : at + 1] + payload[start:end])
        at = end
    return keys


def int_bytes(number: int) -> bytes:
    """Return an int in minimal big-endian two's complement."""
    magnitude = number if number >= 0 else -1 - number  # an IntFlag has a ~ of its own
    return number.to_bytes(magnitude.bit_length() // 8 + 1, "big", signed=True)


def read_int(payload: bytes) -> int:
    """Return the int in big-endian two's complement, minimal or not."""
    return int.from_bytes(payload, "big", signed=True)


def utf8(text: str) -> bytes:
    """Return a str in UTF-8, lone surrogates included."""
    return text.encode("utf-8", "surrogatepass")


def read_text(payload: bytes) -> str:
    """Return the text in UTF-8, lone surrogates passed. Raises `UnicodeDecodeError` for other bytes."""
    return payload.decode("utf-8", "surrogatepass")


def namespace_prefix(*path: str) -> bytes:
    """Return the bytes that begin every key of the namespace with this path; for the root, a zero byte."""
    names = [utf8(name) for name in path]
    body = b"".join(varint(len(name)) + name for name in names)
    return varint(len(body)) + body


def split_namespace(data: bytes) -> tuple[tuple[str, ...], bytes]:
    """Return the path of an encoded key's namespace, and the bytes after its prefix. Raises `InvalidKey`."""
    size, at = read_varint(data, 0)
    end = at + size
    path = []
    while at < end:
        size, start = read_varint(data, at)
        at = start + size
        try:
            path.append(read_text(data[start:at]))
        except UnicodeDecodeError:
            raise InvalidKey("an encoded key's namespace is not UTF-8") from None
    if at != end or end > len(data):
        raise InvalidKey("an encoded key ends within its namespace")
    return tuple(path), data[end:]


def too_large(key: object) -> KeyTooLarge:
    """Return the error for a key that takes more than `MAX_KEY_BYTES`."""
    limit = f"a key takes at most {MAX_KEY_BYTES} bytes once encoded"
    return KeyTooLarge(f"{limit}; this one, a {type_name(key)}, takes more")


def own_code_failed(key: object, error: Exception) -> InvalidKey:
    """Return the error for a key whose own code raised another error."""
    name = type_name(key)
    return InvalidKey(f"a key of type {name} cannot be made canonical: encoding it raised {type_name(error)}")


def path_text(path: tuple[str, ...]) -> str:
    """Return a namespace's path in the form that users write."""
    return repr(path[0] if len(path) == 1 else path) if path else "the root"
