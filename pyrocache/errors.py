"""Everything that pyrocache raises, in one tree.

::

    PyroCacheError
    ├── ConfigurationError (ValueError)      a setting is wrong; nothing was started
    │   └── InsecureAddress                  an address other hosts reach, without leave to use it
    ├── NameServerUnavailable                nobody answers at the name server's address
    │   (ConnectionError)
    ├── NoNodes (ConnectionError)            the name server answers, but knows no node
    ├── NameTaken                            a live node holds that node name already
    ├── NodeUnavailable (ConnectionError)    a node does not answer, or not within the deadline
    │   ├── Overloaded                       it answers, but is at one of its limits
    │   └── PartialFailure                   a call about many keys failed for some; it says which and why
    ├── Conflict                             others changed an entry again and again while `update` tried to
    ├── NotAnInt (TypeError)                 the entry that was to be counted up is no int
    ├── WaitTimeout (TimeoutError)           another caller did not load a value in the time that there was
    ├── LockTimeout (TimeoutError)           others held a lock for longer than there was time to wait
    ├── LockLost                             a lock was not held to its end; another one may have had it meanwhile
    ├── RemoteError                          a node refused or failed; it says why
    ├── ProtocolError                        bytes on a connection that are not ours to understand
    ├── InvalidKey (ValueError)              a key that has no canonical bytes
    │   └── KeyTooLarge                      longer than 64 KiB once encoded
    ├── ValueTooLarge (ValueError)           larger than the node takes; the old value stays
    ├── SerializationError (ValueError)      a value that does not pickle or unpickle
    │   └── CorruptValue                     stored bytes that are not a value frame
    └── ClientClosed                         the client was closed

Messages name the node, the operation and what to do next. They never hold a key's or a value's content.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "ClientClosed",
    "ConfigurationError",
    "Conflict",
    "CorruptValue",
    "InsecureAddress",
    "InvalidKey",
    "KeyTooLarge",
    "LockLost",
    "LockTimeout",
    "NameServerUnavailable",
    "NameTaken",
    "NoNodes",
    "NodeUnavailable",
    "NotAnInt",
    "Overloaded",
    "PartialFailure",
    "ProtocolError",
    "PyroCacheError",
    "RemoteError",
    "SerializationError",
    "ValueTooLarge",
    "WaitTimeout",
]


class PyroCacheError(Exception):
    """Root of everything that pyrocache raises on purpose."""


class ConfigurationError(PyroCacheError, ValueError):
    """A setting is wrong; nothing was started."""


class InsecureAddress(ConfigurationError):
    """An address that other hosts can reach, without the user's explicit leave."""


class NameServerUnavailable(PyroCacheError, ConnectionError):
    """Nobody answers as a name server at the address."""


class NoNodes(PyroCacheError, ConnectionError):
    """The name server answers, but no node is registered."""


class NameTaken(PyroCacheError):
    """A live node holds the node name already."""


class NodeUnavailable(PyroCacheError, ConnectionError):
    """A node does not answer, or not within the deadline."""


class Overloaded(NodeUnavailable):
    """A node answers, but is at one of its limits (connections, long calls)."""


class PartialFailure(NodeUnavailable):
    """A call about many keys failed for some of them, and did its work for the others.

    Attributes:
        results: what the call would have returned for those others.
        errors: why it failed, by key.
    """

    def __init__(self, message: str = "", results: Any = None, errors: Mapping[Any, Exception] | None = None):
        super().__init__(message)
        self.results = results
        self.errors: dict[Any, Exception] = dict(errors or {})


class Conflict(PyroCacheError):
    """Others changed an entry each time before `update` could; what they stored stays."""


class NotAnInt(PyroCacheError, TypeError):
    """An entry that is no int cannot be counted up; it is unchanged."""


class WaitTimeout(PyroCacheError, TimeoutError):
    """Another caller was loading a value, and had not by the time that this one did not want to wait any longer."""


class LockTimeout(PyroCacheError, TimeoutError):
    """Others held a lock for longer than this caller wanted to wait."""


class LockLost(PyroCacheError):
    """A lock was not held until it was released: its node went away, or it could not be renewed in time.

    Another holder may have done its work meanwhile. Where that matters, have what the lock protects compare tokens.
    """


class RemoteError(PyroCacheError):
    """A node refused a request or failed at it, and said why."""


class ProtocolError(PyroCacheError):
    """Bytes on a connection that are no message of this protocol. The connection is dropped."""


class InvalidKey(PyroCacheError, ValueError):
    """A key that has no canonical bytes, so that it could not be found again."""


class KeyTooLarge(InvalidKey):
    """A key longer than 64 KiB once encoded."""


class ValueTooLarge(PyroCacheError, ValueError):
    """A value larger than the node takes; nothing was stored and the old value stays."""


class SerializationError(PyroCacheError, ValueError):
    """A value that does not pickle, or does not unpickle here."""


class CorruptValue(SerializationError):
    """Stored bytes that are no value frame of a version known here."""


class ClientClosed(PyroCacheError):
    """The client was closed; make a new one."""
