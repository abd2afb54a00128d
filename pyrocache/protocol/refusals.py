"""`Refusal`: the reply to a call that a node refuses, and its form on the wire.

A method that refuses a call raises Pyro5's `PyroError`, which every Pyro5 peer knows, with two attributes: a code for
programs, and a detail. On the wire it is the map that Pyro5 makes of any exception. Pure: no I/O, no threads, no clock.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pyrocache.errors import ProtocolError
from pyrocache.protocol.messages import unpack_plain


class Refusal(NamedTuple):
    """The reply of a peer that does not execute a call.

    Attributes:
        code: one of the codes in ``docs/wire-format.md``; ``""`` if the peer sent none.
        message: one sentence.
        detail: depends on the code; may be None.
    """

    code: str
    message: str
    detail: Any = None


STALE_VIEW = "stale-view"
NOT_SERVING = "not-serving"
TRY_AGAIN = "try-again"
NOT_DONE = "not-done"
FORGOTTEN = "forgotten"
KEY_TOO_LARGE = "key-too-large"
VALUE_TOO_LARGE = "value-too-large"
OVERLOADED = "overloaded"
BAD_REQUEST = "bad-request"
NOT_TRUSTED = "not-trusted"
NOT_AN_INT = "not-an-int"
INTERNAL = "internal"

NOT_EXECUTED = frozenset((STALE_VIEW, NOT_SERVING, TRY_AGAIN, NOT_DONE, OVERLOADED))
"""The refusals of requests that may be executed if they are sent again."""


def refusal_to_wire(refusal: Refusal, kind: str = "PyroError") -> dict[str, Any]:
    """Return the plain value of an exception reply. ``kind`` is the name of a class in ``Pyro5.errors``."""
    return {
        "__class__": f"Pyro5.errors.{kind}",
        "__exception__": True,
        "args": [refusal.message],
        "attributes": {"code": refusal.code, "detail": refusal.detail},
    }


def unpack_refusal(body: bytes | memoryview) -> Refusal:
    """Return the refusal in the body of an exception reply of any Pyro5 peer. Raises `ProtocolError`."""
    data = unpack_plain(body)
    if not isinstance(data, dict):
        raise ProtocolError("An exception reply does not hold an exception.")
    attributes, arguments = data.get("attributes"), data.get("args")
    if not isinstance(attributes, dict):
        attributes = {}
    code = attributes.get("code")
    message = arguments[0] if isinstance(arguments, list) and arguments else data.get("__class__")
    return Refusal(
        code if isinstance(code, str) else "",
        message if isinstance(message, str) else "no reason was given",
        attributes.get("detail"),
    )
