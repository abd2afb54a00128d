"""A secret that is in no file."""

from __future__ import annotations

from pyrocache.net.call_protocol import Caller, knowing
from pyrocache.protocol.handshake import NAMELESS, PROTOCOL, Greeting
from pyrocache.runtime.secret import Secret
from pyrocache.runtime.secret_file import Key

SECRET = Secret(None, (Key(b"s" * 32),))
OTHER_SECRET = Secret(None, (Key(b"o" * 32),))


def nameless(secret: Secret = SECRET) -> Caller:
    """Return how a name server calls a node."""
    return knowing(secret, Greeting(protocol=PROTOCOL, caller=NAMELESS))
