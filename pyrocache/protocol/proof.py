"""Proofs that a peer knows a secret, as a challenge and a response at both ends of a connection.

Both ends know some keys. Each sends a random nonce in its `handshake.Greeting`, and proves by an HMAC over everything
that both have said that it knows one of the keys. The server proves first, so that a stranger who listens at an address
learns nothing that a node would accept. What the caller has said includes the address that it dialled: a server that
does not listen there refuses, so nobody can pass the messages of both ends on and read along.

A proof is made with a key for this purpose only, derived from a key of the secret (HKDF with SHA-256, RFC 5869). Pure:
no I/O, no threads, no clock, and no randomness.

Thread safety: stateless.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from pyrocache.errors import ProtocolError
from pyrocache.late_imports import at_first_use
from pyrocache.protocol.messages import pack_plain

NONCE_BYTES = 32
PROOF_BYTES = 32

_PROOF = "proof"


class Role(Enum):
    """The end of a connection that makes a proof.

    Each role has a key of its own, so a proof cannot be sent back to the end that made it.
    """

    SERVER = b"pyrocache 1: proof of a server"
    CALLER = b"pyrocache 1: proof of a caller"


def prepare() -> None:
    """Import what proofs are made with, OpenSSL among it. This takes 3 ms, which only those need spend who make proofs.

    To be called before threads make proofs: a child forked during an import would wait for its lock forever.
    """
    with at_first_use:
        import hashlib  # noqa: F401
        import hmac  # noqa: F401


def derived(key: bytes, purpose: bytes) -> bytes:
    """Return a key of 32 bytes for one purpose, from which no other key can be computed."""
    import hashlib
    import hmac

    pseudorandom = hmac.digest(bytes(32), key, hashlib.sha256)
    return hmac.digest(pseudorandom, purpose + b"\x01", hashlib.sha256)


def transcript(object_id: str, offer: Mapping[Any, Any], answer: Mapping[Any, Any]) -> bytes:
    """Return what both ends have said, for `prove` and `proves`.

    Args:
        object_id: the remote object that the caller asked for.
        offer, answer: the caller's and the server's greeting, as they crossed the wire. The proof in ``answer`` is left
            out.

    Raises:
        ProtocolError: they hold values that msgpack cannot carry, as another serializer may have delivered.
    """
    try:
        return pack_plain([object_id, _sorted(offer), _sorted({**answer, _PROOF: None})])
    except (TypeError, ValueError, OverflowError):
        raise ProtocolError("A greeting holds values that are not plain.") from None


def _sorted(greeting: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    return sorted(greeting.items(), key=lambda item: repr(item[0]))  # a peer may mix types of keys


def prove(key: bytes, role: Role, said: bytes) -> bytes:
    """Return the proof that the end with this role knows ``key``, for the `transcript` of this connection."""
    import hashlib
    import hmac

    return hmac.digest(derived(key, role.value), said, hashlib.sha256)


def proves(keys: Iterable[bytes], role: Role, said: bytes, proof: bytes) -> bool:
    """Return whether a proof was made with one of ``keys``. The time that this takes does not depend on the proof."""
    import hmac

    matches = [hmac.compare_digest(prove(key, role, said), proof) for key in keys]  # all of them
    return any(matches)
