"""Whom a server that knows the secret admits.

Thread safety: a function without state.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial

from pyrocache.protocol.handshake import Admission, Strangers
from pyrocache.protocol.proof import NONCE_BYTES
from pyrocache.runtime.secret import Secret


def admission(secret: Secret, strangers: Strangers, advertised: Collection[str] = ()) -> Admission:
    """Return the admission for a server; see `Admission`. It never reads the secret's file: see `Secret.current`."""
    nonce = partial(os.urandom, NONCE_BYTES)
    return Admission(lambda: secret.keys, nonce, strangers=strangers, advertised=advertised)
