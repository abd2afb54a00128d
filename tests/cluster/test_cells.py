"""``%%cached`` in Jupyter kernels: what a second notebook restores, who runs, and what an interrupt leaves behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyrocache import LocalCluster, PyroCacheClient
from tests.support.kernels import Kernel, running_kernel

pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")

SETUP = """
from pyrocache import PyroCacheClient
cache = PyroCacheClient({nameserver!r}, timeout=5.0)
%load_ext pyrocache
"""


@pytest.fixture(scope="module")
def kernels(shared_cluster: LocalCluster) -> Iterator[tuple[Kernel, Kernel]]:
    """Two kernels that use the cluster."""
    setup = SETUP.format(nameserver=shared_cluster.nameserver)
    with running_kernel(setup) as first, running_kernel(setup) as second:
        yield first, second


@pytest.fixture(autouse=True)
def _empty(cache: PyroCacheClient) -> None:
    """Let each test begin with an empty cache."""


def test_a_second_kernel_restores_variables_and_output(kernels: tuple[Kernel, Kernel]) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    first, second = kernels
    cell = """%%cached features
import matplotlib.pyplot as plt
import pandas as pd
class Model:
    def __init__(self, rows): self.rows = rows
def doubled(number): return 2 * number
print("hello")
import sys; print("careful", file=sys.stderr)
df = pd.DataFrame({"a": [1, 2, 3]})
df["b"] = df.a * 2
same = df
model = Model(df)
figure, axes = plt.subplots()
axes.plot(df.a, df.b)
del figure, axes
display({"shown": 1})
df
"""
    ran, restored = first.run(cell), second.run(cell)
    assert ran.reply["status"] == restored.reply["status"] == "ok", (ran.error, restored.error)
    assert "cached: df, same, model." in ran.text
    assert "Restored 'features' from the cache: df, same, model" in restored.text
    for shown in (ran, restored):
        assert "hello\n" in shown.text
        assert "careful\n" in shown.text
        assert sum("image/png" in data for data in shown.outputs) == 1
        assert shown.kinds.count("execute_result") == 1
        assert next(data["text/html"] for data in shown.outputs if "text/html" in data).count("<tr") == 4
    assert ran.outputs == restored.outputs
    check = "assert same is df and model.rows is df and type(model) is Model and doubled(2) == 4; df.loc[0, 'b'] = 7"
    assert second.run(check).error == []
    assert first.run("import matplotlib.pyplot as plt; plt.get_fignums()").outputs[0]["text/plain"] == "[]"


def test_two_kernels_at_once_run_a_cell_once_also_if_the_one_that_waits_is_interrupted(
    kernels: tuple[Kernel, Kernel], cache: PyroCacheClient
) -> None:
    first, second = kernels
    cell = """%%cached slow
import time
print("begun", flush=True)
while not cache.get("go"): time.sleep(0.01)
number = cache.incr("runs")
"""
    running = first.start(cell)
    assert first.next_text() == "begun\n"
    waiting = second.start(cell)
    assert "'slow' is running in another notebook" in second.next_text()
    second.manager.interrupt_kernel()
    interrupted = second.finish(waiting)
    assert interrupted.error[-1] == "KeyboardInterrupt: The cell has not run."
    assert len(interrupted.error) <= 15
    waiting = second.start(cell)
    assert "'slow' is running in another notebook" in second.next_text()
    cache["go"] = True
    assert "Ran 'slow'" in first.finish(running).text
    assert "Restored 'slow' from the cache: number" in second.finish(waiting).text
    assert second.run("assert number == 1").error == []
    assert cache["runs"] == 1


def test_an_exception_shows_the_lines_of_the_user_and_caches_nothing(kernels: tuple[Kernel, Kernel]) -> None:
    first, _ = kernels
    cell = "%%cached failing\nrows = [1]\nrows[0] / 0\n"
    for _ in range(2):
        shown = first.run(cell)
        assert shown.reply["ename"] == "ZeroDivisionError"
        assert any("----> 3 rows[0] / 0" in line for line in shown.error)
        assert len(shown.error) <= 15
        assert not any("pyrocache/jupyter" in line for line in shown.error)


@pytest.mark.full
def test_a_kernel_that_is_killed_lets_the_next_one_run(
    kernels: tuple[Kernel, Kernel], shared_cluster: LocalCluster
) -> None:
    cell = """%%cached killed
import time
print("begun", flush=True)
if cache.incr("killed") == 1: time.sleep(600)
"""
    with running_kernel(SETUP.format(nameserver=shared_cluster.nameserver)) as doomed:
        doomed.start(cell)
        assert doomed.next_text() == "begun\n"
        waiting = kernels[0].start(cell)
        assert "is running in another notebook" in kernels[0].next_text()
    assert "Ran 'killed'" in kernels[0].finish(waiting).text


def test_the_kernel_completes_keys_and_options(
    kernels: tuple[Kernel, Kernel], cache: PyroCacheClient
) -> None:
    first, _ = kernels
    cache["user:1"] = 1
    assert "'user:1'" in first.completions("%cache get ")
    assert "--refresh" in first.completions("%%cached name --re")
    assert any("user:1" in match for match in first.completions("cache["))


INTERRUPTED = """
import random, signal, statistics, sys, threading, time
import numpy

shell = get_ipython()
dice = random.Random(1)
body = '''
import math
class Point:
    def __init__(self, x): self.x = x
for number in range(20):
    print(number)
    print(number, file=sys.stderr)
    display({"number": number}, display_id=str(number % 4))
point = Point(3)
array = numpy.ones(200_000)
clone = array
total = sum(math.sqrt(each) for each in range(20_000))
array
'''

def state():
    hook, publisher = shell.displayhook, shell.display_pub
    return [
        sys.stdout, sys.stderr, "write" in vars(sys.stdout), "write" in vars(sys.stderr), sys.displayhook,
        "publish" in vars(publisher), "clear_output" in vars(publisher), "write_format_data" in vars(hook),
        "start_displayhook" in vars(hook), "finish_displayhook" in vars(hook), signal.getsignal(signal.SIGINT),
        shell.magics_manager.registry["CacheMagics"]._running,
    ]

def run(name):
    shell.run_cell_magic("cached", name, body)

def measured(name):
    begun = time.perf_counter()
    run(name)
    return time.perf_counter() - begun

def interrupted(name, delay):
    done = threading.Event()
    def strike():
        done.wait(delay)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    thread = threading.Thread(target=strike)
    try:
        thread.start()
        run(name)
        done.set()  # it strikes now, if it did not before
        thread.join()
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        thread.join()

before = state()
run("kept")
seconds = [
    statistics.median(measured(f"warm{number}") for number in range(5)),
    statistics.median(measured("kept") for number in range(5)),
]
count = 0
"""

STRUCK = """
for _ in range(20):
    count += 1
    kept = dice.random() < 0.4
    name = "kept" if kept else f"new{count}"
    interrupted(name, dice.uniform(0, 1.1 * seconds[kept]))
    assert state() == before, (count, state(), before)
    array = clone = None
    run(name)
    assert array is clone and array.sum() == 200_000 and type(point) is Point and total > 0
assert cache.set("alive", count) and cache.get("alive") == count
"""


@pytest.mark.full
@pytest.mark.timeout(400)
def test_interrupts_at_200_random_moments_leave_kernel_and_client_well(
    kernels: tuple[Kernel, Kernel], cache: PyroCacheClient
) -> None:
    first, second = kernels
    assert first.run(INTERRUPTED).error == []
    for _ in range(10):
        shown = first.run(STRUCK)
        assert shown.error == []
        # A lease that was left would let the next run of the same cell wait, which it says.
        assert "is running in another notebook" not in shown.text
        assert first.run("print('out'); display(1)").text == "out\n"
        assert first.run("1 + 1").outputs[0]["text/plain"] == "2"
    assert cache["alive"] == 200
    assert second.run(INTERRUPTED.partition("before =")[0] + "run('new200' if cache else '')").error == []


@pytest.mark.full
def test_an_interrupt_of_the_kernel_caches_nothing(kernels: tuple[Kernel, Kernel]) -> None:
    first, second = kernels
    cell = "%%cached held\nimport time\nx = 1\nprint('begun', flush=True)\ntime.sleep(600)"
    for _ in range(3):
        request = first.start(cell)
        assert first.next_text() == "begun\n"
        first.manager.interrupt_kernel()
        assert first.finish(request).reply["ename"] == "KeyboardInterrupt"
    request = second.start(cell)
    assert second.next_text() == "begun\n"
    second.manager.interrupt_kernel()
    assert second.finish(request).reply["ename"] == "KeyboardInterrupt"
