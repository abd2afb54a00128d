"""`pyrocache certificates`: what it makes can be used for TLS and for nothing else, and it overwrites nothing."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pyrocache.cli import certificates as command
from pyrocache.config import TLS
from pyrocache.errors import ConfigurationError
from tests.support.certificates import Certificates
from tests.support.commands import call

x509 = pytest.importorskip("cryptography.x509")


def _server(tls: TLS) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert tls.cert
    context.load_cert_chain(tls.cert, tls.key)
    if tls.require_client_cert:
        context.load_verify_locations(tls.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _client(tls: TLS) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    if tls.cert:
        context.load_cert_chain(tls.cert, tls.key)
    return context


def _connect(server: TLS, client: TLS, name: str, *, check_name: bool = True) -> dict[str, Any]:
    """Make a TLS connection over loopback. Return the certificate that the client has seen."""

    def serve() -> None:
        with (
            listener.accept()[0] as accepted,
            _server(server).wrap_socket(accepted, server_side=True) as stream,
        ):
            stream.sendall(b"ready")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(10)
        served = pool.submit(serve)
        with socket.create_connection(listener.getsockname(), 10) as sock:
            try:
                context = _client(client)
                context.check_hostname = check_name
                with context.wrap_socket(sock, server_hostname=name) as stream:
                    assert stream.recv(5) == b"ready"
                    seen = stream.getpeercert()
            except ssl.SSLError:
                sock.close()
                served.exception(10)
                raise
        served.result(10)
    assert seen
    return dict(seen)


@pytest.mark.parametrize(
    "name", ["cache1.example", "192.0.2.1", "2001:db8::1", "localhost", "127.0.0.1", "::1"]
)
def test_a_host_is_known_by_all_its_names(certificates: Certificates, name: str) -> None:
    server = certificates.server("cache1.example,192.0.2.1,2001:DB8::1")
    seen = _connect(server, certificates.client(), name)
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(seen["notAfter"]), UTC)
    assert timedelta(days=364) < ends - datetime.now(UTC) <= timedelta(days=365)


def test_a_host_is_not_known_by_another_name(certificates: Certificates) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        _connect(certificates.server("cache1.example"), certificates.client(), "cache2.example")


def test_an_authority_vouches_for_its_own_certificates_only(
    certificates: Certificates, tmp_path: Path
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        _connect(certificates.server(), Certificates(tmp_path / "other").client(), "localhost")


def test_a_host_is_also_a_client(certificates: Certificates) -> None:
    server = certificates.server("cache1.example", require_client_cert=True)
    _connect(server, certificates.server("cache3.example"), "cache1.example")
    with pytest.raises(ssl.SSLError):
        _connect(server, certificates.client(), "cache1.example")


def test_a_client_is_no_server(certificates: Certificates) -> None:
    client = certificates.client("report-job")
    _connect(certificates.server(require_client_cert=True), client, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        _connect(client, client, "report-job", check_name=False)  # it has no names


def test_a_host_signs_no_certificates(certificates: Certificates) -> None:
    server = certificates.server()
    authority, host = (_loaded(path) for path in (server.ca, server.cert))
    constraints = [one.extensions.get_extension_for_class(x509.BasicConstraints) for one in (authority, host)]
    assert [(one.value.ca, one.value.path_length, one.critical) for one in constraints] == [
        (True, 0, True),
        (False, None, True),
    ]
    usages = [one.extensions.get_extension_for_class(x509.KeyUsage).value for one in (authority, host)]
    assert [(one.key_cert_sign, one.digital_signature) for one in usages] == [(True, False), (False, True)]


def _loaded(path: str | None) -> Any:
    assert path
    return x509.load_pem_x509_certificate(Path(path).read_bytes())


def test_keys_are_for_this_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)  # which would let others read and write everything
    try:
        command.make(tmp_path / "tls", [command.host("cache1.example")])
    finally:
        os.umask(before)
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")
    }
    assert modes == {
        "tls": 0o700,
        "tls/ca.key": 0o600,
        "tls/ca.pem": 0o644,
        "tls/cache1.example": 0o700,
        "tls/cache1.example/ca.pem": 0o644,
        "tls/cache1.example/cert.pem": 0o644,
        "tls/cache1.example/key.pem": 0o600,
    }


def test_a_directory_that_others_can_change_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigurationError, match="chmod go-w"):
        command.make(tmp_path, [command.host("cache1.example")])
    assert not list(tmp_path.iterdir())


def test_a_second_call_uses_the_same_authority_and_overwrites_nothing(tmp_path: Path) -> None:
    command.make(tmp_path, [command.host("one")])
    before = _contents(tmp_path)
    command.make(tmp_path, [command.host("two")])
    assert before.items() <= _contents(tmp_path).items()
    with pytest.raises(ConfigurationError, match="one exists already: add --renew"):
        command.make(tmp_path, [command.host("three"), command.host("one")])
    assert not (tmp_path / "three").exists()
    _connect(Certificates(tmp_path).server("two"), Certificates(tmp_path).client(), "two")


def test_renewing_keeps_authority_and_names(tmp_path: Path) -> None:
    command.make(tmp_path, [command.host("one,192.0.2.1"), command.host("two"), command.client("bob")])
    before = _contents(tmp_path)
    made = command.make(tmp_path, [command.host("one")], renew=True, days=10)
    after = _contents(tmp_path)
    assert {path for path in after if after[path] != before[path]} == {"one/cert.pem", "one/key.pem"}
    assert made[0].holder.names == ("one", "192.0.2.1", "localhost", "127.0.0.1", "::1")
    assert (made[0].ends - datetime.now(UTC)).days == 9
    _connect(Certificates(tmp_path).server("one"), Certificates(tmp_path).client(), "192.0.2.1")


def test_renewing_without_names_renews_everything(tmp_path: Path) -> None:
    command.make(tmp_path, [command.host("one"), command.client("bob")])
    before = _contents(tmp_path)
    made = command.make(tmp_path, [], renew=True)
    assert [(one.holder.name, one.holder.server) for one in made] == [("bob", False), ("one", True)]
    after = _contents(tmp_path)
    changed = {f"{name}/{file}.pem" for name in ("bob", "one") for file in ("cert", "key")}
    assert {path for path in after if after[path] != before[path]} == changed


def test_names_of_a_renewed_certificate_can_be_changed(tmp_path: Path) -> None:
    command.make(tmp_path, [command.host("one,192.0.2.1")])
    made = command.make(tmp_path, [command.host("one,192.0.2.2")], renew=True)
    assert made[0].holder.names[:2] == ("one", "192.0.2.2")


@pytest.mark.parametrize(
    ("missing", "sentence"), [("ca.key", "ca.key is missing"), ("ca.pem", "ca.pem is missing")]
)
def test_half_an_authority_is_not_replaced(tmp_path: Path, missing: str, sentence: str) -> None:
    command.make(tmp_path, [command.host("one")])
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigurationError, match=sentence):
        command.make(tmp_path, [command.host("two")])


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../x",
        "a/b",
        ".",
        "..",
        "-x",
        "a..b",
        "a b",
        "*.example",
        "10.0.0.300",
        "x" * 64,
        "a,../b",
        "ä.example",
    ],
)
def test_what_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a host name or an IP address"):
        command.host(name)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "fe80::1%eth0"])
def test_an_address_that_others_cannot_use_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="not an address that other hosts can connect to"):
        command.host(address)


def test_names_are_written_in_one_way() -> None:
    assert command.host("Cache1.Example., 2001:DB8:0::1").names[:2] == ("cache1.example", "2001:db8::1")


def test_the_command_says_what_to_copy_and_which_options_to_use(tmp_path: Path) -> None:
    done = call("pyrocache", "certificates", str(tmp_path / "tls"), "cache1.example", "--client", "bob")
    assert (done.status, done.err) == (0, "")
    assert f"{tmp_path}/tls/cache1.example: for cache1.example, localhost" in done.out
    assert f"{tmp_path}/tls/bob: for the client bob; valid until" in done.out
    options = (
        "--tls-ca cache1.example/ca.pem --tls-cert cache1.example/cert.pem --tls-key cache1.example/key.pem"
    )
    assert options in done.out


def test_a_wrong_host_is_one_sentence_and_makes_nothing(tmp_path: Path) -> None:
    done = call("pyrocache", "certificates", str(tmp_path / "tls"), "cache1.example", "../x")
    assert done.status == 1
    assert done.sentence.startswith("'../x' is not a host name")
    assert not (tmp_path / "tls").exists()


def test_without_cryptography_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("cryptography", "cryptography.x509"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    done = call("pyrocache", "certificates", str(tmp_path / "tls"), "cache1.example")
    assert done.status == 1
    assert done.sentence.endswith("pip install cryptography")


def _contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }
