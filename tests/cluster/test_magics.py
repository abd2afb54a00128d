"""``%%cached`` and ``%cache`` in an IPython shell of this process: what is cached, when it runs again, what is said."""

from __future__ import annotations

import linecache
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import pyrocache
from pyrocache import LocalCluster, PyroCacheClient
from pyrocache.runtime import secret_file
from tests.support.nodes import private_cluster
from tests.support.shells import running_shell

pytest.importorskip("IPython")
from IPython.core.error import UsageError


class Ran(NamedTuple):
    """What a cell has written to standard output and error, its exception, and its value."""

    out: str
    err: str
    error: BaseException | None
    result: Any


Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def shell() -> Iterator[Any]:
    with running_shell() as shell:
        shell.run_cell("%load_ext pyrocache")
        yield shell


@pytest.fixture
def run(shell: Any, cache: PyroCacheClient, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs cells in a notebook with the variable ``cache``."""
    begin(shell, cache)

    def run(*lines: str) -> Ran:
        done = shell.run_cell("\n".join(lines), store_history=True)
        shown = capsys.readouterr()
        return Ran(shown.out, shown.err, done.error_before_exec or done.error_in_exec, done.result)

    return run


def begin(shell: Any, cache: PyroCacheClient) -> None:
    """Remove the variables, as in a notebook that was just opened."""
    shell.reset(new_session=False)
    shell.user_ns["cache"] = cache


def names(shell: Any) -> set[str]:
    return (
        {name for name in shell.user_ns if not name.startswith("_")} - set(shell.user_ns_hidden) - {"cache"}
    )


def test_another_notebook_restores_the_variables(run: Run, shell: Any, cache: PyroCacheClient) -> None:
    cell = (
        "%%cached all",
        "import math, os.path as path",
        "from collections import *",
        "if True: import json as js",
        "a = b = [1]; c = {'a': a}",
        "for i in range(3): pass",
        "(first, *rest), last = (1, 2), 3",
        "try: 1 / 0",
        "except ZeroDivisionError as error: text = str(error)",
        "if (w := 5): x: int = w",
        "match [1, 2]:\n    case [m, *_]: pass",
        "%time t = 1",
        "exec('dynamic = 1')",
        "def set_global():\n    global g\n    g = 1",
        "set_global()",
        "class K:\n    pass",
        "k = K()",
    )
    assert "cached: " in run(*cell).out
    made = names(shell) - {"namedtuple"}
    begin(shell, cache)
    assert "Restored 'all'" in run(*cell).out
    assert names(shell) - {"namedtuple"} == made
    check = (
        "assert a is b is c['a'] and (i, first, rest, last, w, x, m, t, g) == (2, 1, [2], 3, 5, 5, 1, 1, 1)"
    )
    assert run(check).error is None
    assert (
        run("assert type(k) is K and js.loads('1') == dynamic == 1 and path.join and OrderedDict").error
        is None
    )
    assert run("assert text == 'division by zero'").error is None


def test_a_changed_cell_or_input_runs_again(run: Run) -> None:
    assert run("n = 1").error is None

    def ran(*lines: str) -> bool:
        shown = run(*lines)
        assert shown.error is None
        assert ("Ran 'x'" in shown.out) != ("Restored 'x'" in shown.out)
        return "Ran 'x'" in shown.out

    assert ran("%%cached x --inputs n", "y = n + 1")
    assert not ran("%%cached x --inputs n", "", "y = (n  # the next", "     + 1)")
    assert not ran("%%cached x --inputs=n", "y = n + 1")
    assert ran("%%cached x --inputs n", "y = n + 2")
    assert ran("%%cached x", "y = n + 2")
    run("n = 2")
    assert ran("%%cached x --inputs n", "y = n + 2")
    assert ran("%%cached x --inputs n --refresh", "y = n + 2")
    assert not ran("%%cached x --inputs n", "y = n + 2")
    run("def f(): return 1")
    assert ran("%%cached x --inputs f,n --inputs cache", "y = f()")
    assert not ran("%%cached x --inputs n , cache, f", "y = f()")
    run("def f(): return 2")
    assert ran("%%cached x --inputs f,n,cache", "y = f()")
    run("class A: x = 1")
    assert ran("%%cached x --inputs A", "y = A.x")
    run("class A: x = 2")
    assert ran("%%cached x --inputs A", "y = A.x")


def test_the_time_to_live(run: Run, cache: PyroCacheClient) -> None:
    run("%%cached x --ttl 500", "y = 1")
    (info,) = cache.scan(details=True)
    assert 400 < info.ttl_seconds <= 500


def test_an_input_that_is_missing_or_no_key_is_named_and_the_cell_does_not_run(run: Run, shell: Any) -> None:
    shown = run("%%cached x --inputs gone", "ran = 1")
    assert "UsageError: The input gone of %%cached is not defined" in shown.err
    run("import threading; lock = threading.Lock()")
    run("def f(x=lock): return x")
    assert (
        "The input lock of %%cached cannot be part of a key" in run("%%cached x --inputs lock", "ran = 1").err
    )
    shown = run("%%cached x --inputs f", "ran = 1")
    assert "The input f of %%cached cannot be part of a key: The defaults of f cannot be part" in shown.err
    assert shown.err.count("\n") == 1
    assert "ran" not in shell.user_ns


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "the following arguments are required: name"),
        ("x --nothing", "unrecognized arguments: --nothing"),
        ("x --ttl soon", "argument --ttl: invalid float value"),
        ("x --ttl 0", "ttl_seconds must be above 0"),
        ("x" * 3000, "A tag takes at most"),
    ],
)
def test_bad_arguments_are_one_sentence(run: Run, shell: Any, line: str, sentence: str) -> None:
    shown = run(f"%%cached {line}", "ran = 1")
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert "ran" not in shell.user_ns


def test_what_cannot_be_stored_is_named_and_the_variables_are_there(run: Run, shell: Any) -> None:
    run("class Elsewhere: pass")
    for lines, reason in {
        "import threading\ngood, bad = 1, threading.Lock()": "bad cannot be stored: a value of type _thread.lock",
        "bad = lambda: 1": "bad cannot be stored: a value of type function",
        "bad = [Elsewhere()]": "bad needs Elsewhere, which is defined in this notebook only",
        "x = 1\ndef bad(y=x): pass": "bad is defined in this notebook only",
        "if 1:\n    class bad: pass": "bad is defined in this notebook only",
        "from typing import TypeVar\nbad = TypeVar('bad')": "bad is defined in this notebook only",
    }.items():
        for _ in range(2):
            shell.user_ns.pop("bad", None)
            shown = run("%%cached x", lines)
            assert f"not cached: {reason}" in shown.out, shown
            assert "bad" in shell.user_ns


def test_names_are_deleted_as_the_cell_deleted_them(run: Run, shell: Any, cache: PyroCacheClient) -> None:
    cell = ("%%cached x", "a = 1", "b = 2", "del a", "del globals()['c']")
    run("a = b = c = d = 0")
    assert "cached: b." in run(*cell).out
    run("a = b = c = d = 0")
    assert "Restored" in run(*cell).out
    assert names(shell) == {"b", "d"}


def test_objects_that_the_cell_changes_are_restored(
    run: Run, shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_A_CELL", "0")
    cell = ("%%cached x", "d['x'] = 1", "import os", "os.environ['OF_A_CELL'] = '1'", "cache['own'] = 1")
    run("d = {}")
    shown = run(*cell)
    assert "cached: d." in shown.out
    assert "It also reads d: changes of it are noticed only with --inputs d." in shown.out
    run("d = {}")
    assert (
        "It also reads d: changes" in run(*cell).out
    )  # also where it is restored: the result may be outdated
    assert shell.user_ns["d"] == {"x": 1}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        *[
            ("1", "1.0"),
            ("True", "1"),
            ("0.0", "-0.0"),
            ("[1]", "[1.0]"),
            ("(1, {'a': 1})", "(1, {'a': True})"),
        ],
        *[("{1: 2, 3: 4}", "{3: 4, 1: 2}"), ("{1}", "{1.0}"), ("[1, [2]]", "[[1], 2]")],
    ],
)
def test_an_input_that_is_equal_but_not_the_same_is_another_one(run: Run, before: str, after: str) -> None:
    cell = ("%%cached x --inputs n", "y = repr(n)")
    run(f"n = {before}")
    assert "Ran 'x'" in run(*cell).out
    run(f"n = {before}")
    assert "Restored 'x'" in run(*cell).out
    run(f"n = {after}")
    assert "Ran 'x'" in run(*cell).out
    assert run("y").result == repr(eval(after))


def test_what_a_with_statement_binds_is_not_stored(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("3 rows")
    cell = (
        "%%cached x",
        f"with open({str(path)!r}) as f, open({str(path)!r}) as g:",
        "    rows = f.read()",
        "g = 1",
    )
    assert "cached: g, rows." in run(*cell).out.replace("rows, g", "g, rows")
    run("del f, g, rows")
    assert "Restored 'x'" in run(*cell).out
    assert run("rows, g").result == ("3 rows", 1)
    assert isinstance(run("f").error, NameError)


def test_it_is_said_what_to_do_with_a_variable_that_does_not_pickle(run: Run) -> None:
    assert (
        "If it is not needed later, end the cell with: del f"
        in run("%%cached x", "f = open('/dev/null')").out
    )
    assert "cached: no variables" in run("%%cached x", "f = open('/dev/null')", "f.close()", "del f").out


def test_what_a_cell_reads_besides_is_said(run: Run) -> None:
    run("import math; a = b = c = 1\ndef f(): pass")
    shown = run("%%cached x --inputs c", "x = a + b + c + math.pi", "f()", "y = x; len([])")
    assert "It also reads a, b, f: changes of these are noticed only with --inputs c,a,b,f." in shown.out


def test_a_semicolon_hides_the_value(run: Run) -> None:
    assert "Out[" not in run("%%cached x", "1 + 1;").out
    assert "]: 2" in run("%%cached x", "1 + 1").out
    assert "]: 2" in run("%%cached x", "1 + 1  # why").out


def test_it_may_be_below_another_magic(run: Run) -> None:
    assert "Ran 'x'" in run("%%time", "%%cached x", "y = 1").out
    assert "Restored 'x'" in run("%%cached x", "y = 1").out


def test_cells_cannot_be_nested_or_await(run: Run) -> None:
    for lines in (["%%cached y", "z = 1"], ["%%time", "%%cached y", "z = 1"]):
        assert "cannot be used within a %%cached cell" in run("%%cached x", *lines).err
    assert "does not support await" in run("%%cached x", "await z").err
    assert "Ran 'x'" in run("%%cached x", "z = 1").out


def test_an_exception_is_that_of_the_cell_and_caches_nothing(run: Run, cache: PyroCacheClient) -> None:
    for _ in range(2):
        shown = run("%%cached x", "y = 1", "raise KeyError('why')")
        assert isinstance(shown.error, KeyError)
        assert "Ran" not in shown.out
    for error in (SystemExit, KeyboardInterrupt, GeneratorExit):
        assert type(run("%%cached x", f"raise {error.__name__}").error) is error
    shown = run("%%cached x", "if True:", "    y = = 1")
    assert isinstance(shown.error, UsageError)
    assert shown.err.splitlines() == [
        "UsageError: Line 3 of the cell is not valid Python: invalid syntax.",
        "        y = = 1",
        "            ^",
    ]
    assert len(cache) == 0


def test_a_value_that_does_not_decode_here_is_a_reason_to_run(
    run: Run, shell: Any, cache: PyroCacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("module_of_one_notebook")
    exec("class Thing: pass", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    run("import sys")
    cell = ("%%cached x", "thing = sys.modules['module_of_one_notebook'].Thing()")
    assert "cached: thing." in run(*cell).out
    cls = module.Thing
    del module.Thing
    shell.user_ns["sys"] = type(
        "Sys", (), {"modules": {"module_of_one_notebook": type("M", (), {"Thing": dict})}}
    )
    shown = run(*cell)
    assert (
        "It was cached before, but not restored: a stored value's class module_of_one_notebook.Thing"
        in shown.out
    )
    assert "Ran 'x'" in shown.out
    assert "cached: thing." in shown.out
    assert shown.err == ""
    module.Thing = cls
    assert "Restored 'x'" in run(*cell).out


def test_definitions_that_fail_here_are_a_reason_to_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "module_of_one_notebook", ModuleType("module_of_one_notebook"))
    run("gone = False")
    cell = (
        "%%cached x",
        "if gone: sys.modules['module_of_one_notebook'] = json",
        "import module_of_one_notebook",
    )
    assert "Ran 'x'" in run(*cell).out
    monkeypatch.setitem(sys.modules, "module_of_one_notebook", None)
    run("import sys, json; gone = True")
    shown = run(*cell)
    assert "not restored: its imports and definitions failed here with ModuleNotFoundError" in shown.out
    assert "Ran 'x'" in shown.out


def test_a_value_that_is_too_large_and_a_node_that_is_away(run: Run, shell: Any) -> None:
    with (
        private_cluster(nodes=1, max_value="1MiB") as own,
        own.client(timeout=1.0, on_error="miss") as client,
    ):
        shell.user_ns["cache"] = client
        shown = run("%%cached x", "y = bytes(2 * 2**20)")
        assert "Ran 'x'" in shown.out
        assert "not cached: " in shown.out
        assert "--max-value" in shown.out
        assert shown.err == ""
        own.kill(0)
        shown = run("%%cached x", "y = 1")
        assert shell.user_ns["y"] == 1
        assert "not cached: " in shown.out
        assert "See which nodes answer" in shown.out
    shown = run("%%cached x", "y = 2")
    assert isinstance(shown.error, pyrocache.ClientClosed)
    assert shell.user_ns["y"] == 1


@pytest.mark.parametrize(
    "options", [{"serializer": "json"}, {"serializer": "msgpack"}, {"compress_above": 1}]
)
def test_clients_with_other_settings(
    run: Run, shell: Any, shared_cluster: LocalCluster, options: dict[str, Any]
) -> None:
    with PyroCacheClient(shared_cluster.nameserver, namespace="own", on_error="miss", **options) as client:
        client.clear()
        shell.user_ns["cache"] = client
        cell = ("%%cached x", "print('shown')", "y = {'a': [1, 'b', None]}", "y")
        assert "cached: y." in run(*cell).out
        del shell.user_ns["y"]
        shown = run(*cell)
        assert shown.out.startswith("shown\n")
        assert "Restored 'x'" in shown.out
        assert shell.user_ns["y"] == {"a": [1, "b", None]}
        run("class Elsewhere: pass")
        assert "not cached: y " in run("%%cached x", "y = Elsewhere()").out


def test_signed_cells(run: Run, shell: Any, shared_cluster: LocalCluster, tmp_path: Any) -> None:
    keys = str(tmp_path / "signing.key")
    secret_file.make(keys)
    with PyroCacheClient(shared_cluster.nameserver, namespace="signed", signing_key_file=keys) as client:
        shell.user_ns["cache"] = client
        run("n = object")
        cell = ("%%cached x --inputs n", "y = 1")
        assert "cached: y." in run(*cell).out
        assert "Restored 'x'" in run(*cell).out


def test_without_a_variable_the_usual_cluster_is_connected(
    run: Run, shell: Any, shared_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[PyroCacheClient] = []

    def connect() -> PyroCacheClient:
        made.append(PyroCacheClient(shared_cluster.nameserver))
        return made[-1]

    monkeypatch.setattr(pyrocache, "connect", connect, raising=False)
    shell.user_ns["cache"] = "another thing"
    assert "Ran 'x'" in run("%%cached x", "y = 1").out
    assert "Restored 'x'" in run("%%cached x", "y = 1").out
    assert len(made) == 1
    run("%reload_ext pyrocache")
    assert "closed" in repr(made[0])


def test_the_line_magic(run: Run, shell: Any, cache: PyroCacheClient) -> None:
    for line in ("%cache status", "%cache"):
        assert f"name server  {cache._context.config.nameserver}" in run(line).out
    assert "Statistics of 3 nodes" in run("%cache stats").out
    assert run("%cache set 'user:1' [1, 2]").error is None
    assert run("%cache set ('a', 1) {'b': 2}").error is None
    assert isinstance(run("%cache set word word").error, NameError)
    assert run("%cache set word 'word'").error is None
    assert dict(cache.items()) == {"user:1": [1, 2], ("a", 1): {"b": 2}, "word": "word"}
    assert run("%cache get 'user:1'").result == [1, 2]
    assert run("word = 'user:1'").error is None
    assert run("%cache get word").result == [1, 2]
    assert "There is no entry with the key 'gone'" in run("%cache get gone").out
    assert run("%cache delete ('a', 1)").out == "Deleted ('a', 1).\n"
    assert "There is no entry" in run("%cache delete ('a', 1)").out
    for line, sentence in {
        "%cache lose": "%cache knows status, get, set, delete, stats, clear, not 'lose'",
        "%cache get": "takes a key",
        "%cache set a": "takes a key and a value",
        "%cache get user:1": "'user:1' is not a Python expression",
        "%cache stats all": "takes no argument",
    }.items():
        shown = run(line)
        assert sentence in shown.err
        assert shown.err.count("\n") == 1
    assert isinstance(run("%cache get 1 / 0").error, ZeroDivisionError)


def test_clearing_removes_cells_only(run: Run, cache: PyroCacheClient) -> None:
    cache["other"] = 1
    for name in ("one", "two", "'t h r e e'"):
        run(f"%%cached {name}", "y = 1")
    assert "Removed 1 cached cell of 'one'. Other entries stay" in run("%cache clear one").out
    assert "Removed 1 cached cell of 't h r e e'" in run("%cache clear 't h r e e'").out
    assert "Removed 1 cached cell. Other" in run("%cache clear").out
    assert list(cache) == ["other"]


def completed(shell: Any, line: str) -> list[str]:
    return list(shell.complete(None, line, len(line))[1])


def test_completion(run: Run, shell: Any, cache: PyroCacheClient) -> None:
    cache.set_many({"user:1": 1, "user:2": 2, 3: 3})
    run("%%cached x", "frame = figure = 1")
    assert completed(shell, "%cache st") == ["status", "stats"]
    assert set(completed(shell, "%cache get ")) == {"'user:1'", "'user:2'", "3"}
    assert set(completed(shell, "%cache delete 'user:")) == {"1'", "2'"}
    assert set(completed(shell, "cache['us")) == {"user:1", "user:2"}
    assert completed(shell, "%%cached name --re") == ["--refresh"]
    assert set(completed(shell, "%%cached name --inputs f")) == {"frame", "figure"}
    assert completed(shell, "%%cached name --inputs frame,fi") == ["figure"]
    assert completed(shell, "%%cached name --inputs frame, fi") == ["figure"]
    run("%%cached 'x y'", "frame = 2")
    cache.set(3, 3, tags=["pyrocache.cell"])
    assert set(completed(shell, "%cache clear ")) == {"'x y'", "x"}
    assert completed(shell, "%cache clear 'x ") == ["y'"]


@pytest.mark.timeout(30)  # each client below has a timeout of a minute
def test_the_completion_of_keys_is_bounded_and_raises_nothing(cache: PyroCacheClient) -> None:
    cache.set_many({str(number): number for number in range(3000)})
    assert len(cache._ipython_key_completions_()) == 1000
    assert PyroCacheClient("127.0.0.1:1", timeout=60)._ipython_key_completions_() == []
    with private_cluster(nodes=2) as cluster, cluster.client(timeout=60.0) as client:
        client.set_many({str(number): number for number in range(100)})
        cluster.pause(0)
        assert len(client._ipython_key_completions_()) < 100
        cluster.resume(0)
    assert client._ipython_key_completions_() == []


ATOMIC = ("held = True", "self._running = False")
"""What begins ``finally`` clauses: the interpreter handles no signal before it, though it traces the line."""


def interrupted_at(shell: Any, step: int, cell: str, kept: list[BaseException]) -> bool:
    """Run a cell and interrupt it at a line of its magic, counted from 0. Return whether there are so many lines.

    The exception is kept, as a notebook keeps the last one, with all objects that its traceback refers to.
    """
    steps = -1

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal steps
        filename = frame.f_code.co_filename
        if "pyrocache/jupyter/" not in filename or filename.endswith("/cell.py"):  # which changes nothing
            return None
        if event == "line" and not linecache.getline(filename, frame.f_lineno).strip().endswith(ATOMIC):
            steps += 1
            if steps == step:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        shell.run_cell_magic("cached", "x", cell)
    except KeyboardInterrupt as error:
        assert steps == step
        kept.append(error)
    finally:
        sys.settrace(before)
    return steps >= step


@pytest.mark.parametrize(
    "kept", [pytest.param(False, marks=pytest.mark.full, id="run"), pytest.param(True, id="restored")]
)
def test_an_interrupt_at_each_line_leaves_everything_as_it_was(
    shell: Any, run: Run, cache: PyroCacheClient, capsys: pytest.CaptureFixture[str], kept: bool
) -> None:
    def state() -> list[object]:
        owners = (sys.stdout, sys.stderr, shell.display_pub, shell.displayhook)
        attributes = [{name for name, value in vars(owner).items() if callable(value)} for owner in owners]
        magics = shell.magics_manager.registry["CacheMagics"]
        return [*attributes, signal.getsignal(signal.SIGINT), magics._running, sys.displayhook]

    cell = "def f(): return 1\nprint('shown')\ndisplay(2)\ny = z = [f()]\n"
    shell.run_cell_magic("cached", "x", cell)
    before = state()
    errors: list[BaseException] = []
    for step in range(2000):
        if not kept:
            cache.clear()
        more = interrupted_at(shell, step, cell, errors)
        assert state() == before, step
        capsys.readouterr()
        if not more:
            break
        if not kept:
            # A lease that is left would let this wait, which it says.
            shell.run_cell_magic("cached", "x", cell)
            shown = capsys.readouterr().out
            assert shown.startswith("shown\n2\n"), (step, shown)
        assert shell.user_ns["y"] is shell.user_ns["z"]
    assert 30 < step < 2000


def test_it_can_be_unloaded_and_loaded(run: Run, shell: Any) -> None:
    run("%unload_ext pyrocache")
    assert "not found" in run("%cache").err
    assert completed(shell, "%cache st") == []
    run("%load_ext pyrocache")
    assert completed(shell, "%cache st") == ["status", "stats"]
