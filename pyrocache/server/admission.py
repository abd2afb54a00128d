"""Whom a server that knows the secret admits, and the certificate that it shows.

Thread safety: functions without state.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from pyrocache.config import Encryption
from pyrocache.errors import PyroCacheError
from pyrocache.protocol.handshake import Admission, Strangers
from pyrocache.protocol.proof import NONCE_BYTES
from pyrocache.runtime.secret import Secret

if TYPE_CHECKING:
    from pyrocache.runtime.tls import ServerCertificate

log = logging.getLogger("pyrocache.node")


def admission(secret: Secret, strangers: Strangers, advertised: Collection[str] = ()) -> Admission:
    """Return the admission for a server; see `Admission`. It never reads the secret's file: see `Secret.current`."""
    nonce = partial(os.urandom, NONCE_BYTES)
    return Admission(lambda: secret.keys, nonce, strangers=strangers, advertised=advertised)


def load_again(certificate: ServerCertificate | None, who: str) -> None:
    """Load a server's certificate again, for new connections. If that is not possible, say so and keep the old one."""
    if certificate is None:
        return
    try:
        certificate.load()
    except PyroCacheError as error:
        log.error("%s keeps its certificate: %s", who, error)
    else:
        log.warning("%s has loaded its certificate again.", who)


def server_certificate(tls: Encryption) -> ServerCertificate | None:
    """Return the certificate of a server; None without TLS. Raises `ConfigurationError` if a file cannot be used."""
    if not tls:
        return None
    from pyrocache.runtime.tls import ServerCertificate  # imported here, as most servers do without

    return ServerCertificate(tls)
