"""A private certificate authority, and certificates that it has signed, for tests.

The fixture ``certificates`` of `tests.conftest` has one for the whole session. Making a certificate takes a
millisecond.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pyrocache.config import TLS


@dataclass(frozen=True)
class Certificates:
    """The files of an authority. Each method returns settings of TLS with files that it makes, if need be.

    All servers' certificates are for localhost, 127.0.0.1 and ::1, too.
    """

    directory: Path

    def server(self, host: str = "localhost", *, require_client_cert: bool = False) -> TLS:
        """Return settings for a server at ``host``: names and addresses, separated by commas."""
        from pyrocache.cli import certificates

        name = host.replace(",", "+")  # the same host with other names has other files
        if not (self.directory / name).exists():
            certificates.make(self.directory, [replace(certificates.host(host), name=name)])
        return self._files(name, require_client_cert)

    def client(self, name: str | None = None) -> TLS:
        """Return settings for a client that checks servers; with a ``name``, it has a certificate."""
        from pyrocache.cli import certificates

        if name is None:
            self.server()  # makes the authority
            return TLS(ca=str(self.directory / "ca.pem"))
        if not (self.directory / name).exists():
            certificates.make(self.directory, [certificates.client(name)])
        return self._files(name)

    def expired(self, host: str = "expired.example", *, days_ago: float = 1.0) -> TLS:
        """Return settings for a server whose certificate ended so many days ago; negative: it will end."""
        from pyrocache.cli import certificates
        from pyrocache.cli.authority import Authority

        self.server()  # makes the authority
        holder = certificates.host(host)
        authority = Authority(
            (self.directory / "ca.key").read_bytes(), (self.directory / "ca.pem").read_bytes()
        )
        began = datetime.now(UTC) - timedelta(days=30 + days_ago)
        issued = authority.issue(holder.name, holder.names, server=True, days=30, now=began)
        place = self.directory / f"{holder.name}-{os.urandom(4).hex()}"
        place.mkdir(mode=0o700)
        for name, content in {"ca": authority.cert, "cert": issued.cert, "key": issued.key}.items():
            (place / f"{name}.pem").write_bytes(content)
            (place / f"{name}.pem").chmod(0o600)
        return self._files(place.name)

    def _files(self, name: str, require_client_cert: bool = False) -> TLS:
        place = self.directory / name
        files = {field: str(place / f"{field}.pem") for field in ("ca", "cert", "key")}
        return TLS(**files, require_client_cert=require_client_cert)


def new_certificates(directory: Path) -> Certificates:
    """Return a new authority in a directory. Skips the test without the package cryptography."""
    pytest.importorskip("cryptography")
    return Certificates(directory)
