"""What both clients make of the arguments of their methods: settings, numbers, entries; and of some answers of nodes.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyrocache.client.backend import Answers
from pyrocache.client.context import ClientContext, Ttl
from pyrocache.config import (
    DEFAULT_NAMESERVER,
    ClientConfig,
    is_loopback,
    parse_address,
    parse_size,
    ttl_to_seconds,
)
from pyrocache.errors import ConfigurationError, NodeUnavailable
from pyrocache.late_imports import at_first_use
from pyrocache.runtime.log import logger
from pyrocache.runtime.secret import find_secret
from pyrocache.runtime.throttle import Throttle
from pyrocache.settings import in_force
from pyrocache.tracebacks import brief

if TYPE_CHECKING:
    from pyrocache.client.stats import Stats

_warnings = Throttle(math.inf)


def config_from(
    *,
    nameserver: str | None,
    namespace: str | tuple[str, ...],
    codec: Any,
    serializer: Any,
    ttl_seconds: Ttl,
    allowed_classes: Iterable[Any] | None,
    compress_above: int | str | None,
    signing_key_file: str | os.PathLike[str] | None,
    secret_file: str | os.PathLike[str] | None,
    tls: Any,
    authenticate: bool,
    **given: Any,
) -> ClientConfig:
    """Return the settings of a client, from its arguments and, where these are None, from the user's settings.

    Args:
        given: arguments that are fields of `ClientConfig` as they are.

    The other arguments are those of `PyroCacheClient`.

    Raises:
        ConfigurationError, TypeError, ValueError: an argument or a setting is not valid.
    """
    settings = in_force()
    if nameserver is None:
        nameserver = settings.get("nameserver", DEFAULT_NAMESERVER)
    secret = None
    if _authenticates(authenticate, nameserver, secret_file):
        secret = find_secret(settings.get("secret_file") if secret_file is None else secret_file)
    given |= {
        "ttl_seconds": ttl_seconds,
        "serializer": "pickle" if codec is not None and serializer is None else serializer,
        "allowed_classes": None if allowed_classes is None else _class_names(allowed_classes),
        "compress_above": _size(compress_above),
        # An unpickled client may be in another directory.
        "signing_key_file": None if signing_key_file is None else os.path.abspath(signing_key_file),
    }
    options = settings.of("client")
    options.update([(name, value) for name, value in given.items() if value is not None])
    options["ttl_seconds"] = ttl_to_seconds(options.get("ttl_seconds"))
    return ClientConfig(
        nameserver=nameserver,
        namespace=(namespace,) if isinstance(namespace, str) else namespace,
        codec=codec,
        secret=secret,
        tls=settings.tls if tls is None else tls,
        **options,
    )


def entries_of(arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[Any, Any]:
    """Return the entries that ``update`` is given as `dict.update` takes them. Raises `TypeError`."""
    # A mistaken `compute` or `set_many`: `dict.update` would store the named arguments as entries.
    if len(arguments) > 1 or callable(named.get("function")) or "ttl_seconds" in named:
        raise brief(
            TypeError(
                "update stores entries, as dict.update does: to change one by a function there is compute, to "
                "store with a ttl_seconds set_many. An entry named function or ttl_seconds goes in a dict."
            )
        )
    return dict(*arguments, **named)


def number_serving(answers: Answers) -> int:
    """Return the number of nodes that have answered a ping. Raises `NodeUnavailable` if one does not serve."""
    for member, answer in answers:
        if isinstance(answer, NodeUnavailable):
            raise answer
        if not answer.get("serving"):
            raise NodeUnavailable(f"ping failed: {member.name} does not serve yet, or is leaving.")
    return len(answers)


def stats_of(context: ClientContext[Any], answered: Answers) -> Stats:
    """Return the statistics of nodes, from their answers, and of the client."""
    with at_first_use:
        from pyrocache.client.stats import (  # imported here: making its dataclasses takes 5 ms
            NodeStats,
            Stats,
        )
    answers = {member.name: answer for member, answer in answered}
    errors = {name: answer for name, answer in answers.items() if isinstance(answer, NodeUnavailable)}
    nodes = {name: NodeStats.from_wire(answer) for name, answer in answers.items() if name not in errors}
    return Stats.of(nodes, replace(context.figures, **context.retries), list(errors), errors)


def _authenticates(authenticate: bool, nameserver: str, secret_file: object) -> bool:
    """Return ``authenticate`` after a check of it. Warn once if it is False."""
    if not isinstance(authenticate, bool):
        raise ConfigurationError(f"authenticate must be True or False, not {authenticate!r}.")
    if authenticate:
        return True
    host, _ = parse_address(nameserver)
    if not is_loopback(host):
        raise ConfigurationError(
            f"authenticate=False is for a name server on this host, and {host} is no loopback address."
        )
    if secret_file is not None:
        raise ConfigurationError("Give either secret_file or authenticate=False.")
    if _warnings.admit(nameserver):
        logger("pyrocache.client").warning(
            "Clients of %s do not authenticate: any process of this host may be what they take for a node, and run "
            "code in them.",
            nameserver,
        )
    return False


def _size(size: int | str | None) -> int | None:
    return parse_size(size) if isinstance(size, str) else size


def _class_names(classes: Iterable[Any]) -> tuple[str, ...]:
    """Return the names by which pickles refer to classes and functions. Strings are names already."""
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise brief(TypeError(f"allowed_classes is a list of classes, not one {type(classes).__name__}."))
    return tuple(given if isinstance(given, str) else _class_name(given) for given in classes)


def _class_name(given: Any) -> str:
    module, name = getattr(given, "__module__", None), getattr(given, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(name, str)):
        raise brief(
            TypeError(f"allowed_classes has classes, functions and their names, not {type(given).__name__}.")
        )
    # A worker that multiprocessing spawned knows its parent's __main__ by another name.
    return f"{'__main__' if module == '__mp_main__' else module}.{name}"


def checked_version(version: int) -> int:
    """Return the version of an entry. Raises `TypeError` or `ValueError` if it is none."""
    if isinstance(version, bool) or not isinstance(version, int):
        raise brief(TypeError(f"A version is an int from get_with_version, not {type(version).__name__}."))
    if not 0 < version < 2**63:
        raise brief(ValueError("A version is an int above 0, from get_with_version."))
    return version


def to_int(number: object, name: str) -> int:
    """Return an argument as an int. Accepts other integral types, for example numpy's."""
    try:
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        raise brief(TypeError(f"{name} is an int, not {type(number).__name__}.")) from None


def finite_seconds(touch_seconds: Ttl) -> float:
    """Return a time to live in seconds. Raises `TypeError` or `ValueError` if it is none, or has no end."""
    seconds = ttl_to_seconds(touch_seconds, "touch_seconds")
    if seconds is None:
        raise brief(ValueError("touch_seconds is finite: touch(key, None) removes the expiry of an entry."))
    return seconds
