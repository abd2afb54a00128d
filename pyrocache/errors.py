"""Everything that pyrocache raises, in one tree.

::

    PyroCacheError
    ├── ConfigurationError (ValueError)      a setting is wrong; nothing was started
    │   └── InsecureAddress                  other hosts can reach the address, and that was not allowed
    ├── NameTaken                            a live node has that node name already
    ├── CacheUnavailable (ConnectionError)   what `on_error="miss"` turns into a miss
    │   ├── NameServerUnavailable            no name server answers at the address
    │   ├── NoNodes                          the name server answers, but no node is registered
    │   └── NodeUnavailable                  a node does not answer within the deadline, or answers `not-serving`
    │       │                                or `try-again` until then
    │       ├── Overloaded                   a node answers, but is at one of its limits
    │       ├── ProtocolMismatch             a node runs a version of pyrocache that is too old or too new
    │       ├── MayHaveBeenDone              the reply to a change was lost: the node may have done it
    │       └── PartialFailure               a call for many keys failed for some; says which and why
    ├── AuthenticationError                  the other end does not prove the secret of this user, or another one
    ├── ClusterMismatch                      a node or the name server belongs to another cluster
    ├── Conflict                             other callers changed the entry during each attempt of `compute`
    ├── NotAnInt (TypeError)                 `incr` or `decr` of a value that is not an int
    ├── WaitTimeout (TimeoutError)           another caller did not load the value in time
    ├── LoadDeadlock (RuntimeError)          loads of this process wait for each other
    ├── LockTimeout (TimeoutError)           other callers held the lock for longer than this one waited
    ├── LockLost                             a lock was lost before its release, or its node did not answer it
    ├── RemoteError                          a node refused a request, failed, or sent an invalid reply; says why
    ├── ProtocolError                        bytes on a connection that are not a valid message
    ├── InvalidKey (ValueError)              a key that has no canonical bytes
    │   └── KeyTooLarge                      longer than 64 KiB once encoded
    ├── ValueTooLarge (ValueError)           larger than the node accepts; the old value stays
    ├── SerializationError                   a value that does not pickle or unpickle
    │   (pickle.PickleError, ValueError)
    │   ├── CorruptValue                     stored bytes that are not a value frame
    │   └── TamperedValue                    not signed with the signing key, or not for this key
    ├── OutOfResources                       this process has no descriptors, threads, processes or the like left
    │   (OSError, RuntimeError)
    └── ClientClosed                         the client was closed

Messages name the node, the operation and what to do next. They never hold a key's or a value's content.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyrocache.tracebacks import shown_in_ipython

if TYPE_CHECKING:
    from pyrocache.pickle_errors import CorruptValue, SerializationError, TamperedValue

__all__ = [
    "AuthenticationError",
    "CacheUnavailable",
    "ClientClosed",
    "ClusterMismatch",
    "ConfigurationError",
    "Conflict",
    "CorruptValue",
    "InsecureAddress",
    "InvalidKey",
    "KeyTooLarge",
    "LoadDeadlock",
    "LockLost",
    "LockTimeout",
    "MayHaveBeenDone",
    "NameServerUnavailable",
    "NameTaken",
    "NoNodes",
    "NodeUnavailable",
    "NotAnInt",
    "OutOfResources",
    "Overloaded",
    "PartialFailure",
    "ProtocolError",
    "ProtocolMismatch",
    "PyroCacheError",
    "RemoteError",
    "SerializationError",
    "TamperedValue",
    "ValueTooLarge",
    "WaitTimeout",
]


class PyroCacheError(Exception):
    """Root of everything that pyrocache raises on purpose."""

    _render_traceback_ = shown_in_ipython


class ConfigurationError(PyroCacheError, ValueError):
    """A setting is wrong; nothing was started."""


class InsecureAddress(ConfigurationError):
    """Other hosts can reach the address, and the user did not allow that."""


class CacheUnavailable(PyroCacheError, ConnectionError):
    """The cache cannot be reached; ``on_error="miss"`` turns this, and nothing else, into a miss.

    Attributes:
        source: the name of the node that does not answer; ``""`` if no node is known.
    """

    source: str = ""


class NameServerUnavailable(CacheUnavailable):
    """No name server answers at the address.

    Attributes:
        timed_out: whether nothing was answered in time, instead of an error at once.
        refused: whether the system refused the connection: nothing listens at the address.
        overloaded: whether it answered that it has too many callers at the moment.
    """

    timed_out = False
    refused = False
    overloaded = False


class NoNodes(CacheUnavailable):
    """The name server answers, but no node is registered."""


class NameTaken(PyroCacheError):
    """A live node has the node name already."""


class NodeUnavailable(CacheUnavailable):
    """A node does not answer within the deadline."""


class Overloaded(NodeUnavailable):
    """A node answers, but is at one of its limits, such as connections or queued calls."""


class ProtocolMismatch(NodeUnavailable):
    """A node and this process run versions of pyrocache that are too far apart; nothing was read or changed there.

    The message says which of the two to upgrade.
    """


class MayHaveBeenDone(NodeUnavailable):
    """The reply to a change was lost, and it cannot be found out whether the node has done it.

    Read the entry before the change is repeated, where doing it twice would matter.
    """


class PartialFailure(NodeUnavailable):
    """A call for many keys failed for some of the keys and succeeded for the rest.

    Attributes:
        results: what the call would have returned for the keys that succeeded.
        errors: the error of each key that failed.
    """

    def __init__(self, message: str = "", results: Any = None, errors: Mapping[Any, Exception] | None = None):
        super().__init__(message)
        self.results = results
        self.errors: dict[Any, Exception] = dict(errors or {})


class AuthenticationError(PyroCacheError):
    """The name server or a node did not prove that it knows the secret, or refuses this process, which does not.

    Nothing was read or changed there.

    Attributes:
        source: the name of the node; ``""`` for the name server.
    """

    source: str = ""


class ClusterMismatch(PyroCacheError):
    """What listens at the address of a node belongs to another cluster; nothing was read or changed there.

    Attributes:
        source: the name of the node that was looked for.
    """

    source: str = ""


class Conflict(PyroCacheError):
    """Other callers changed the entry during each attempt of `compute`; what they stored stays."""


class NotAnInt(PyroCacheError, TypeError):
    """`PyroCacheClient.incr` or `decr` of an entry whose value is not an int; the entry is unchanged."""


class WaitTimeout(PyroCacheError, TimeoutError):
    """Another caller was loading the value, and did not finish in the time that this caller waited."""


class LoadDeadlock(PyroCacheError, RuntimeError):
    """A factory asked for a value whose load cannot end before this factory does.

    Either two factories ask for each other's values, or a factory waits for a thread that asks for the value that the
    factory is loading. Only loads of the same process are compared.
    """


class LockTimeout(PyroCacheError, TimeoutError):
    """Other callers held the lock or semaphore for longer than this caller waited."""


class LockLost(PyroCacheError):
    """A lock was lost before its release, because its node became unreachable or it was not renewed in time.

    Also raised if the node does not answer the release.
    Another caller may have held it meanwhile. Where that matters, let the protected resource compare fencing tokens.
    """


class RemoteError(PyroCacheError):
    """A node refused a request, failed to run it, or sent a reply that is not valid; the message says why."""


class ProtocolError(PyroCacheError):
    """Bytes on a connection that are not a valid message of the protocol. The connection is closed."""


class InvalidKey(PyroCacheError, ValueError):
    """A key that has no canonical bytes, so that its entry could not be found again."""


class KeyTooLarge(InvalidKey):
    """A key longer than 64 KiB once encoded."""


class ValueTooLarge(PyroCacheError, ValueError):
    """A value larger than the node accepts; nothing was stored and the old value stays."""


class OutOfResources(PyroCacheError, OSError, RuntimeError):
    """This process or this machine has run out of what the system provides; the message says of what.

    It is an `OSError`, and a `RuntimeError` because that is what Python raises if it cannot start a thread.
    """


class ClientClosed(PyroCacheError):
    """The client was closed; create a new one."""


def __getattr__(name: str) -> Any:
    # Their module imports pickle, which a node must not do.
    if name not in ("CorruptValue", "SerializationError", "TamperedValue"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("pyrocache.pickle_errors"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
