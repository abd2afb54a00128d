"""`run_cached`: run a cell, or restore what an earlier run of it has assigned and displayed.

The run is a load as `PyroCacheClient.get_or_set` makes it: of all notebooks, one runs the cell and the others wait for
it. The lease of the run ends with its connection, so with the kernel at the latest. What the cell has assigned is
never lost: if it cannot be stored, one line says why. What cannot be read or reached is a reason to run the cell.

Thread safety: not thread-safe; for the thread that runs the cell.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from IPython.core.error import UsageError

from pyrocache.client.client import PyroCacheClient
from pyrocache.client.context import NewTtl
from pyrocache.client.features import load_once, scan
from pyrocache.client.features.identity import content_identity
from pyrocache.client.features.load_once import ALWAYS, IF_MISSING, Found, Load, LoadTask, load_options
from pyrocache.errors import CacheUnavailable, InvalidKey, PyroCacheError, WaitTimeout
from pyrocache.jupyter.cell import Cell, compile_cell
from pyrocache.jupyter.interrupts import Interrupts
from pyrocache.jupyter.outputs import MOST_BYTES, Recorder, replay
from pyrocache.jupyter.variables import CellCodec, Stored, Variables, restore
from pyrocache.protocol.limits import MOST_SECONDS

TAG = "pyrocache.cell"
"""The tag of all cells. Each has another one, which ends with ``:`` and its name."""

_QUIET_SECONDS = 1.0  # of a wait for another notebook, before a line says so


class Request(NamedTuple):
    """What ``%%cached`` is asked for.

    Attributes:
        name: of the cell, for people and `tag_of`.
        ttl_seconds: the time to live of what is stored.
        inputs: the names of variables that the cell depends on.
        refresh: whether to run the cell in any case.
    """

    name: str
    ttl_seconds: NewTtl
    inputs: Sequence[str]
    refresh: bool


def tag_of(name: str) -> str:
    """Return the tag of the cells of a name."""
    return f"{TAG}:{name}"


def names_of_cells(client: PyroCacheClient) -> list[str]:
    """Return names of cells that are cached: some, if there are many. Raises no error of ours."""
    tag = client._context.encode_tag(TAG)
    keys = scan.some_keys(client._context, tag=tag)
    return sorted(
        {key[1] for key in keys if isinstance(key, tuple) and key[:1] == (TAG,)}
    )  # others may use the tag too


def run_cached(shell: Any, client: PyroCacheClient, request: Request, body: str) -> None:
    """Run the cell, or restore it.

    Raises:
        UsageError: an argument or the cell is not valid, an input is missing or cannot be part of a key, or the cell
            awaits.
        PyroCacheError: the cluster refuses this client. The cell has not run.
        Exception: that of the cell.
    """
    __tracebackhide__ = True
    try:
        cell = compile_cell(shell, body)
    except SyntaxError as error:
        raise UsageError(_place(error)) from None  # its traceback would show only IPython and this package
    run = _Run(shell, cell, request)
    load, key = run.load(client), request.name
    found = None
    try:
        found = _find(load, key)
        task = found.task
        if task is None:
            restored: Stored = found.value
            restore(shell, restored)
            replay(shell, restored["outputs"])
            print(_restored(key, restored), *run.unnoticed(), sep="\n")
            return
        run.with_task(task)
    except BaseException:
        if found is not None and found.task is not None:
            found.task.drop()  # the notebook keeps the exception, and with it the connection that has the lease
        raise
    print(*run.report(task), sep="\n")


def _find(load: Load[Stored], name: str) -> Found:
    """Return what is stored of a cell, or the task to run it. Wait while another notebook runs it."""
    __tracebackhide__ = True
    assert load.notice is not None
    try:
        try:
            return load_once.find(load, _QUIET_SECONDS)
        except WaitTimeout:
            print(f"{name!r} is running in another notebook; waiting for its result.", flush=True)
            try:
                return load_once.find(load, None)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("The cell has not run.") from None  # without the frames of the wait
    except CacheUnavailable as error:
        load.notice("", error)
        return Found(None, LoadTask(load))  # without a lease


class _Run:
    """A run of a cell, by the factory of its load."""

    def __init__(self, shell: Any, cell: Cell, request: Request) -> None:
        self._shell = shell
        self._cell = cell
        self._request = request
        self._reasons: list[Exception] = []  # why nothing was read or stored
        self._variables = Variables(shell, cell)
        self._interrupts = Interrupts()
        self._stored: Stored | None = None

    def load(self, client: PyroCacheClient) -> Load[Stored]:
        """Return the load that `load_once` understands. Raises `UsageError` if an argument is not valid."""
        request, context = self._request, client._context
        context = context.changed(
            codec=CellCodec(context, self._shell, self._cell),
            config=replace(context.config, on_error="raise"),  # so that the line can say why
        )
        try:
            tags = context.encode_tags([TAG, tag_of(request.name)])
            ttl = context.new_ttl(request.ttl_seconds)
            options = load_options(ttl, 0, 0, None, MOST_SECONDS)
        except (TypeError, ValueError) as error:
            raise UsageError(f"%%cached: {error}") from None
        key = context.encode_key((TAG, request.name, self._cell.digest, self._inputs()))
        return Load(
            context,
            key,
            self._run,
            options,
            lambda: tags,
            refresh=ALWAYS if request.refresh else IF_MISSING,
            notice=lambda _, error: self._reasons.append(error),
        )

    def _inputs(self) -> tuple[tuple[str, str], ...]:
        found = []
        for name in sorted(set(self._request.inputs)):
            try:
                found.append((name, content_identity(self._shell.user_ns[name])))
            except KeyError:
                raise UsageError(
                    f"The input {name} of %%cached is not defined: run the cell that defines it, or leave it out of "
                    "--inputs."
                ) from None
            except InvalidKey as error:
                reason = str(error).rstrip(".")
                raise UsageError(
                    f"The input {name} of %%cached cannot be part of a key: {reason}. Name what it was made of instead."
                ) from None
        return tuple(found)

    def with_task(self, task: LoadTask) -> None:
        """Run the cell with the lease of its load, store its result, and raise its exception."""
        __tracebackhide__ = True
        interrupts = self._interrupts
        try:
            interrupts.start()
            with task:
                task.loaded(task.load.tags(), task.load.factory())
        finally:
            interrupts.stop()  # they are held here, also if the cell has failed
        task.settle()

    def _run(self) -> Stored:
        """Run the cell. Return what is to be stored. Interrupts are held before and after."""
        __tracebackhide__ = True
        shell, recorder, interrupts = self._shell, Recorder(self._shell), self._interrupts
        begun = time.monotonic()
        try:
            recorder.begin()
            interrupts.release()
            for code in self._cell.codes:
                exec(code, shell.user_global_ns, shell.user_ns)
            _show_figures()
        finally:
            interrupts.held = True
            recorder.end()
        self._stored = {
            **self._variables.stored(),
            "outputs": recorder.outputs(),
            "cut": recorder.cut,
            "seconds": time.monotonic() - begun,
            "at": time.time(),
        }
        return self._stored

    def report(self, task: LoadTask) -> list[str]:
        """Return lines that say what was done."""
        stored, name = self._stored, self._request.name
        assert stored is not None, "the cell has run"
        ran = f"Ran {name!r} in {_duration(stored['seconds'])}; "
        if task.stored:
            cut = f" (of its output, {MOST_BYTES >> 20} MiB)" if stored["cut"] else ""
            lines = [f"{ran}cached: {_list_of(stored)}{cut}."]
            if self._reasons:
                lines.insert(0, f"It was cached before, but not restored: {_sentence(self._reasons[0])}")
        else:
            reason = _sentence(self._reasons[-1]) if self._reasons else "it was removed or changed meanwhile."
            lines = [f"{ran}not cached: {reason}"]
        return lines + self.unnoticed()

    def unnoticed(self) -> list[str]:
        """Return a line about what the cell reads and is not among its inputs, if there is such a thing."""
        unnoticed = [each for each in self._variables.unnoticed if each not in self._request.inputs]
        if not unnoticed:
            return []
        names = [*dict.fromkeys([*self._request.inputs, *unnoticed])]
        return [
            f"It also reads {', '.join(unnoticed)}: changes of {'these are' if len(unnoticed) > 1 else 'it are'} "
            f"noticed only with --inputs {','.join(names)}."
        ]


def _show_figures() -> None:
    """Display the figures of matplotlib now, which its inline backend would display after the recording."""
    backend: Any = sys.modules.get("matplotlib_inline.backend_inline")
    if backend is not None:
        backend.flush_figures()  # not by triggering `post_execute`, whose callbacks swallow an interrupt


def _restored(name: str, stored: Stored) -> str:
    age = time.time() - stored["at"]
    ago = f"{_duration(age)} ago" if age >= 1 else "just now"
    cut = f" Its output was cut at {MOST_BYTES >> 20} MiB." if stored["cut"] else ""
    return (
        f"Restored {name!r} from the cache: {_list_of(stored)} ({_duration(stored['seconds'])} of work, "
        f"{ago}).{cut}"
    )


def _list_of(stored: Stored) -> str:
    return ", ".join([*stored["variables"], *stored["modules"]]) or "no variables"


def _place(error: SyntaxError) -> str:
    """Return what is wrong with a cell, and where."""
    line = (error.text or "").rstrip()
    marked = f"\n    {line}\n    {' ' * ((error.offset or 1) - 1)}^" if line else ""
    where = f"Line {error.lineno} of the cell" if error.lineno else "The cell"
    end = "" if error.msg.endswith((".", "?")) else "."
    return f"{where} is not valid Python: {error.msg}{end}{marked}"


def _sentence(error: Exception) -> str:
    text = str(error) if isinstance(error, PyroCacheError) else type(error).__name__
    return text if text.endswith(".") else f"{text}."


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
