"""Errors that name the argument that was meant: other caches call ``ttl_seconds`` ``ttl``, ``timeout``, ``ex``, ...

The methods that store entries take ``**unknown: Never`` to raise them. Type checkers refuse such arguments as they
refuse any unknown one, and `hide_unknown` leaves them out of the signatures that ``help`` and editors show.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from pyrocache.late_imports import at_first_use
from pyrocache.tracebacks import brief

_TTL = ("ttl_seconds",)
_WAIT = ("wait_seconds",)
_MEANT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("ttl", "ex", "px", "expire", "expires", "expiry", "expiration", "max_age", "lifetime"), _TTL
    ),
    **dict.fromkeys(("time", "seconds", "expires_in", "expire_in", "cache_timeout", "expiration_time"), _TTL),
    **dict.fromkeys(("expire_at", "exat", "expiry_time", "expire_time"), ("expires_at",)),
    "timeout": (*_TTL, *_WAIT),
    **dict.fromkeys(("wait", "blocking_timeout", "wait_timeout"), _WAIT),
    **dict.fromkeys(("timeout_seconds", "socket_timeout", "connect_timeout"), ("timeout",)),
    **dict.fromkeys(("tag", "group", "groups"), ("tags",)),
    **dict.fromkeys(("host", "address", "server", "servers", "url", "ns"), ("nameserver",)),
    **dict.fromkeys(("prefix", "key_prefix", "region"), ("namespace",)),
}


def unknown_argument(function: Callable[..., Any], unknown: Iterable[str]) -> TypeError:
    """Return the error for a call of ``function`` with named arguments that it does not have."""
    with at_first_use:
        from difflib import get_close_matches  # imported here: only mistakes need it
    name = next(iter(unknown))
    text = f"{function.__qualname__}() got an unexpected keyword argument {name!r}"
    parameters = list(inspect.signature(function).parameters)
    meant = [parameter for parameter in _MEANT.get(name.lower(), ()) if parameter in parameters]
    if function.__name__ not in ("lock", "semaphore"):  # elsewhere a timeout is nearly always a time to live
        meant = meant[:1]
    meant = meant or get_close_matches(name, parameters, n=1)
    return brief(TypeError(f"{text}: did you mean {' or '.join(meant)}?" if meant else f"{text}."))


def hide_unknown(cls: type) -> None:
    """Leave ``**unknown`` out of the signatures of a class's methods."""
    for function in vars(cls).values():
        if "unknown" in getattr(function, "__annotations__", ()):
            signature = inspect.signature(function)
            parameters = [found for name, found in signature.parameters.items() if name != "unknown"]
            function.__signature__ = signature.replace(parameters=parameters)
