"""A cluster with TLS, of real processes: who gets in, how certificates are replaced, and how clients are used."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import pty
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyrocache import (
    AuthenticationError,
    ConfigurationError,
    NameServerUnavailable,
    PartialFailure,
    PyroCacheClient,
)
from pyrocache.config import TLS, parse_address
from tests.support.certificates import Certificates, new_certificates
from tests.support.forked import forked
from tests.support.processes import ROOT, environment, is_gone
from tests.support.tls_cluster import TlsCluster, said, tls_cluster
from tests.support.waiting import PATIENCE_SECONDS, eventually, wait_until

FIELDS = ("ca", "cert", "key")


@pytest.fixture(scope="module")
def running(certificates: Certificates) -> Iterator[TlsCluster]:
    with tls_cluster(certificates) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The certificates of another authority."""
    return new_certificates(tmp_path_factory.mktemp("strangers"))


def copied(tls: TLS, directory: Path) -> TLS:
    """Copy the files of these settings, so that a test can replace them."""
    directory.mkdir(exist_ok=True)
    paths = {}
    for field in FIELDS:
        if (source := getattr(tls, field)) is not None:
            paths[field] = str(directory / f"{field}.pem")
            overwrite(Path(paths[field]), Path(source).read_bytes())
    return replace(tls, **paths)


def overwrite(path: Path, content: bytes) -> None:
    """Replace a file by another one, as an operator should: at once."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.chmod(0o600)
    new.rename(path)


def shown_at(address: str, ca: str | None) -> str:
    """Return the hash of the certificate that a server shows now."""
    host, port = parse_address(address)
    context = ssl.create_default_context(cafile=ca)
    with (
        socket.create_connection((host, port), timeout=PATIENCE_SECONDS) as sock,
        context.wrap_socket(sock, server_hostname=host) as secured,
    ):
        return hashlib.sha256(secured.getpeercert(binary_form=True) or b"").hexdigest()


def hash_of(path: str | None) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(Path(path or "").read_text())).hexdigest()


def address_of(ready: dict[str, Any]) -> str:
    return f"{ready['host']}:{ready['port']}"


def works(cache: PyroCacheClient) -> bool:
    """Use every node."""
    turn = os.urandom(8)
    values = {(turn, number): os.urandom(10) for number in range(50)}
    cache.set_many(values)
    return cache.get_many(values) == values and all(cache.get(key) == values[key] for key in values)


# Who gets in -----------------------------------------------------------------------------------------------------


def refusal(kind: type[Exception], client: Callable[[], PyroCacheClient], call: str = "get") -> str:
    """Return the sentence with which a client fails."""
    with pytest.raises(kind) as caught, client() as cache:
        getattr(cache, call)("key")
    text = str(caught.value)
    assert "_ssl.c" not in text
    return text


def test_values_of_all_sizes_cross_tls(running: TlsCluster) -> None:
    with running.client() as cache:
        for size in (0, 1, 1000, 16_384, 65_536, 300_000, 20_000_000):
            value = os.urandom(size)
            cache.set(("size", size), value)
            assert cache.get(("size", size)) == value
        assert cache.ping() == 2
        cache.clear()


def test_a_client_without_tls_is_refused_with_a_sentence(running: TlsCluster) -> None:
    for tls in (None, False):
        text = refusal(AuthenticationError, lambda tls=tls: running.client(tls=tls))
        assert "no-tls: this server speaks TLS only" in text
        assert "Give tls=pyrocache.TLS(ca=...) or --tls-ca." in text


def test_a_client_with_another_authority_is_refused_with_a_sentence(
    running: TlsCluster, strangers: Certificates
) -> None:
    for tls in (strangers.client(), TLS()):
        text = refusal(AuthenticationError, lambda tls=tls: running.client(tls=tls))
        assert "other-certificate: its certificate is not accepted: self-signed certificate" in text


def test_a_server_without_tls_is_named(cluster: Any, certificates: Certificates) -> None:
    text = refusal(
        AuthenticationError,
        lambda: PyroCacheClient(cluster.nameserver, transport="tcp", tls=certificates.client()),
    )
    assert "no-tls: it does not speak TLS 1.3" in text
    assert "Start it with --tls-cert" in text


def test_a_certificate_for_another_host_is_refused(certificates: Certificates, tmp_path: Path) -> None:
    """The CA has signed it, but for another host."""
    from pyrocache.cli.authority import Authority

    client = certificates.client()
    authority = Authority(
        (certificates.directory / "ca.key").read_bytes(), Path(client.ca or "").read_bytes()
    )
    issued = authority.issue("elsewhere.example", ["elsewhere.example"], server=True, days=1)
    for field, content in {"ca": authority.cert, "cert": issued.cert, "key": issued.key}.items():
        overwrite(tmp_path / f"{field}.pem", content)
    tls = TLS(**{field: str(tmp_path / f"{field}.pem") for field in FIELDS})
    with tls_cluster(certificates, nodes=0, tls=tls) as cluster:
        text = refusal(AuthenticationError, cluster.client)
        assert "not valid for '127.0.0.1'" in text


@pytest.mark.full
def test_an_expired_certificate_is_refused(certificates: Certificates) -> None:
    with tls_cluster(certificates, nodes=0, tls=certificates.expired()) as cluster:
        assert "certificate has expired" in refusal(AuthenticationError, cluster.client)


def test_unix_sockets_stay_plain_and_are_used_meanwhile(running: TlsCluster, tmp_path: Path) -> None:
    """Without a usable CA, no TLS connection can be opened any more; Unix sockets can."""
    tls = copied(running.client_tls, tmp_path / "files")
    with running.client(tls=tls, transport="auto") as local, running.client(tls=tls) as remote:
        assert local.ping() == remote.ping() == 2
        Path(tls.ca or "").unlink()
        for cache in (local, remote):
            cache.disconnect()
        assert works(local)
        with pytest.raises(ConfigurationError, match=r"Cannot use .*/ca\.pem for TLS: no such file"):
            remote.get("key")


def test_the_files_of_a_client_may_be_missing_for_a_while(running: TlsCluster, tmp_path: Path) -> None:
    tls = copied(running.client_tls, tmp_path / "files")
    ca = Path(tls.ca or "")
    with running.client(tls=tls) as cache:
        assert works(cache)
        before = len(os.listdir("/proc/self/fd"))
        for spoil in (ca.unlink, lambda: ca.write_bytes(b"half")):
            spoil()
            cache.disconnect()
            for call in (lambda: cache.get("key"), lambda: cache.get_many(range(100)), cache.clear):
                with pytest.raises(
                    (ConfigurationError, PartialFailure), match=r"Cannot use .*/ca\.pem for TLS"
                ):
                    call()
        assert len(os.listdir("/proc/self/fd")) <= before, "each failed attempt has closed its socket"
        overwrite(ca, Path(running.client_tls.ca or "").read_bytes())
        assert works(cache)


def test_all_ends_may_have_to_show_a_certificate(
    certificates: Certificates, strangers: Certificates, tmp_path: Path
) -> None:
    server = certificates.server("mutual.example", require_client_cert=True)
    with tls_cluster(certificates, tls=server, client_tls=certificates.client("known")) as cluster:
        with cluster.client() as cache:
            assert works(cache)
            cluster.add_node()  # which the others and the name server accept
            eventually(lambda: cache.ping() == 3)
            assert works(cache)
        for tls in (certificates.client(), replace(strangers.client("foreign"), ca=server.ca)):
            for transport in ("tcp", "auto"):
                text = refusal(
                    AuthenticationError, lambda tls=tls, way=transport: cluster.client(tls=tls, transport=way)
                )
                shown = (
                    "demands a certificate of this end"
                    if tls.cert is None
                    else "does not accept the certificate"
                )
                assert f"other-certificate: it {shown}" in text
        # The nodes ask, too: one with a foreign certificate reaches nobody, whatever it shows as a server.
        foreign = replace(copied(strangers.server("mutual.example"), tmp_path / "foreign"), ca=server.ca)
        with pytest.raises(Exception, match="other-certificate: it does not accept the certificate"):
            cluster.start(tls=foreign).wait_until_ready()
        with cluster.client() as cache:
            assert cache.ping() == 3


def test_a_node_without_tls_does_not_join(running: TlsCluster) -> None:
    from pyrocache.runtime.child_process import start_node

    process = start_node({"nameserver": running.nameserver}, quiet=True)
    with pytest.raises(Exception, match="no-tls: this server speaks TLS only"):
        process.wait_until_ready()


# Ways to use a client --------------------------------------------------------------------------------------------


def test_a_pickled_client_has_its_settings(running: TlsCluster) -> None:
    with running.client() as cache:
        cache.set("pickled", 1)
        with pickle.loads(pickle.dumps(cache)) as other:
            assert other.get("pickled") == 1
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            assert pool.apply(read, (cache, "pickled")) == 1


def read(cache: PyroCacheClient, key: str) -> Any:
    with cache:
        return cache.get(key)


def test_a_forked_process_has_connections_of_its_own(running: TlsCluster) -> None:
    """Two processes that continued one TLS stream would break it."""
    with running.client() as cache:
        assert works(cache)

        def child() -> bool:
            return all(works(cache) for _ in range(5))

        for _ in range(3):
            assert forked(child) is True
            assert works(cache)


def test_threads_share_a_client(running: TlsCluster) -> None:
    with running.client() as cache, ThreadPoolExecutor(16) as pool:

        def use(number: int) -> bool:
            for turn in range(20):
                value = bytes([number]) * (300_000 if turn == 7 else turn)
                cache.set((number, turn), value)
                if cache.get((number, turn)) != value:
                    return False
            return len(cache.get_many((number, turn) for turn in range(20))) == 20

        assert all(pool.map(use, range(16)))


GEVENT = """
from gevent import monkey; monkey.patch_all()
import sys, time
import gevent
from pyrocache import PyroCacheClient, TLS

cache = PyroCacheClient(sys.argv[1], tls=TLS(ca=sys.argv[2]), transport="tcp", timeout=20.0)
ticks = []
def tick():
    while True:
        ticks.append(time.monotonic())
        gevent.sleep(0.01)
ticker = gevent.spawn(tick)

def use(number):
    for turn in range(10):
        value = bytes([number]) * (300_000 if turn == 7 else turn)
        assert cache.set((number, turn), value)
        assert cache.get((number, turn)) == value
    assert len(cache.get_many([(number, turn) for turn in range(10)])) == 10

gevent.joinall([gevent.spawn(use, number) for number in range(40)], raise_error=True)
assert len(ticks) > 3, "no call blocks the others"
print("done")
"""


@pytest.mark.full
def test_greenlets_share_a_client(running: TlsCluster) -> None:
    pytest.importorskip("gevent")
    command = [sys.executable, "-c", GEVENT, running.nameserver, str(running.client_tls.ca)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60.0, env=environment())
    assert (outcome.returncode, outcome.stdout) == (0, "done\n"), outcome.stderr


STOCK = """
import sys
import Pyro5.api
from Pyro5.errors import CommunicationError
from pyrocache import TLS, stock_handshake

nameserver, node, ca = sys.argv[1:]
Pyro5.config.SSL = True
Pyro5.config.SSL_CACERTS = ca
with Pyro5.api.Proxy(f"PYRO:cache.node.1@{node}") as proxy:
    proxy._pyroSerializer = "msgpack"
    proxy._pyroTimeout = 20
    proxy._pyroHandshake = stock_handshake("cache.node.1", nameserver, tls=TLS(ca=ca))
    print(proxy.ping()["name"])
    proxy.set(0, b"stock", bytes(300_000))
    print(len(proxy.get(0, b"stock")))
with Pyro5.api.Proxy(f"PYRO:Pyro.NameServer@{nameserver}") as proxy:
    proxy._pyroHandshake = stock_handshake("Pyro.NameServer", nameserver, tls=TLS(ca=ca))
    print("cache.node.1" in proxy.list())
    proxy.register("mine", "PYRO:it@127.0.0.1:1")
with Pyro5.api.Proxy(f"PYRO:cache.node.1@{node}") as proxy:
    proxy._pyroSerializer = "msgpack"
    try:
        proxy.ping()
    except CommunicationError as error:
        print("no-secret" in str(error))
Pyro5.config.SSL = False
with Pyro5.api.Proxy(f"PYRO:cache.node.1@{node}") as proxy:
    proxy._pyroSerializer = "msgpack"
    try:
        proxy.ping()
    except CommunicationError as error:
        print("no-tls: this server speaks TLS only" in str(error))
"""


def test_a_stock_proxy_uses_the_tls_of_pyro5(certificates: Certificates) -> None:
    with tls_cluster(certificates, nodes=1, name="cache.node.1") as cluster:
        node = address_of(cluster.ready[0])
        command = [sys.executable, "-c", STOCK, cluster.nameserver, node, str(cluster.client_tls.ca)]
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=60.0, env=environment())
        assert outcome.stdout.split() == ["cache.node.1", "300000", "True", "True", "True"], outcome.stderr


def load_again(process: Any) -> str:
    """Send SIGHUP. Return the line that the process prints then."""
    before = len(lines_about_certificates(process))
    process.signal(signal.SIGHUP)
    assert wait_until(lambda: len(lines_about_certificates(process)) > before)
    (line,) = lines_about_certificates(process)[before:]
    return line


# New certificates ------------------------------------------------------------------------------------------------


def lines_about_certificates(process: Any) -> list[str]:
    return [line for line in said(process) if "certificate" in line]


def test_sighup_loads_a_new_certificate_for_new_connections(
    certificates: Certificates, tmp_path: Path
) -> None:
    tls = copied(certificates.server(), tmp_path / "server")
    new = certificates.server("renewed.example")
    with (
        tls_cluster(certificates, nodes=1, tls=tls, name="cache.node.1") as cluster,
        cluster.client() as cache,
    ):
        assert works(cache)
        addresses = [address_of(cluster.ready[0]), cluster.nameserver]
        old = hash_of(tls.cert)
        assert [shown_at(address, tls.ca) for address in addresses] == [old, old]
        # A file that is broken keeps the old certificate.
        good = {field: Path(getattr(new, field)).read_bytes() for field in FIELDS}
        overwrite(Path(tls.cert or ""), b"nothing\n")
        for process in cluster.processes:
            line = load_again(process)
            assert "keeps its certificate: Cannot use" in line
            assert "does not hold what it should" in line
        assert [shown_at(address, tls.ca) for address in addresses] == [old, old]
        assert works(cache)
        # And then a good one.
        held = connections(cluster, cache)
        for field in FIELDS:
            overwrite(Path(getattr(tls, field)), good[field])
        assert load_again(cluster.nodes[0]).endswith("cache.node.1 has loaded its certificate again.")
        assert load_again(cluster.nameserver_process).endswith(
            "The name server has loaded its certificate again."
        )
        renewed = hash_of(new.cert)
        assert renewed != old
        assert [shown_at(address, tls.ca) for address in addresses] == [renewed, renewed]
        assert works(cache)
        assert connections(cluster, cache) == held, "open connections live on"
        cache.disconnect()
        assert works(cache)
        with cluster.client() as other:
            assert works(other)


def connections(cluster: TlsCluster, cache: PyroCacheClient) -> int:
    """Return how many connections the node has accepted that are open."""
    (node,) = cache.stats().nodes.values()
    return int(node.connections)


@pytest.mark.full
def test_the_authority_is_replaced_while_clients_call(
    certificates: Certificates, strangers: Certificates, tmp_path: Path
) -> None:
    """First all know both authorities, then the servers get new certificates, then the old one is forgotten."""
    tls = copied(certificates.server(), tmp_path / "server")
    client = copied(certificates.client(), tmp_path / "client")
    new = strangers.server()
    old_ca, new_ca = (Path(files.ca or "").read_bytes() for files in (certificates.server(), new))
    failures: list[Exception] = []
    stop = threading.Event()
    with tls_cluster(certificates, tls=tls, client_tls=client) as cluster:

        def call() -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                try:
                    with cluster.client() as cache:
                        cache.set("key", turn)  # another thread, or a new node, may make it a miss
                        cache.get("key")
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:

            def put(field: str, content: bytes, *files: TLS) -> None:
                for settings in files:
                    overwrite(Path(getattr(settings, field)), content)

            def reload() -> None:
                for process in cluster.processes:
                    load_again(process)

            put("ca", old_ca + new_ca, tls, client)
            reload()
            for field in ("cert", "key"):
                put(field, Path(getattr(new, field)).read_bytes(), tls)
            reload()
            assert shown_at(cluster.nameserver, new.ca) == hash_of(new.cert)
            put("ca", new_ca, tls, client)
            reload()
            cluster.add_node()
            with cluster.client() as cache:
                eventually(lambda: cache.ping() == 3)
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE_SECONDS)
        assert failures == []
        refusal(AuthenticationError, lambda: cluster.client(tls=certificates.client()))


# SIGHUP and the terminal -----------------------------------------------------------------------------------------

IN_TERMINAL = """
import json, os, signal, sys, time
from pyrocache.runtime.child_process import start_nameserver
tls = json.loads(sys.argv[1])
server = start_nameserver(quiet=True, tls=tls or None)
server.wait_until_ready()
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # this process stays
with open(sys.argv[2], "w") as file:
    file.write(str(server.pid))
os.rename(sys.argv[2], sys.argv[3])
time.sleep(60)
"""


@contextmanager
def in_terminal(tls: TLS | None, directory: Path) -> Iterator[tuple[int, int, int]]:
    """Run a name server in a terminal. Yield its pid, that of its parent, and the descriptor of the terminal."""
    import json
    from dataclasses import asdict

    files = [str(directory / name) for name in ("writing", "pid")]
    arguments = [sys.executable, "-c", IN_TERMINAL, json.dumps(asdict(tls) if tls else {}), *files]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, arguments, environment())
    try:
        eventually(lambda: Path(files[1]).exists(), seconds=PATIENCE_SECONDS)
        yield int(Path(files[1]).read_text()), pid, terminal
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.full
def test_a_server_without_tls_stops_on_sighup(tmp_path: Path) -> None:
    with in_terminal(None, tmp_path) as (server, parent, terminal):
        os.kill(server, signal.SIGHUP)
        assert wait_until(lambda: is_gone(server))
        assert not is_gone(parent)
        os.close(terminal)


@pytest.mark.full
def test_a_server_with_tls_stops_when_its_terminal_is_gone(
    certificates: Certificates, tmp_path: Path
) -> None:
    with in_terminal(certificates.server(), tmp_path) as (server, parent, terminal):
        for _ in range(3):
            os.kill(server, signal.SIGHUP)
        assert not wait_until(lambda: is_gone(server), seconds=0.3), (
            "the terminal is there: it loads its files"
        )
        os.close(terminal)
        os.kill(server, signal.SIGHUP)  # as a shell does, which the system has told
        assert wait_until(lambda: is_gone(server))
        assert not is_gone(parent)


@pytest.mark.full
def test_a_missing_name_server_is_no_matter_of_tls(certificates: Certificates) -> None:
    with tls_cluster(certificates, nodes=0) as cluster:
        cluster.nameserver_process.kill()
        refusal(NameServerUnavailable, cluster.client)
