"""Run the sessions of a document in which `await` works at the prompt, as in ``python -m asyncio``."""

from __future__ import annotations

import ast
import asyncio
import builtins
import doctest
import inspect
import io
import sys
import traceback
import types
from contextlib import redirect_stdout
from typing import Any

_FLAGS = doctest.ELLIPSIS


def run_sessions(text: str, name: str) -> tuple[list[str], int]:
    """Run all examples in one namespace and one event loop. Return what failed, and the number of examples."""
    examples = doctest.DocTestParser().get_examples(text, name)
    scope: dict[str, Any] = {"__name__": "__main__"}
    checker = doctest.OutputChecker()
    failed = []
    with asyncio.Runner() as runner:
        for example in examples:
            printed, error = _run(runner, example.source, name, scope)
            right = (
                checker.check_output(example.want, printed, _FLAGS)
                if error is None
                else example.exc_msg is not None and checker.check_output(example.exc_msg, error, _FLAGS)
            )
            if not right:
                failed.append(f"line {example.lineno + 1}: {example.source}{printed}{error or ''}")
    return failed, len(examples)


def _run(runner: asyncio.Runner, source: str, name: str, scope: dict[str, Any]) -> tuple[str, str | None]:
    """Run one example. Return what it prints, and its exception as a traceback ends with it."""
    code = compile(source, name, "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    output = io.StringIO()
    display, sys.displayhook = sys.displayhook, sys.__displayhook__
    try:
        with redirect_stdout(output):
            result = types.FunctionType(code, scope)()
            if inspect.iscoroutine(result):
                runner.run(result)
    except Exception as error:
        return output.getvalue(), "".join(traceback.format_exception_only(error))
    finally:
        sys.displayhook = display
        vars(builtins).pop("_", None)
    return output.getvalue(), None
