"""How a method becomes a remote method of `CacheNode`, for our server and for a stock Pyro5 daemon."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from Pyro5.server import expose

_Method = TypeVar("_Method", bound=Callable[..., Any])


def exposed(method: _Method) -> _Method:
    """Apply Pyro5's ``expose``, with a type."""
    expose(method)
    return method


def forwarded(method: _Method, *, remote: bool = True) -> _Method:
    """Return a method of a node that calls ``method`` of its `Coordination`. It is exposed if it is ``remote``."""

    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        return method(self._coordination, *arguments, **options)

    return exposed(call) if remote else call  # type: ignore[return-value]
