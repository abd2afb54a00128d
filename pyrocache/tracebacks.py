"""What a traceback tells: whether an exception came from outside, and which of its frames are the user's.

A signal handler, or another thread by ``PyThreadState_SetAsyncExc``, can raise an exception of any class in the middle
of any code, for example to limit its time. A handler of errors that catches classes as wide as ``Exception`` or
``OSError`` asks `came_from_outside` and raises such an exception again as it is. This is for ``except`` clauses only:
it costs some microseconds. `BaseException`s that are not an `Exception`, such as `KeyboardInterrupt`, are not
turned into another error or a miss anywhere.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import sys
from types import FrameType, TracebackType
from typing import Any, TypeVar

_E = TypeVar("_E", bound=Exception)

_CO_OPTIMIZED, _CO_VARARGS = 0x1, 0x4  # as in `inspect`, whose import takes long

_RAISED_BY_NOTHING_ELSE = {"RESUME", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_BACKWARD_JIT"}
_RAISE_STATEMENTS = {"RAISE_VARARGS", "RERAISE"}
_RAISED_WITHOUT_ARGUMENTS = {
    "builtins",
    "_queue",
    "queue",
    "asyncio.exceptions",
}  # the modules of such classes


def came_from_outside(error: BaseException) -> bool:
    """Return whether a signal handler or another thread raised an exception that was just caught.

    The interpreter passes to a signal handler the frame that it interrupts, which no other function gets from its own
    caller. An exception that another thread sets has a class and no arguments, and no statement raises it.
    """
    entry = error.__traceback__
    while entry is not None:
        following = entry.tb_next
        if following is None:
            return _was_set_by_a_thread(error, entry)
        if _was_given_a_frame(following.tb_frame, entry.tb_frame):
            return True
        entry = following
    return False


def _was_given_a_frame(frame: FrameType, caller: FrameType) -> bool:
    """Return whether a function's arguments include the frame of its caller. ``caller`` is the frame before it."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & _CO_VARARGS)
    for value in map(frame.f_locals.get, code.co_varnames[:count]):
        for given in value if type(value) is tuple else (value,):
            # The import system removes some frames from tracebacks, but not from the chain of callers.
            if type(given) is FrameType and (given is caller or given is frame.f_back):
                return True
    return False


def _was_set_by_a_thread(error: BaseException, entry: TracebackType) -> bool:
    """Return whether nothing in the innermost frame raised the exception."""
    from opcode import opname

    code = entry.tb_frame.f_code
    if not code.co_flags & _CO_OPTIMIZED:  # a module, or the frame that Cython makes up for compiled code
        return False
    instruction = opname[code.co_code[entry.tb_lasti]]
    if instruction in _RAISED_BY_NOTHING_ELSE:
        return True
    unlikely = instruction in _RAISE_STATEMENTS or type(error).__module__ in _RAISED_WITHOUT_ARGUMENTS
    return not unlikely and not error.args


def cause_of(error: Exception) -> Exception | None:
    """Return what to chain to an error that replaces ``error``, which the user's own code or a call into C raised.

    That is ``error`` with the user's frames only; None if there are none: it would tell nothing more.

    Raises:
        The exception itself, if it came from outside.
    """
    if came_from_outside(error):
        raise error
    frames = users_frames(error.__traceback__)
    return None if frames is None else error.with_traceback(frames)


def users_frames(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of this package, and of what it calls in the standard library."""
    entries = []
    in_ours = False
    while traceback is not None:
        package = str(traceback.tb_frame.f_globals.get("__name__")).partition(".")[0]
        ours = package == __name__.partition(".")[0]
        in_ours = ours or (in_ours and package in sys.stdlib_module_names and package != "__main__")
        if not in_ours:
            entries.append(traceback)
        traceback = traceback.tb_next
    users: TracebackType | None = None
    for entry in reversed(entries):
        users = TracebackType(users, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return users


def brief(error: _E) -> _E:
    """Return ``error``, to be raised, after making it one that notebooks show with the user's frames only."""
    error._render_traceback_ = _shown_now  # type: ignore[attr-defined]  # not a method: it would keep the error alive
    return error


def _shown_now() -> list[str]:
    error = sys.exc_info()[1] or sys.last_value
    assert error is not None, "IPython shows it"
    return shown_in_ipython(error)


def shown_in_ipython(error: BaseException) -> list[str]:
    """Return the lines that IPython shows for an exception: its own, of the user's frames only.

    IPython, also in a Jupyter kernel, calls a method ``_render_traceback_`` of an exception for them.
    """
    shell: Any = sys.modules["IPython"].get_ipython()
    frames = users_frames(error.__traceback__)
    lines: list[str] = shell.InteractiveTB.structured_traceback(type(error), error, frames)
    return lines
