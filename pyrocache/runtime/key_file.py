"""Files of secret keys: one key of 32 bytes for each line, as 64 hex digits; ``#`` begins a comment.

A file that others than its owner can read, or that somebody else owns, is refused: a key in it is no secret, or is the
other's. No error shows any content of a file.

Thread safety: thread-safe; the functions depend on the file system only.
"""

from __future__ import annotations

import os
import secrets
import stat

from pyrocache.errors import ConfigurationError

KEY_BYTES = 32
_MOST_BYTES = 64 * 1024  # of a file


def read_keys(path: str) -> tuple[bytes, ...]:
    """Return the keys of a file, in its order.

    Raises:
        ConfigurationError: there is no such file, it is not a file, belongs to somebody else, can be read or written by
            others, or has no key or a line that is not one.
    """
    keys = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        digits = line.partition(b"#")[0].strip()
        if digits:
            keys.append(_key(digits, number, path))
    if not keys:
        raise ConfigurationError(f"{path} has no key. A key is a line of {2 * KEY_BYTES} hex digits.")
    return tuple(keys)


def make_key_file(path: str) -> None:
    """Make a file with one new random key, which only this user can read.

    Raises:
        ConfigurationError: the file exists, or cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError:
        raise ConfigurationError(f"{path} exists already, and was not changed.") from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be made: {_reason(error)}.") from None
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
    except BaseException:
        os.unlink(path)
        raise


def _key(digits: bytes, number: int, path: str) -> bytes:
    try:
        key = bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES or len(digits) != 2 * KEY_BYTES:
        raise ConfigurationError(
            f"Line {number} of {path} is not a key: a key is a line of {2 * KEY_BYTES} hex digits."
        ) from None
    return key


def _read(path: str) -> bytes:
    try:
        # Without blocking, because it may be a named pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The key file {path} cannot be opened: {_reason(error)}.") from None
    try:
        _check(os.fstat(descriptor), path)
        content = os.read(descriptor, _MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"The key file {path} cannot be read: {_reason(error)}.") from None
    finally:
        os.close(descriptor)
    if len(content) > _MOST_BYTES:
        raise ConfigurationError(f"{path} has more than {_MOST_BYTES} bytes; it is not a file of keys.")
    return content


def _check(found: os.stat_result, path: str) -> None:
    """Raise `ConfigurationError` unless only this user can read and write the file."""
    if not stat.S_ISREG(found.st_mode):
        raise ConfigurationError(f"{path} is not a file of keys: it is not a regular file.")
    if found.st_uid != os.geteuid():
        raise ConfigurationError(
            f"{path} belongs to the user with the number {found.st_uid}, and this process runs as {os.geteuid()}: make "
            "a file of your own."
        )
    if found.st_mode & 0o077:
        raise ConfigurationError(
            f"Other users can open {path}: forbid that with `chmod 600 {path}`, and replace its keys if others may "
            "have read them."
        )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
