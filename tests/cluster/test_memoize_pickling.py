"""Memoized functions in the workers of joblib, multiprocessing and cloudpickle, and in the kernels of notebooks."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrocache import LocalCluster, PyroCacheClient

cloudpickle = pytest.importorskip("cloudpickle")

DEFINITIONS = """
import sys, multiprocessing, functools
from pyrocache import PyroCacheClient
cache = PyroCacheClient(ADDRESS)
offset = 1

@cache.memoize()
def fibonacci(n):
    print("called", n, flush=True)
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

def scaled_by(factor):
    @cache.memoize(tags=lambda number: [f"n{number}"])
    def scale(number):
        print("scaling", flush=True)
        return factor * number + offset
    return scale

class Shop:
    def __init__(self, town):
        self.town = town

    @cache.memoize()
    def find(self, item):
        print("finding", flush=True)
        return f"{item} in {self.town}"

    @cache.memoize()
    @classmethod
    def kind(cls, number):
        return f"{cls.__name__} {number}"

@cache.memoize()
async def slowly(number):
    return number

double = scaled_by(2)
"""


def script(tmp_path: Path, address: str, main: str) -> list[str]:
    """The lines that a script prints."""
    text = DEFINITIONS.replace("ADDRESS", repr(address)) + "\nif __name__ == '__main__':\n"
    (tmp_path / "script.py").write_text(text + textwrap.indent(textwrap.dedent(main), "    "))
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.full
def test_workers_of_joblib_find_what_the_script_cached(
    shared_cluster: LocalCluster, cache: PyroCacheClient, tmp_path: Path
) -> None:
    pytest.importorskip("joblib")
    lines = script(
        tmp_path,
        shared_cluster.nameserver,
        """
        from joblib import Parallel, delayed
        fibonacci(3), double(1), Shop("Oslo").find("tea"), Shop.kind(1)
        print("workers", flush=True)
        with Parallel(n_jobs=2) as parallel:
            print(parallel(delayed(fibonacci)(n) for n in (3, 2, 1)))
            print(parallel(delayed(double)(n) for n in (1, 1)))
            print(parallel(delayed(Shop("Oslo").find)(item) for item in ("tea", "tea")))
            print(parallel(delayed(Shop.kind)(n) for n in (1, 1)))
            print(parallel(delayed(lambda n: fibonacci(n) + double(1))(n) for n in (3, 3)))
            keys = parallel(delayed(lambda f, n: f.key(n))(f, 1) for f in (fibonacci, double, slowly, Shop.kind))
            print(keys == [f.key(1) for f in (fibonacci, double, slowly, Shop.kind)])
        """,
    )
    before, after = lines[: lines.index("workers")], lines[lines.index("workers") + 1 :]
    assert before == ["called 3", "called 2", "called 1", "called 0", "scaling", "finding"]
    assert after == [
        "[2, 1, 1]",
        "[3, 3]",
        "['tea in Oslo', 'tea in Oslo']",
        "['Shop 1', 'Shop 1']",
        "[5, 5]",
        "True",
    ]


@pytest.mark.parametrize("method", ["spawn", "fork", pytest.param("forkserver", marks=pytest.mark.full)])
def test_workers_of_multiprocessing_find_what_the_script_cached(
    shared_cluster: LocalCluster, cache: PyroCacheClient, tmp_path: Path, method: str
) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    main = f"""
        fibonacci(2), Shop("Oslo").find("tea")
        print("workers", flush=True)
        with multiprocessing.get_context({method!r}).Pool(1) as pool:
            print(pool.apply(fibonacci, (2,)), pool.map(Shop("Oslo").find, ["tea"]), flush=True)
            print(pool.apply(Shop.kind, (1,)), pool.apply(fibonacci.key, (1,)) == fibonacci.key(1))
    """
    lines = script(tmp_path, shared_cluster.nameserver, main)
    assert lines[lines.index("workers") + 1 :] == ["1 ['tea in Oslo']", "Shop 1 True"]


def test_functions_by_value_for_another_program(
    shared_cluster: LocalCluster, cache: PyroCacheClient, tmp_path: Path
) -> None:
    main = f"""
        import cloudpickle
        fibonacci(2), double(1), Shop("Oslo").find("tea")
        things = [fibonacci, double, Shop("Oslo").find, Shop, slowly, cache.memoize()(abs), lambda: fibonacci(2)]
        with open({str(tmp_path / "pickle")!r}, "wb") as file:
            cloudpickle.dump((things, [thing.key(1) for thing in things[:3]]), file)
    """
    script(tmp_path, shared_cluster.nameserver, main)
    code = f"""
        import asyncio, pickle
        things, keys = pickle.load(open({str(tmp_path / "pickle")!r}, "rb"))
        fibonacci, double, find, shop, slowly, absolute, caller = things
        print(fibonacci(2), double(1), find("tea"), shop("Oslo").find("tea"), asyncio.run(slowly(1)), absolute(-1))
        print(caller(), keys == [thing.key(1) for thing in things[:3]])
        print(fibonacci.original.__globals__["fibonacci"] is fibonacci)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["1 3 tea in Oslo tea in Oslo 1 1", "1 True", "True"]


def scaled_by(cache: PyroCacheClient, factor: int) -> Any:
    @cache.memoize(ttl_seconds=60, cache_if=lambda result: True)
    def scale(number: int) -> int:
        return factor * number

    return scale


def of_module(number: int) -> int:
    """Is memoized under another name."""
    return number


def test_copies_have_the_settings_and_share_a_client(cache: PyroCacheClient) -> None:
    original = scaled_by(cache, 2)
    copies = [pickle.loads(cloudpickle.dumps(original)) for _ in range(3)]
    assert [copy(5) for copy in copies] == [10, 10, 10]
    assert {copy.key(5) for copy in copies} == {original.key(5)}
    assert 50 < (cache.ttl(original.key(5)) or 0) <= 60
    assert len({id(copy._plan.settings.context) for copy in copies}) == 1


def test_a_function_that_is_memoized_under_another_name(cache: PyroCacheClient) -> None:
    memoized = cache.memoize()(of_module)
    assert pickle.loads(pickle.dumps(memoized))(1) == 1
    assert pickle.loads(pickle.dumps(memoized)).key(1) == memoized.key(1)
    bound = cache.memoize()([1, 2].index)
    assert pickle.loads(cloudpickle.dumps(bound)).key(2) == bound.key(2)


# Notebooks ---------------------------------------------------------------------------------------------------


class Kernel:
    """A Jupyter kernel."""

    def __init__(self) -> None:
        manager = pytest.importorskip("jupyter_client.manager")
        self._manager, self._client = manager.start_new_kernel(kernel_name="python3", startup_timeout=60)

    def run(self, cell: str) -> str:
        """What a cell prints."""
        printed: list[str] = []

        def output(message: Any) -> None:
            content = message["content"]
            printed.append(content.get("text") or "\n".join(content.get("traceback", ())))

        self._client.execute_interactive(textwrap.dedent(cell), timeout=60, output_hook=output)
        return "".join(printed).strip()

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


@pytest.fixture
def kernels() -> Iterator[tuple[Kernel, Kernel]]:
    pytest.importorskip("ipykernel")
    pair = Kernel(), Kernel()
    yield pair
    for kernel in pair:
        kernel.close()


@pytest.mark.full
def test_a_notebook_and_its_workers_and_another_notebook_share_results(
    shared_cluster: LocalCluster, cache: PyroCacheClient, kernels: tuple[Kernel, Kernel]
) -> None:
    pytest.importorskip("joblib")
    pytest.importorskip("pandas")
    one, other = kernels
    cell = f"""
        import pandas as pd
        from pyrocache import PyroCacheClient
        cache = PyroCacheClient({shared_cluster.nameserver!r})
        frame = pd.DataFrame({{"v": [1.0, None, 3.0], "t": ["a", None, "b"]}})

        @cache.memoize()
        def total(frame, factor=1):
            print("computing")
            return float(factor * frame.v.sum())
        """
    workers = """
        from joblib import Parallel, delayed
        print(Parallel(n_jobs=2)(delayed(total)(frame, factor) for factor in (1, 1, 2)), total(frame, 2))
        """
    for kernel in (one, other):
        assert kernel.run(cell) == ""
    assert one.run("print(total(frame))") == "computing\n4.0"
    assert one.run("print(total(frame), total(frame.copy()))") == "4.0 4.0"
    assert other.run("print(total(frame))") == "4.0"
    assert one.run(workers).endswith("[4.0, 4.0, 8.0] 8.0")
    assert one.run(cell.replace("factor * frame", "10 * factor * frame")) == ""
    assert one.run("print(total(frame))") == "computing\n40.0"
    assert other.run("print(total(frame))") == "4.0"
