"""Calls about many keys show a progress bar when they are asked to, and end it in any case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyrocache import PartialFailure, PyroCacheClient, SerializationError
from tests.contract.client.conftest import ClientClass

tqdm = pytest.importorskip("tqdm")

KEYS = 2500
ENTRIES = {f"k{number}": number for number in range(KEYS)}

CALLS: dict[str, tuple[Callable[[PyroCacheClient, bool | None], Any], Any]] = {
    "set_many": (lambda cache, progress: cache.set_many(ENTRIES, 60, progress=progress), KEYS),
    "get_many": (lambda cache, progress: cache.get_many(ENTRIES, progress=progress), ENTRIES),
    "scan": (lambda cache, progress: set(cache.scan(progress=progress)), set(ENTRIES)),
    "scan details": (
        lambda cache, progress: {info.key for info in cache.scan(details=True, progress=progress)},
        set(ENTRIES),
    ),
    "items": (lambda cache, progress: dict(cache.items(progress=progress)), ENTRIES),
    "values": (lambda cache, progress: sorted(cache.values(progress=progress)), list(range(KEYS))),
    "delete_many": (lambda cache, progress: cache.delete_many(ENTRIES, progress=progress), KEYS),
    "delete_prefix": (lambda cache, progress: cache.delete_prefix("k", progress=progress), KEYS),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_bar_is_shown_if_it_was_asked_for(
    cache: PyroCacheClient, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    call, expected = CALLS[name]
    cache.set_many(ENTRIES)
    for progress in (None, False, True):
        capfd.readouterr()
        assert call(cache, progress) == expected
        shown = capfd.readouterr()
        assert shown.out == ""
        if progress is not True:
            assert shown.err == ""
        if name.startswith("delete"):
            cache.set_many(ENTRIES)
    title = name.partition(" ")[0]
    assert shown.err.startswith(f"\r{title}: ")
    total = f"{KEYS}/{KEYS} [" if name.endswith("many") else f"{title}: {KEYS} keys ["
    assert total in shown.err.split("\r")[-1]
    assert len(tqdm.std.tqdm._instances) == 0


@pytest.mark.parametrize("name", CALLS)
def test_what_progress_is_is_checked_at_the_call(cache: PyroCacheClient, name: str) -> None:
    calls: dict[str, Callable[..., Any]] = {
        **{name: call for name, (call, _) in CALLS.items()},
        "scan": lambda cache, progress: cache.scan(progress=progress),
        "items": lambda cache, progress: cache.items(progress=progress),
        "values": lambda cache, progress: cache.values(progress=progress),
    }
    with pytest.raises(TypeError, match="progress is"):
        calls[name](cache, "yes")


class Unwanted:
    """A class that a careful client does not read, in values and in keys."""

    def __reduce__(self) -> object:
        return Unwanted, ()


@pytest.mark.parametrize("name", ["scan", "scan details", "items", "values", "get_many"])
def test_an_error_in_the_middle_ends_the_bar_also_if_it_is_kept(
    cache: PyroCacheClient, client_class: ClientClass, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    cache.set_many(ENTRIES)
    cache["k5"] = Unwanted()
    cache[Unwanted()] = 1
    nameserver = cache._context.config.nameserver
    call, _ = CALLS[name]
    with client_class(nameserver, allowed_classes=()) as careful:
        with pytest.raises((SerializationError, PartialFailure)) as kept:
            call(careful, True)
        assert kept.value.__traceback__ is not None
        assert len(tqdm.std.tqdm._instances) == 0
    assert capfd.readouterr().err.startswith(f"\r{name.partition(' ')[0]}: ")


def test_an_iterator_that_is_left_ends_its_bar(
    cache: PyroCacheClient, capfd: pytest.CaptureFixture[str]
) -> None:
    cache.set_many(ENTRIES)
    for entries in (lambda: cache.scan(batch=10, progress=True), lambda: cache.items(progress=True)):
        iterator = iter(entries())
        next(iterator)
        assert len(tqdm.std.tqdm._instances) == 1
        del iterator
    assert len(tqdm.std.tqdm._instances) == 0
    assert capfd.readouterr().err.endswith("\n")
