"""Sentences about what the system has run out of."""

from __future__ import annotations

import errno
import os

import pytest

from pyrocache.errors import NameTaken, OutOfResources
from pyrocache.runtime.shortage import explain, explained


def of(number: int, *filename: str) -> OSError:
    return OSError(number, os.strerror(number), *filename)


@pytest.mark.parametrize(
    ("error", "beginning"),
    [
        (of(errno.EMFILE), "this process has no file descriptors left: raise its limit (ulimit -n)"),
        (of(errno.ENFILE), "this system has no file descriptors left"),
        (of(errno.ENOSPC), "the disk is full"),
        (of(errno.EROFS, "/x"), "the file system is read-only (/x)"),
        (RuntimeError("can't start new thread"), "can't start new thread: raise the limit of threads"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            "there is no writable directory for temporary files",
        ),
    ],
)
def test_what_is_missing_has_a_sentence(error: Exception, beginning: str) -> None:
    assert (explain(error) or "").startswith(beginning)
    with pytest.raises(OutOfResources) as caught, explained("It failed"):
        raise error
    assert str(caught.value).startswith(f"It failed: {beginning}")
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize(
    "error",
    [
        of(errno.ECONNREFUSED),
        of(errno.ENOENT),
        RuntimeError("other"),
        NameTaken("x"),
        TimeoutError(),
        KeyError(),
    ],
)
def test_anything_else_stays_as_it_is(error: Exception) -> None:
    assert explain(error) is None
    with pytest.raises(type(error)) as caught, explained("It failed"):
        raise error
    assert caught.value is error


def test_only_where_a_process_is_started_does_eagain_mean_the_limit_of_processes() -> None:
    assert explain(BlockingIOError(errno.EAGAIN, "try again")) is None
    with (
        pytest.raises(OutOfResources, match="no process can be started"),
        explained("No", starts_process=True),
    ):
        raise BlockingIOError(errno.EAGAIN, "try again")
