"""Memoized functions, methods and coroutine functions."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pyrocache import ClientClosed, InvalidKey, LocalCluster, NodeUnavailable, PyroCacheClient, WaitTimeout
from tests.support.nodes import private_cluster

SOON = 5.0


class Counted:
    """Calls, in the order in which they came."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __len__(self) -> int:
        return len(self.calls)

    def __call__(self, *what: Any) -> None:
        self.calls.append(what)


@pytest.fixture
def called() -> Counted:
    return Counted()


# What is one call --------------------------------------------------------------------------------------------


def test_a_keyword_may_be_called_self(cache: PyroCacheClient, called: Counted) -> None:
    @cache.memoize()
    def named(**names: int) -> int:
        called()
        return sum(names.values())

    assert named(self=1, args=2) == named(args=2, self=1) == 3
    assert cache.get(named.key(self=1, args=2)) == 3
    assert named.invalidate(self=1, args=2)
    assert named.refresh(self=1, args=2) == 3
    assert len(called) == 2


def test_neither_defaults_nor_the_order_of_keywords_matter(cache: PyroCacheClient, called: Counted) -> None:
    @cache.memoize()
    def area(width: int, height: int = 2, *, unit: str = "m") -> str:
        called(width, height, unit)
        return f"{width * height} {unit}"

    assert area(3) == area(3, 2) == area(width=3) == area(height=2, width=3) == area(3, unit="m") == "6 m"
    assert len(called) == 1
    assert area(3, unit="km") == "6 km"
    assert area(2, 3) == "6 m"
    assert len(called) == 3


def test_any_arguments_there_are(cache: PyroCacheClient, called: Counted) -> None:
    @cache.memoize()
    def everything(first: object, /, second: object, *more: object, **named: object) -> object:
        called()
        return [first, second, more, named]

    for _ in range(2):
        assert everything([1], {"a": {2, 3}}, 4, x=5, y=None) == [
            [1],
            {"a": {2, 3}},
            (4,),
            {"x": 5, "y": None},
        ]
    everything([1], {"a": {3, 2}}, 4, y=None, x=5)
    assert len(called) == 1
    everything([1], {"a": {2, 3}}, 4, x=5)
    everything([1], second={"a": {2, 3}}, x=5)
    assert len(called) == 3


def test_arguments_that_do_not_fit_are_an_error_as_ever(cache: PyroCacheClient) -> None:
    @cache.memoize()
    def one(argument: int) -> int:
        return argument

    wrong: Any = one
    for call in (lambda: wrong(), lambda: wrong(1, 2), lambda: wrong(other=1)):
        with pytest.raises(TypeError):
            call()


def test_typed_tells_equal_arguments_of_different_types_apart(
    cache: PyroCacheClient, called: Counted
) -> None:
    def kinds(*things: object) -> list[str]:
        called()
        return [type(thing).__name__ for thing in things]

    plain, typed = cache.memoize()(kinds), cache.memoize(typed=True)(kinds)
    assert plain(1) == plain(1.0) == plain(True) == ["int"]
    assert [typed(1), typed(1.0), typed(True), typed(1)] == [["int"], ["float"], ["bool"], ["int"]]
    assert typed((1,)) == ["tuple"]
    assert len(called) == 5


def test_ignored_arguments_are_not_part_of_the_key(cache: PyroCacheClient, called: Counted) -> None:
    @cache.memoize(ignore=("verbose", "debug"))
    def double(number: int, verbose: bool = False, **options: object) -> int:
        called()
        return 2 * number

    assert double(2) == double(2, verbose=True) == double(2, debug=1) == 4
    assert len(called) == 1
    double(2, other=1)
    assert len(called) == 2


def test_key_returns_what_identifies_a_call(cache: PyroCacheClient, called: Counted) -> None:
    @cache.memoize(key=lambda text: text.lower())
    def length(text: str) -> int:
        called()
        return len(text)

    @cache.memoize(key=lambda text: text.lower())
    def first(text: str) -> str:
        return text[0]

    assert length("Text") == length("tEXT") == 4
    assert len(called) == 1
    assert first("Text") == "T", "another function's results are its own"


def test_the_error_names_an_argument_that_is_not_a_valid_key(cache: PyroCacheClient) -> None:
    @cache.memoize()
    def handle(first: int, handler: object) -> None: ...

    with pytest.raises(
        InvalidKey, match=r"argument 'handler' of .*handle cannot be a key.*ignore=\('handler',\)"
    ):
        handle(1, lambda: 0)

    @cache.memoize(key=lambda _: threading.Lock())
    def wrong(_: int) -> None: ...

    with pytest.raises(InvalidKey, match=r"key function of .*wrong cannot be a key"):
        wrong(1)


# What is kept ------------------------------------------------------------------------------------------------


def test_none_is_a_result(cache: PyroCacheClient, called: Counted) -> None:
    @cache.memoize()
    def nothing() -> None:
        called()

    assert nothing() is nothing() is None
    assert len(called) == 1


def test_a_result_is_cached_only_if_cache_if_returns_true(cache: PyroCacheClient, called: Counted) -> None:
    @cache.memoize(cache_if=lambda result: result is not None)
    def find(number: int) -> int | None:
        called()
        return number or None

    assert find(1) == find(1) == 1
    assert find(0) is find(0) is None
    assert len(called) == 3


def test_exceptions_are_not_cached(cache: PyroCacheClient, called: Counted) -> None:
    problem = LookupError("no such thing")

    @cache.memoize()
    def fail() -> None:
        called()
        raise problem

    for _ in range(2):
        with pytest.raises(LookupError) as caught:
            fail()
        assert caught.value is problem
    assert len(called) == 2


def test_results_expire_are_tagged_and_refreshed(cache: PyroCacheClient, called: Counted) -> None:
    @cache.memoize(ttl_seconds=60, tags=lambda user: [f"user:{user}"])
    def profile(user: int) -> int:
        called()
        return len(called)

    assert [profile(1), profile(2), profile(1)] == [1, 2, 1]
    assert 50 < (cache.ttl(profile.key(1)) or 0) <= 60
    assert cache.invalidate_tag("user:1") == 1
    assert [profile(1), profile(2)] == [3, 2]
    assert profile.refresh(user=2) == 4
    assert profile(2) == 4
    assert cache.get(profile.key(2)) == 4
    assert profile.invalidate(2)
    assert not profile.invalidate(2)
    assert cache.get(profile.key(2)) is None
    assert profile.original(2) == 5
    assert cache.get(profile.key(2)) is None


def test_an_expired_result_is_served_while_one_caller_makes_a_new_one(cache: PyroCacheClient) -> None:
    began, end = threading.Event(), threading.Event()
    results = iter(["old", "new"])

    @cache.memoize(ttl_seconds=0.1, stale_seconds=60, name="slow")  # an Event is no part of a key
    def slow() -> str:
        result = next(results)
        if result == "new":
            began.set()
            assert end.wait(30)
        return result

    assert slow() == "old"
    time.sleep(0.2)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(slow)
        assert began.wait(SOON)
        assert slow() == "old"
        end.set()
        assert first.result(SOON) == "new"


def test_refreshing_takes_over_from_whoever_is_loading(cache: PyroCacheClient) -> None:
    began, end = threading.Event(), threading.Event()

    @cache.memoize(name="slow")
    def slow(what: object = None) -> object:
        if not began.is_set():
            began.set()
            assert end.wait(30)
            return "outdated"
        return "fresh"

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(slow)
        assert began.wait(SOON)
        waiter = threads.submit(slow)
        assert slow.refresh() == "fresh"
        assert waiter.result(SOON) == "fresh"
        end.set()
        assert first.result(SOON) == "outdated"
    assert slow() == "fresh"


def test_invalidate_discards_a_load_under_way(cache: PyroCacheClient) -> None:
    began, end = threading.Event(), threading.Event()

    @cache.memoize(name="slow")
    def slow() -> str:
        if not began.is_set():
            began.set()
            assert end.wait(30)
            return "outdated"
        return "fresh"

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(slow)
        assert began.wait(SOON)
        slow.invalidate()
        end.set()
        assert first.result(SOON) == "outdated"
    assert slow() == "fresh"


def test_recursion_comes_to_an_end(cache: PyroCacheClient, called: Counted) -> None:
    @cache.memoize()
    def fibonacci(n: int) -> int:
        called()
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(40) == 102334155
    assert len(called) == 41


def test_many_threads_call_it_once(cache: PyroCacheClient, called: Counted) -> None:
    @cache.memoize()
    def slow(number: int) -> int:
        called()
        time.sleep(0.05)
        return number

    with ThreadPoolExecutor(50) as threads:
        assert set(threads.map(slow, [7] * 100)) == {7}
    assert len(called) == 1


# What it looks like ------------------------------------------------------------------------------------------


def documented(a: int, b: str = "b") -> str:
    """What it says."""
    return b * a


def test_it_looks_like_the_function(cache: PyroCacheClient) -> None:
    memoized = cache.memoize()(documented)
    assert memoized.__name__ == "documented"  # type: ignore[attr-defined]
    assert memoized.__doc__ == "What it says."
    assert inspect.signature(memoized) == inspect.signature(documented)
    assert memoized.original is documented
    assert callable(memoized)
    assert "documented" in repr(memoized)


@dataclass(frozen=True)
class Shop:
    """Something with methods."""

    name: str


def make_shop(cache: PyroCacheClient, called: Counted) -> Any:
    @dataclass
    class Other:
        name: str

        @cache.memoize(ignore=("self",))
        def of_all(self, number: int) -> str:
            called("of_all")
            return f"{self.name} {number}"

        @cache.memoize(key=lambda self, number: (self.name, number))
        def of_each(self, number: int) -> str:
            called("of_each")
            return f"{self.name} {number}"

        @cache.memoize()
        @classmethod
        def of_class(cls, number: int) -> str:
            called("of_class")
            return f"{cls.__name__} {number}"

        @classmethod
        @cache.memoize(ignore=("cls",))
        def of_class_below(cls, number: int) -> str:
            called("of_class_below")
            return f"{cls.__name__} {number}"

        @cache.memoize()
        @staticmethod
        def of_none(number: int) -> int:
            called("of_none")
            return number

        @staticmethod
        @cache.memoize()
        def of_none_below(number: int) -> int:
            called("of_none_below")
            return number

    return Other


def test_methods_with_self_ignored_or_identified(cache: PyroCacheClient, called: Counted) -> None:
    kind = make_shop(cache, called)
    one, other = kind("one"), kind("other")
    assert one.of_all(1) == other.of_all(1) == kind.of_all(one, 1) == "one 1"
    assert [one.of_each(1), other.of_each(1), kind("one").of_each(number=1)] == ["one 1", "other 1", "one 1"]
    assert len(called) == 3
    assert one.of_each.invalidate(1)
    assert other.of_each.key(1) == kind.of_each.key(other, 1)
    assert one.of_each.refresh(1) == "one 1"
    assert one.of_each.original(2) == "one 2"
    assert str(inspect.signature(one.of_each)) == "(number: 'int') -> 'str'"


def test_static_and_class_methods_in_either_order(cache: PyroCacheClient, called: Counted) -> None:
    kind = make_shop(cache, called)
    for holder in (kind, kind("one")):
        assert holder.of_none(5) == holder.of_none_below(5) == 5
        assert holder.of_class_below(5) == "Other 5"
    assert len(called) == 3
    with pytest.raises(InvalidKey, match="'cls'"):
        kind.of_class(1)  # a class that cannot be imported by its name identifies nothing


class Base:
    """Something whose methods are memoized once there is a cache."""

    number = 1

    def own(self) -> str:
        return f"{type(self).__name__} {self.number}"

    @classmethod
    def of_class(cls) -> str:
        return cls.__name__


class Derived(Base):
    """Another class."""


def test_self_and_cls_are_part_of_the_key_by_default(
    cache: PyroCacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Base, "own", cache.memoize()(Base.own))
    monkeypatch.setattr(Base, "of_class", cache.memoize()(Base.__dict__["of_class"]))
    changed = Base()
    changed.number = 2
    assert [Base().own(), Derived().own(), changed.own(), Base().own()] == [
        "Base 1",
        "Derived 1",
        "Base 2",
        "Base 1",
    ]
    assert [Base.of_class(), Derived.of_class(), Base.of_class(), Derived().of_class()] == [
        *("Base", "Derived", "Base", "Derived"),
    ]


def test_a_bound_method_can_be_memoized(cache: PyroCacheClient) -> None:
    one, other = Base(), Derived()
    assert cache.memoize()(one.own)() == "Base 1"
    assert cache.memoize()(other.own)() == "Derived 1"


@pytest.mark.parametrize("what", [Shop, (n for n in ()), "text", 5, None])
def test_only_functions_can_be_memoized(cache: PyroCacheClient, what: Any) -> None:
    with pytest.raises(TypeError, match="memoize is for functions"):
        cache.memoize()(what)


def test_a_key_function_has_the_arguments_in_full_however_they_are_given(cache: PyroCacheClient) -> None:
    calls = []

    @cache.memoize(key=lambda x, y, *, z: (x, y, z), tags=lambda x, y, *, z: [f"y{y}"])
    def add(x: int, y: int = 2, *, z: int = 3) -> int:
        calls.append((x, y, z))
        return x + y + z

    assert [add(1), add(1, 2), add(y=2, x=1), add(1, z=3)] == [6, 6, 6, 6]
    assert add(1, 4) == 8
    assert calls == [(1, 2, 3), (1, 4, 3)]
    assert cache.invalidate_tag("y2") == 1
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        add()  # type: ignore[call-arg]


def test_invalid_uses_are_refused(cache: PyroCacheClient) -> None:
    anything: Any = cache

    def generator() -> Any:
        yield 1

    async def asynchronous_generator() -> Any:
        yield 1

    for wrong in (generator, asynchronous_generator):
        with pytest.raises(TypeError, match="generators"):
            cache.memoize()(wrong)
    with pytest.raises(TypeError, match=r"@cache.memoize\(\)"):
        anything.memoize(documented)
    with pytest.raises(TypeError, match="ignore is a list"):
        cache.memoize(ignore="self")
    with pytest.raises(ValueError, match="'c', which is no argument"):
        cache.memoize(ignore=("c",))(documented)
    with pytest.raises(ValueError, match="not both"):
        cache.memoize(key=len, ignore=("a",))
    with pytest.raises(TypeError, match="name is a str"):
        cache.memoize(name=b"bytes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name is empty"):
        cache.memoize(name="")
    with pytest.raises(TypeError, match="tag"):
        cache.memoize(tags="tag")
    with pytest.raises(ValueError, match="ttl_seconds"):
        cache.memoize(ttl_seconds=0)


# Which function it is ----------------------------------------------------------------------------------------


def run(code: str, *arguments: str, **options: Any) -> str:
    """What a Python process that runs ``code`` prints."""
    command = [sys.executable, *(("-c", textwrap.dedent(code)) if code else ()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, **options)
    return done.stdout.strip()


SCRIPT = """
import sys
from pyrocache import PyroCacheClient
cache = PyroCacheClient(sys.argv[1])

@cache.memoize()
def compute(number):
    print("called", end=" ")
    return {expression}

print(compute(10))
"""


@pytest.mark.asyncio_full
@pytest.mark.parametrize("as_a_file", [True, pytest.param(False, marks=pytest.mark.full)])
def test_an_edited_function_of_a_script_does_not_serve_the_old_result(
    shared_cluster: LocalCluster, cache: PyroCacheClient, tmp_path: Path, as_a_file: bool
) -> None:
    def outcome(expression: str) -> str:
        code = SCRIPT.replace("{expression}", expression)
        if not as_a_file:
            return run(code, shared_cluster.nameserver)
        (tmp_path / "script.py").write_text(code)
        return run("", str(tmp_path / "script.py"), shared_cluster.nameserver)

    assert outcome("number + 1") == "called 11"
    assert outcome("number + 1") == "11"
    assert outcome("number + 2") == "called 12"
    assert outcome("number + 1 if number in {'a', 'b', 'c', 10} else 0") == "called 11"
    assert outcome("number + 1 if number in {'a', 'b', 'c', 10} else 0") == "11", "whatever PYTHONHASHSEED is"
    assert outcome("number + 1") == "11"


def test_an_edited_cell_does_not_serve_the_old_result(cache: PyroCacheClient) -> None:
    cell = "@cache.memoize()\ndef compute(number):\n    return number {}\n"
    notebook: dict[str, Any] = {"cache": cache, "__name__": "__main__"}
    results = []
    for edit in ("+ 1", "+ 2", "+ 1"):
        exec(cell.format(edit), notebook)
        results.append((notebook["compute"](10), notebook["compute"].key(10)))
    assert [result for result, _ in results] == [11, 12, 11]
    assert results[0][1] == results[2][1] != results[1][1]


def test_a_function_is_the_same_in_the_children_of_a_script(
    shared_cluster: LocalCluster, cache: PyroCacheClient, tmp_path: Path
) -> None:
    code = """
        import multiprocessing, sys
        from pyrocache import PyroCacheClient
        cache = PyroCacheClient(sys.argv[1])

        @cache.memoize()
        def compute(number):
            print("called", flush=True)
            return number

        if __name__ == "__main__":
            compute(10)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(compute, (10,)), flush=True)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(code))
    assert run("", str(tmp_path / "script.py"), shared_cluster.nameserver).split() == ["called", "10"]


@pytest.mark.blocking_only("a wrapper has no name by which it is found")
def test_it_is_pickled_by_name(cache: PyroCacheClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "documented", cache.memoize()(documented))
    assert pickle.loads(pickle.dumps(documented)) is documented
    monkeypatch.setattr(Base, "own", cache.memoize()(Base.own))
    assert pickle.loads(pickle.dumps(Derived().own))() == "Derived 1"


# Coroutines --------------------------------------------------------------------------------------------------


def test_coroutines_of_one_loop_call_it_once_and_the_loop_goes_on(
    cache: PyroCacheClient, called: Counted
) -> None:
    ticks = 0

    @cache.memoize(ttl_seconds=60)
    async def slow(number: int) -> int:
        called()
        await asyncio.sleep(0.3)  # by now the others wait
        enough = ticks + 5
        while ticks < enough:  # for ever, if they block the loop
            await asyncio.sleep(0.01)
        return number

    async def main() -> list[int]:
        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        results = await asyncio.gather(*(slow(7) for _ in range(200)))
        ticking.cancel()
        return results

    assert asyncio.run(main()) == [7] * 200
    assert len(called) == 1
    assert asyncio.iscoroutinefunction(slow)
    assert asyncio.run(main()) == [7] * 200
    assert len(called) == 1


def test_a_coroutine_has_what_a_function_has(cache: PyroCacheClient, called: Counted) -> None:
    class Place:
        @cache.memoize(ignore=("self",), cache_if=bool)
        async def load(self, number: int) -> int:
            called()
            return number

    async def main() -> None:
        place = Place()
        assert await place.load(1) == await place.load(1) == 1
        assert await place.load(0) == await place.load(0) == 0
        assert len(called) == 3
        assert await place.load.refresh(1) == 1
        assert await place.load.original(1) == 1
        assert len(called) == 5
        assert await asyncio.to_thread(cache.get, place.load.key(1)) == 1
        assert await place.load.invalidate(1)
        assert not await place.load.invalidate(1)

    asyncio.run(main())


def test_an_exception_of_a_coroutine_reaches_its_caller_and_another_caller_loads(
    cache: PyroCacheClient,
) -> None:
    problem = LookupError("the database is away")
    calls = 0

    @cache.memoize()
    async def flaky() -> str:
        nonlocal calls
        calls += 1
        first = calls == 1
        await asyncio.sleep(0.2)
        if first:
            raise problem
        return "loaded"

    async def main() -> list[Any]:
        return await asyncio.gather(*(flaky() for _ in range(5)), return_exceptions=True)

    results = asyncio.run(main())
    assert results.count("loaded") == 4
    assert [result for result in results if result != "loaded"] == [problem]


@pytest.mark.parametrize("delay", [0.0, 0.0002, 0.0005, 0.001, 0.002, 0.1])
def test_a_cancelled_coroutine_frees_its_lease_at_once(cache: PyroCacheClient, delay: float) -> None:
    @cache.memoize(lease_seconds=3600, key=lambda who: "the same")
    async def slow(who: str) -> str:
        await asyncio.sleep(60 if who == "first" else 0)
        return who

    async def main() -> str:
        first = asyncio.create_task(slow("first"))
        await asyncio.sleep(delay)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        async with asyncio.timeout(SOON):
            return await slow("second")

    assert asyncio.run(main()) == "second"


def test_a_coroutine_that_is_cancelled_while_it_waits_does_not_get_the_lease(cache: PyroCacheClient) -> None:
    release = threading.Event()
    loading = threading.Event()

    @cache.memoize(key=lambda who: "the same", lease_seconds=3600)
    async def slow(who: str) -> str:
        loading.set()
        while not release.is_set():
            await asyncio.sleep(0.01)
        return who

    async def main() -> tuple[str, str]:
        first = asyncio.create_task(slow("first"))
        while not loading.is_set():
            await asyncio.sleep(0.01)
        second = asyncio.create_task(slow("second"))
        while not await asyncio.to_thread(lambda: cache.stats().total.waiting):
            await asyncio.sleep(0.01)
        second.cancel()
        third = asyncio.create_task(slow("third"))
        first.cancel()
        release.set()
        async with asyncio.timeout(SOON):
            return await third, await slow("fourth")

    assert asyncio.run(main()) == ("third", "third")


def test_a_coroutine_that_is_closed_in_another_context_frees_its_lease(cache: PyroCacheClient) -> None:
    loading = False

    @cache.memoize(key=lambda seconds: "the same", lease_seconds=3600)
    async def slow(seconds: float) -> str:
        nonlocal loading
        loading = True
        await asyncio.sleep(seconds)
        return "loaded"

    async def main() -> str:
        abandoned: Any = slow(60)
        elsewhere = copy_context()
        while not loading:
            awaited = elsewhere.run(abandoned.send, None)
            if loading:
                break
            awaited._asyncio_future_blocking = False  # as a task does that waits for it
            await asyncio.wait([awaited])
        abandoned.close()
        async with asyncio.timeout(SOON):
            return await slow(0)

    assert asyncio.run(main()) == "loaded"


@pytest.mark.parametrize("steps", [1, 2])
def test_a_coroutine_that_is_closed_while_it_asks_frees_its_lease(cache: PyroCacheClient, steps: int) -> None:
    @cache.memoize(key=lambda seconds: "the same", lease_seconds=3600)
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "loaded"

    async def main() -> str:
        abandoned: Any = slow(60)
        awaited = abandoned.send(None)
        awaited._asyncio_future_blocking = False
        if steps == 2:
            await asyncio.wait([awaited])
        abandoned.close()
        async with asyncio.timeout(SOON):
            return await slow(0)

    assert asyncio.run(main()) == "loaded"


@pytest.mark.asyncio_full
def test_a_coroutine_waits_no_longer_than_wait_seconds(cache: PyroCacheClient) -> None:
    @cache.memoize(wait_seconds=0.2, lease_seconds=3600)
    async def slow() -> None:
        await asyncio.sleep(1)

    async def main() -> list[Any]:
        return await asyncio.gather(slow(), slow(), slow(), return_exceptions=True)

    results = asyncio.run(main())
    assert [type(result) for result in results].count(WaitTimeout) == 2
    assert results.count(None) == 1


def test_a_coroutine_whose_node_is_unreachable(called: Counted) -> None:
    with private_cluster(nodes=1) as cluster:
        strict, lenient = cluster.client(timeout=1), cluster.client(timeout=1, on_error="miss")

        async def function() -> str:
            called()
            return "result"

        strictly, leniently = (client.memoize(name="function")(function) for client in (strict, lenient))
        asyncio.run(strictly())
        asyncio.run(leniently())
        assert len(called) == 1
        cluster.kill(0)
        with pytest.raises(NodeUnavailable):
            asyncio.run(strictly())
        assert asyncio.run(leniently()) == "result"
        assert len(called) == 2


def test_coroutines_of_a_forked_child(cache: PyroCacheClient) -> None:
    @cache.memoize()
    async def double(number: int) -> int:
        return 2 * number

    assert asyncio.run(double(1)) == 2
    pid = os.fork()
    if pid == 0:
        good = asyncio.run(double(1)) == 2 and asyncio.run(double(2)) == 4
        os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_types_are_those_of_the_function(cache: PyroCacheClient) -> None:
    """What mypy and pyright make of it is in ``tests/typing``."""
    memoized: Callable[[int, str], str] = cache.memoize()(documented)
    assert memoized(2, "c") == "cc"


# Coroutines of the blocking client ---------------------------------------------------------------------------


@pytest.mark.blocking_only("the asyncio client needs no second backend")
def test_memoized_coroutines_start_no_thread(cache: PyroCacheClient) -> None:
    threads: set[str] = set()

    @cache.memoize()
    async def slow(number: int) -> int:
        await asyncio.sleep(0.01)
        threads.update(thread.name for thread in threading.enumerate())
        return number

    async def main() -> None:
        await slow(0)  # the name server is asked
        threads.clear()
        await asyncio.gather(*(slow(number % 10) for number in range(100)))

    before = {thread.name for thread in threading.enumerate()}
    asyncio.run(main())
    assert threads <= before


@pytest.mark.blocking_only("the asyncio client needs no second backend")
def test_the_statistics_of_a_client_are_also_those_of_its_memoized_coroutines(
    shared_cluster: LocalCluster, cache: PyroCacheClient
) -> None:
    with shared_cluster.client() as client:
        other = client.namespace("other")

        @other.memoize()
        async def unstorable() -> threading.Event:
            return threading.Event()

        asyncio.run(unstorable())
        assert other.stats().client.loads_not_stored == 1
        assert client.stats().client.loads_not_stored == 0
        (backend,) = client._context._others.all()
        backend.retries["retries"] += 2
        client._context.backend.retries["retries"] += 1
        assert client.stats().client.retries == 3
        other.reset_stats()
        assert other.stats().client.loads_not_stored == client.stats().client.retries == 0


@pytest.mark.blocking_only("the asyncio client needs no second backend")
def test_a_client_closes_the_connections_of_its_memoized_coroutines(shared_cluster: LocalCluster) -> None:
    with shared_cluster.client() as watching:

        def connections() -> int:
            return watching.stats().total.connections

        client = shared_cluster.client()
        inner = client.namespace("inner")
        memoized = [
            context.memoize(key=lambda number: number)(load)
            for context in (client, inner)
            for load in (later,)
        ]
        before = connections()

        async def main() -> None:
            await asyncio.gather(*(function(number) for function in memoized for number in range(20)))
            assert await asyncio.to_thread(connections) > before
            client.disconnect()
            while await asyncio.to_thread(connections) > before:
                await asyncio.sleep(0.01)
            assert await memoized[0](99) == 99
            await asyncio.to_thread(client.close)  # from another thread
            while await asyncio.to_thread(connections) > before:
                await asyncio.sleep(0.01)
            for function in memoized:
                with pytest.raises(ClientClosed):
                    await function(1)

        asyncio.run(asyncio.wait_for(main(), SOON))


async def later(number: int) -> int:
    return number
