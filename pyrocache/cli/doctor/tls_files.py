"""Checks the TLS files without a server, by a handshake whose two ends are in memory.

So OpenSSL does the checks: that the files can be read, that key and certificate belong together, that the authority has
signed the certificate, and that it has not expired.

Thread safety: functions without state.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

from pyrocache.cli.doctor.observed import CertificateSeen
from pyrocache.config import TLS


def examine(tls: TLS) -> Iterator[CertificateSeen]:
    """Yield what is to be said of the file of the authorities, and of the certificate of this end."""
    if tls.ca is not None:
        yield _authorities(tls.ca)
    if tls.cert is not None:
        yield _own(tls, tls.cert)


def presented(place: str, certificate: Mapping[str, Any]) -> CertificateSeen:
    """Return a certificate that OpenSSL has accepted, given what ``getpeercert`` returns."""
    names = tuple(
        str(ip_address(name.strip())) if kind == "IP Address" else str(name)
        for kind, name in certificate.get("subjectAltName", ())
    )
    return CertificateSeen(place=place, ends=_ends(certificate), names=names)


def _ends(certificate: Mapping[str, Any]) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)


def _authorities(path: str) -> CertificateSeen:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        return CertificateSeen(place=path, error=_reason(error))
    ends = [_ends(certificate) for certificate in context.get_ca_certs()]
    if not ends:
        return CertificateSeen(place=path, error="it has no certificate of an authority")
    return CertificateSeen(place=path, ends=min(ends))


def _own(tls: TLS, cert: str) -> CertificateSeen:
    """Check this end's certificate as a server would check that of a client: hosts and clients may be clients."""
    verifier = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    verifier.verify_mode = ssl.CERT_REQUIRED
    holder = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    holder.check_hostname = False
    holder.verify_mode = ssl.CERT_NONE
    try:
        for context in (verifier, holder):
            context.load_cert_chain(cert, tls.key, password=lambda: "")
        if tls.ca is None:
            verifier.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        else:
            verifier.load_verify_locations(tls.ca)
        return presented(cert, _handshake(verifier, holder))
    except (OSError, ValueError) as error:
        return CertificateSeen(place=cert, error=_reason(error))


def _handshake(verifier: ssl.SSLContext, holder: ssl.SSLContext) -> Mapping[str, Any]:
    """Return the holder's certificate, once the verifier has accepted it. Raises `ssl.SSLError`."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = verifier.wrap_bio(there, back, server_side=True)
    client = holder.wrap_bio(back, there)
    done: set[ssl.SSLObject] = set()
    for _ in range(10):  # a handshake has three flights
        for end in (client, server):
            try:
                if end not in done:
                    end.do_handshake()
                    done.add(end)
            except ssl.SSLWantReadError:
                pass
        if server in done:
            break
    return server.getpeercert() or {}


def _reason(error: Exception) -> str:
    """Return what is wrong as a part of a sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    text = str(reason).replace("_", " ").lower()
    return "the key is that of another certificate" if "values mismatch" in text else text
