"""How `pyrocache doctor` checks the files of TLS."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pyrocache.cli.doctor.observed import CertificateSeen
from pyrocache.cli.doctor.tls_files import examine
from pyrocache.config import TLS
from tests.support.certificates import Certificates


def _own(tls: TLS) -> CertificateSeen:
    return list(examine(tls))[-1]


def _days_left(certificate: CertificateSeen) -> int:
    assert certificate.error == ""
    assert certificate.ends is not None
    return (certificate.ends - datetime.now(UTC)).days


def test_files_that_fit(certificates: Certificates) -> None:
    server = certificates.server("cache1.example,192.0.2.1")
    authority, own = examine(server)
    assert (authority.place, own.place) == (server.ca, server.cert)
    assert _days_left(authority) == 3649
    assert _days_left(own) == 364
    assert own.names == ("cache1.example", "192.0.2.1", "localhost", "127.0.0.1", "::1")


def test_the_certificate_of_a_client(certificates: Certificates) -> None:
    assert _days_left(_own(certificates.client("doctor"))) == 364


def test_an_authority_alone(certificates: Certificates) -> None:
    (authority,) = examine(certificates.client())
    assert authority.error == ""


def test_a_certificate_that_has_ended(certificates: Certificates) -> None:
    assert _own(certificates.expired()).error == "certificate has expired"


def test_a_certificate_that_will_end_soon(certificates: Certificates) -> None:
    assert _days_left(_own(certificates.expired("soon.example", days_ago=-10.5))) == 10


def test_the_key_of_another_certificate(certificates: Certificates) -> None:
    tls = replace(certificates.server(), key=certificates.server("cache1.example").key)
    assert _own(tls).error == "the key is that of another certificate"


def test_a_certificate_of_another_authority(certificates: Certificates, tmp_path: Path) -> None:
    tls = replace(certificates.server(), ca=Certificates(tmp_path / "other").client().ca)
    assert "unable to get local issuer certificate" in _own(tls).error


@pytest.mark.parametrize("field", ["ca", "cert", "key"])
def test_a_file_that_does_not_exist(certificates: Certificates, field: str) -> None:
    tls = replace(certificates.server(), **{field: "/does/not/exist.pem"})
    assert _own(tls).error == "no such file or directory"


def test_a_file_without_a_certificate(certificates: Certificates, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing\n")
    authority, own = examine(replace(certificates.server(), ca=str(empty)))
    assert authority.error == "no certificate or crl found"
    assert own.error
