"""What a Jupyter notebook shows: of our objects cards, as HTML and as text, and of a call that fails few lines.

The lines of a failure are the user's own; the last one says what to do.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pyrocache import LocalCluster
from tests.support.hostile import is_plain, outline
from tests.support.processes import environment

jupyter_client = pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")

MOST_LINES = 15

SETUP = """
import threading, time
from pyrocache import LocalCluster, PyroCacheClient
cache = PyroCacheClient({nameserver!r}, timeout=1.0)
cache["text"] = "x"
few = list(range(50))
own = cache.namespace("own")
own[7] = 7
nowhere = PyroCacheClient("127.0.0.1:1", timeout=1.0)
killed = LocalCluster(1)
lone = killed.client(timeout=1.0)
lone["a"] = 1
killed.kill(0)
hanging = LocalCluster(1)
paused = hanging.client(timeout=60.0)
paused["a"] = 1
hanging.pause(0)
empty = LocalCluster(0)
nobody = empty.client(timeout=1.0)
closed = PyroCacheClient({nameserver!r})
closed.close()
stopped = LocalCluster(1)
ended = stopped.client()
stopped.stop()
lock = cache.lock("lock")
holder = threading.Thread(target=lambda: (lock.acquire(), time.sleep(60)), daemon=True)
holder.start()
class Broken:
    def __getstate__(self):
        return 1 / 0
class Renamed:
    pass
@cache.memoize()
def double(x):
    return 2 * x
@cache.memoize()
def inverse(x):
    return 1 / x
@cache.memoize()
async def later(x):
    return 1 / x
def factory():
    return 1 / 0
while not cache.stats().total.locks:
    time.sleep(0.01)
"""

NODE = "See which nodes answer with: pyrocache status --nameserver 127.0.0.1:"
CASES = {
    "nowhere.get('x')": "start one with: pyrocache nameserver --host 127.0.0.1 --port 1",
    "nobody.get('x')": "start some with: pyrocache nodes --nameserver 127.0.0.1:",
    "lone.get('a')": NODE,
    "lone['a'] = 2": NODE,
    "lone.get_many(['a', 'b'])": NODE,
    "lone.incr('n')": NODE,
    "len(lone)": NODE,
    "list(lone)": NODE,
    "lone.get_or_set('x', factory)": NODE,
    "lone.lock('x').acquire()": NODE,
    "cache.set('f', {'rows': [1, lambda: 1]})": "its ['rows'][1] is of type function",
    "cache['b'] = Broken()": "pickling it raised ZeroDivisionError",
    "cache.get(lambda: 1)": "cannot be made canonical",
    "double(threading.Lock())": "ignore=('x',)",
    "closed.get('x')": "make a new one",
    "ended.get('x')": "was stopped",
    "cache['x'] = bytes(300 * 2**20)": "--max-value",
    "lock.acquire(timeout=0.01) or lock.release()": "does not hold the lock",
    "cache.incr('text')": "not an int",
    "cache.get_or_set('x', factory)": "ZeroDivisionError: division by zero",
    "inverse(0)": "ZeroDivisionError: division by zero",
    "await later(0)": "ZeroDivisionError: division by zero",
    "cache['nothing']": "KeyError: 'nothing'",
    "del cache['nothing']": "KeyError: 'nothing'",
    "cache.pop('nothing')": "KeyError: 'nothing'",
    "cache.compute('nothing', abs)": "KeyError: 'nothing'",
    "cache.namespace('empty').popitem()": "no entry",
    "cache.set('x', 1, ttl=5)": "did you mean ttl_seconds?",
    "PyroCacheClient(timeout_seconds=5)": "did you mean timeout?",
    "cache.set('x', 1, -5)": "must be above 0",
    "cache.set('x', 1, tags='a')": "tags is a list of str",
    "cache.semaphore('x', 0)": "from 1 to",
    "cache.scan(5)": "takes a str or a tuple",
    "PyroCacheClient(timeout=-1)": "timeout must be",
    "cache['k'] = Renamed(); del Renamed; cache['k']": "a stored value",
}
USERS = {
    "cache.get_or_set('x', factory)": "in factory()",
    "inverse(0)": "in inverse(x)",
    "await later(0)": "in later(x)",
    "cache['b'] = Broken()": "in Broken.__getstate__(self)",
}


INTERRUPTED = [
    *("cache.get(7)", "cache.set(7, 7)", "cache.set(7, 7, 60)", "cache.delete(8)", "cache[7]", "7 in cache"),
    *("cache.get_many(few)", "cache.set_many(dict.fromkeys(few, 7))", "cache.delete_many([8, 9])"),
    *("cache.incr('n')", "cache.add(7, 7)", "cache.pop(8, None)", "cache.touch(7, 60)", "cache.ttl(7)"),
    *(
        "cache.get_entry(7)",
        "cache.get_entries(few)",
        "list(own.scan())",
        "list(own.items())",
        "len(cache)",
    ),
    *("cache.get_or_set(7, factory)", "cache.compute('c', lambda value: 7, 0)", "double(4)", "cache.ping()"),
    *("cache.invalidate_tag('t')", "cache.delete_prefix('zzz')", "cache.stats()", "cache.nodes()"),
    "with cache.lock('free'): pass",
    "cache.get_or_set(object(), lambda: time.sleep(60))",
    "cache.compute('d', lambda value: time.sleep(60), 0)",
    "lock.acquire()",
    "paused.get('a')",
]


@pytest.fixture(scope="module")
def manager(shared_cluster: LocalCluster) -> Iterator[Any]:
    """A kernel in which `SETUP` has run; its manager."""
    manager, client = jupyter_client.manager.start_new_kernel(env=environment())
    try:
        assert shown(client, SETUP.format(nameserver=shared_cluster.nameserver)) == []
        manager.its_client = client
        yield manager
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(manager: Any) -> Any:
    """A client of the kernel."""
    return manager.its_client


def shown(kernel: Any, code: str) -> list[str]:
    """Run a cell. Return the lines of its traceback, without their colours."""
    messages: list[Any] = []
    kernel.execute_interactive(code, output_hook=messages.append, timeout=60)
    errors = [message["content"] for message in messages if message["msg_type"] == "error"]
    text = "\n".join(line for error in errors for line in error["traceback"])
    return re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()


@pytest.mark.parametrize("code", CASES)
def test_a_failed_call_shows_few_lines(kernel: Any, code: str) -> None:
    lines = shown(kernel, code)
    print(*lines, sep="\n")
    assert 1 < len(lines) <= MOST_LINES
    assert CASES[code] in lines[-1]
    assert any(code in line for line in lines)
    assert any(USERS.get(code, "") in line for line in lines)


def displayed(kernel: Any, code: str) -> list[dict[str, str]]:
    """Run a cell. Return all that it displays, by type."""
    messages: list[Any] = []
    reply = kernel.execute_interactive(code, output_hook=messages.append, timeout=60)["content"]
    assert reply["status"] == "ok", reply
    kinds = ("execute_result", "display_data")
    return [message["content"]["data"] for message in messages if message["msg_type"] in kinds]


CARDS = {
    "cache": "PyroCacheClient",
    "cache.namespace('<script>').namespace('\\x1b[1m')": "namespace ('<script>', '\\x1b[1m')",
    "killed": "LocalCluster: 1 away",
    "hanging": "LocalCluster: 1 away",
    "stopped": "LocalCluster: stopped",
    "paused": "PyroCacheClient: 1 away",
    "nowhere": "pyrocache nameserver",
    "closed": "PyroCacheClient: closed",
    "AsyncPyroCacheClient({nameserver!r})": "AsyncPyroCacheClient",
    "cache.stats()": "Statistics of 3 nodes",
    "cache.stats().total": "Totals",
    "cache.stats().client": "misses on error",
    "cache.stats().total.latencies['stats']": "below",
    "cache.nodes()": "3 nodes",
    "own.get_entry(7)": "Entry",
}


@pytest.mark.parametrize("code", CARDS)
def test_an_object_is_displayed_as_html_and_as_text(
    kernel: Any, shared_cluster: LocalCluster, code: str
) -> None:
    cell = f"from pyrocache import AsyncPyroCacheClient\n{code}"
    (data,) = displayed(kernel, cell.replace("{nameserver!r}", repr(shared_cluster.nameserver)))
    assert data.keys() == {"text/html", "text/plain"}
    assert CARDS[code] in " ".join(data["text/plain"].split())
    assert is_plain(data["text/plain"])
    outline(data["text/html"])


@pytest.mark.full
def test_a_plot_is_displayed_once(kernel: Any) -> None:
    pytest.importorskip("matplotlib")
    for first in ("", "%matplotlib inline\nfrom matplotlib import pyplot\n"):
        (data,) = displayed(kernel, f"{first}cache.stats().plot()")
        assert "image/png" in data


@pytest.mark.full
@pytest.mark.parametrize("code", INTERRUPTED)
def test_an_interrupt_in_any_call_is_a_keyboard_interrupt_and_the_next_call_is_right(
    manager: Any, kernel: Any, code: str
) -> None:
    begun: list[Any] = []

    def interrupt(message: Any) -> None:
        if message["msg_type"] == "stream" and not begun:
            begun.append(message)
            time.sleep(0.05)
            manager.interrupt_kernel()

    cell = f"cache[7] = 7\nprint('begun', flush=True)\nwhile True:\n    {code}"
    reply = kernel.execute_interactive(cell, output_hook=interrupt, timeout=60)["content"]
    assert begun
    assert (reply["status"], reply.get("ename")) == ("error", "KeyboardInterrupt")
    check = "assert cache.set(7, 'now') and cache.get(7) == 'now' and cache.lock('free').acquire(timeout=5)"
    assert shown(kernel, check) == []
