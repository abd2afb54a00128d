"""`Authority`: a private certificate authority, which signs certificates of hosts and of clients.

Keys are ECDSA on the curve P-256. A certificate is valid from one hour before it is made, because the clocks of hosts
differ, and never longer than that of its authority. Works on PEM in memory; `cli.certificates` reads and writes the
files. Needs the package cryptography, which is imported when it is used.

Thread safety: thread-safe; an `Authority` does not change.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from pyrocache.errors import ConfigurationError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

HOST_DAYS = 365
AUTHORITY_DAYS = 3650

_SKEW = timedelta(hours=1)
_COMMON_NAME_CHARACTERS = 64  # the most that a common name may have


class Issued(NamedTuple):
    """A certificate and its private key, both in PEM, and when the certificate ends."""

    cert: bytes
    key: bytes
    ends: datetime


class Authority:
    """A private key, and the certificate that says that it may sign those of others.

    Args:
        key, cert: both in PEM.

    Raises:
        ConfigurationError: they cannot be read, do not belong together, or are not those of an authority.
    """

    def __init__(self, key: bytes, cert: bytes) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            loaded = load_pem_private_key(key, password=None)
            self._cert = x509.load_pem_x509_certificate(cert)
            constraints = self._cert.extensions.get_extension_for_class(x509.BasicConstraints).value
        except (ValueError, TypeError, x509.ExtensionNotFound) as error:
            raise ConfigurationError(
                f"The key and the certificate of the authority are not valid: {error}."
            ) from None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey) or not constraints.ca:
            raise ConfigurationError(
                "The key and the certificate are not those of an authority with an ECDSA key."
            )
        if loaded.public_key() != self._cert.public_key():
            raise ConfigurationError("The certificate of the authority is not that of its key.")
        self._key = loaded
        self.cert = cert

    @property
    def ends(self) -> datetime:
        """When its certificate ends."""
        return self._cert.not_valid_after_utc

    def issue(
        self,
        name: str,
        names: Sequence[str],
        *,
        server: bool,
        days: float = HOST_DAYS,
        now: datetime | None = None,
    ) -> Issued:
        """Return a new certificate with a new key.

        Args:
            name: the holder, as shown to people who inspect the certificate.
            names: the host names and IP addresses that it is for.
            server: whether it is for servers and clients, instead of for clients only.
            days: for how long it is valid.
            now: the time, with a time zone; that of the system by default.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        now = now or datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        ends = min(now + timedelta(days=days), self.ends)
        purposes = [*([ExtendedKeyUsageOID.SERVER_AUTH] if server else []), ExtendedKeyUsageOID.CLIENT_AUTH]
        issuer = self._cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            _builder(key, _named(name), self._cert.subject, now, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False
            )
        )
        if names:
            alternatives = x509.SubjectAlternativeName([_general_name(one) for one in names])
            builder = builder.add_extension(alternatives, critical=False)
        return _signed(builder, key, self._key, ends)


def new_authority(now: datetime | None = None) -> Issued:
    """Return the certificate and the key of a new authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    now = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own: of two authorities with one name, a verifier may try the wrong one.
    name = _named(f"pyrocache authority {os.urandom(4).hex()}")
    ends = now + timedelta(days=AUTHORITY_DAYS)
    builder = (
        _builder(key, name, name, now, ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _signed(builder, key, key, ends)


def names_in(cert: bytes) -> tuple[list[str], bool]:
    """Return the host names and addresses in a certificate in PEM, and whether it is for servers.

    Raises:
        ConfigurationError: it cannot be read.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        extensions = x509.load_pem_x509_certificate(cert).extensions
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        server = ExtendedKeyUsageOID.SERVER_AUTH in purposes
        if not server:
            return [], False
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(name.value) for name in names], server
    except (ValueError, x509.ExtensionNotFound) as error:
        raise ConfigurationError(f"The certificate is not valid: {error}.") from None


def check_available() -> None:
    """Raise `ConfigurationError` if cryptography is not installed."""
    try:
        import cryptography.x509  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "To make certificates, pyrocache needs the package cryptography: pip install cryptography"
        ) from None


def _named(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:_COMMON_NAME_CHARACTERS])])


def _builder(
    key: EllipticCurvePrivateKey, subject: x509.Name, issuer: x509.Name, now: datetime, ends: datetime
) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, ends) - _SKEW)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _signed(
    builder: x509.CertificateBuilder,
    key: EllipticCurvePrivateKey,
    signing_key: EllipticCurvePrivateKey,
    ends: datetime,
) -> Issued:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    cert = builder.sign(signing_key, SHA256()).public_bytes(Encoding.PEM)
    return Issued(cert, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), ends)
