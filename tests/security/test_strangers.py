"""Callers without the secret: another user of this host, clients, stock proxies, and who collects their tokens."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from Pyro5.client import Proxy
from Pyro5.core import DAEMON_NAME
from Pyro5.errors import PyroError

from pyrocache import AuthenticationError, PartialFailure, PyroCacheClient, stock_handshake
from pyrocache.cluster.routing import Member
from pyrocache.net.call_protocol import knowing
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NAMESERVER, UnprovenNameServer
from pyrocache.protocol import framing, messages, refusals
from pyrocache.protocol.commands import COMMANDS, ISSUE_TOKEN
from pyrocache.protocol.handshake import HandshakeRefused
from pyrocache.protocol.refusals import Refusal
from pyrocache.runtime import secret_file
from pyrocache.runtime.secret import find_secret
from pyrocache.server.tokens import LIFE_SECONDS
from tests.support.attackers import (
    MIB,
    Impostor,
    TrustedPeer,
    claiming,
    files_of,
    member_of,
    node_in_this_process,
    proxy_of,
    register,
    run_as_another_user,
    saying,
    stock_nameserver,
    why_no_other_user,
)
from tests.support.nodes import RunningNode, private_cluster, running_node
from tests.support.waiting import PATIENCE_SECONDS
from tests.support.wire import CLOSED, NAME, NO_VIEW, Peer, call, handshake


@pytest.fixture(scope="module")
def node() -> Iterator[RunningNode]:
    with running_node(open=False, max_memory=64 * MIB) as node:
        yield node


@pytest.fixture(scope="module")
def member(node: RunningNode) -> Member:
    return member_of(node.nameserver)


@pytest.fixture
def cache(node: RunningNode) -> Iterator[PyroCacheClient]:
    """The user's own client, which every test leaves with its entry."""
    with PyroCacheClient(node.nameserver) as cache:
        cache["key"] = "value"
        yield cache
        assert cache["key"] == "value"


@pytest.fixture(scope="module")
def other_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("other") / "secret")
    secret_file.make(path)
    return path


# Another user of this host ---------------------------------------------------------------------------------------

_TALK = """
import socket, sys
path, messages = sys.argv[1], sys.argv[2:]
host, _, port = path.rpartition(":")
try:
    sock = socket.socket(socket.AF_INET if host else socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect((host, int(port)) if host else path)
    for message in messages:
        sock.sendall(bytes.fromhex(message))
    sock.shutdown(socket.SHUT_WR)
    answer = b""
    while data := sock.recv(65536):
        answer += data
    print(answer.hex())
except OSError as error:
    print(type(error).__name__)
"""
_LISTEN = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
sock.listen()
sock.settimeout(10)
print("listening")
peer, _ = sock.accept()
peer.settimeout(10)
print("got", peer.recv(65536).hex())
"""


@pytest.fixture(scope="module")
def another_user() -> None:
    if reason := why_no_other_user():
        pytest.skip(reason)


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter and change; pytest's are for one user."""
    with tempfile.TemporaryDirectory(prefix="pyrocache-open-") as directory:
        os.chmod(directory, 0o777)
        yield Path(directory)


def said_by_another_user(address: str, *sent: bytes) -> str:
    """What another user receives, in hexadecimal digits, or the name of the error."""
    with run_as_another_user(_TALK, address, *(message.hex() for message in sent)) as process:
        out, error = process.communicate(timeout=PATIENCE_SECONDS)
    assert error == ""
    return out.strip()


def said_by_this_user(path: str, message: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(message)
        return sock.recv(65536)


@pytest.mark.usefixtures("another_user")
def test_another_user_does_not_get_to_a_unix_socket(member: Member, cache: PyroCacheClient) -> None:
    assert os.stat(os.path.dirname(member.socket_path)).st_mode & 0o777 == 0o700
    assert said_by_another_user(member.socket_path, handshake()) == "PermissionError"


@pytest.mark.usefixtures("another_user")
def test_another_user_is_not_answered_on_a_unix_socket(member: Member, cache: PyroCacheClient) -> None:
    """The directory is not all that protects: the node asks the system who is there."""
    with open_directory() as directory:
        path = str(directory / "socket")
        os.link(member.socket_path, path)  # the same socket, which all may reach here
        os.chmod(path, 0o777)
        try:
            assert said_by_another_user(path, handshake()) in ("", "ConnectionResetError", "BrokenPipeError")
            assert b"stock_handshake" in said_by_this_user(path, handshake())
        finally:
            os.chmod(path, 0o755)


@pytest.mark.usefixtures("another_user")
def test_the_unix_socket_of_another_user_is_not_used(
    member: Member, cache: PyroCacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is not all that protects: the client asks the system who is there."""
    monkeypatch.setattr("pyrocache.net.channel._is_private", lambda path: True)
    with open_directory() as directory:
        own = directory / "pyrocache-65534"
        own.mkdir()
        own.chmod(0o777)
        path = str(own / f"{member.incarnation}.sock")
        with run_as_another_user(_LISTEN, path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            connection = Connection(replace(member, socket_path=path), "auto", knowing(find_secret()))
            try:
                connection.finish_opening(Deadline(PATIENCE_SECONDS))
                assert connection.call("ping", (), Deadline(5))["incarnation"] == member.incarnation
                assert connection._channel.family == socket.AF_INET
            finally:
                connection.close()
            out, error = process.communicate(timeout=PATIENCE_SECONDS)
        assert (out, error) == ("got \n", "")


@pytest.mark.usefixtures("another_user")
def test_another_user_is_refused_over_tcp(member: Member, cache: PyroCacheClient) -> None:
    answer = bytes.fromhex(
        said_by_another_user(member.address, handshake(), call(1, "get", NO_VIEW, b"\0skey"))
    )
    header = framing.parse_header(answer)
    assert header.type == framing.CONNECT_FAIL
    assert len(answer) == header.frame_bytes, "nothing else was answered"
    assert b"no-secret" in answer


@pytest.mark.usefixtures("another_user")
def test_another_user_finds_no_secret(node: RunningNode) -> None:
    """Neither in the file nor in what the system tells of every process."""
    secret = find_secret()
    program = "import sys\ntry: open(sys.argv[1]).read(); print('read')\nexcept OSError as e: print(type(e).__name__)"
    with run_as_another_user(program, str(secret.path)) as process:
        assert process.communicate(timeout=PATIENCE_SECONDS)[0] == "PermissionError\n"
    told = files_of([*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")])
    assert any(b"pyrocache.node.process" in text for text in told)
    for key in secret.keys:
        assert not any(key.hex().encode() in text or bytes(key) in text for text in told)


# Clients ---------------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[PyroCacheClient], Any]] = {
    "get": lambda c: c.get("key"),
    "set": lambda c: c.set("key", "stranger"),
    "get_many": lambda c: c.get_many(["key", "other"]),
    "set_many": lambda c: c.set_many({"key": "stranger"}),
    "delete": lambda c: c.delete("key"),
    "get_or_set": lambda c: c.get_or_set("key", lambda: "stranger"),
    "incr": lambda c: c.incr("key"),
    "clear": lambda c: c.clear(),
    "list": list,
    "len": len,
}


def refused(cache: PyroCacheClient, *, name: str, path: str = "") -> None:
    """Every call fails with one line, which names who refuses, or is refused, and where the secret is."""
    for title, attempt in CALLS.items():
        with pytest.raises((AuthenticationError, PartialFailure)) as raised:
            attempt(cache)
        errors = getattr(raised.value, "errors", {"key": raised.value})
        assert {type(error) for error in errors.values()} <= {AuthenticationError, UnprovenNameServer}
        text = str(raised.value)
        assert name in text, title
        assert path in text, title
        assert "\n" not in text


@pytest.mark.parametrize("on_error", ["raise", "miss"])
def test_a_client_with_another_secret_is_refused(
    node: RunningNode, cache: PyroCacheClient, other_file: str, on_error: Any
) -> None:
    with PyroCacheClient(node.nameserver, secret_file=other_file, on_error=on_error) as stranger:
        refused(stranger, name=f"name server at {node.nameserver}", path=other_file)


@pytest.mark.parametrize(("on_error", "transport"), [("raise", "auto"), ("miss", "tcp")])
def test_nodes_refuse_a_client_with_another_secret_too(
    node: RunningNode, member: Member, cache: PyroCacheClient, other_file: str, on_error: Any, transport: Any
) -> None:
    with stock_nameserver() as nameserver, proxy_of(nameserver) as names:
        register(names, member)
        with PyroCacheClient(
            nameserver, secret_file=other_file, on_error=on_error, transport=transport
        ) as stranger:
            refused(stranger, name=member.name, path=other_file)


def test_a_client_without_a_secret_is_refused_by_nodes(node: RunningNode, cache: PyroCacheClient) -> None:
    with PyroCacheClient(node.nameserver, authenticate=False, on_error="miss") as stranger:
        refused(stranger, name=NAME)


# Stock proxies ---------------------------------------------------------------------------------------------------


def admitted(name: str, address: str, given: Any) -> bool:
    """Whether a stock proxy with this handshake is admitted and served. If not, it is told why."""
    with Proxy(f"PYRO:{name}@{address}") as proxy:
        proxy._pyroSerializer = "msgpack"
        proxy._pyroTimeout = PATIENCE_SECONDS
        proxy._pyroHandshake = given
        told = ""
        try:
            proxy._pyroBind()
            if name == NAMESERVER:
                proxy.remove("cache.nothing")
            else:
                assert proxy.ping()["name"] == name
        except PyroError as error:
            told = str(error)
    assert not told or f"stock_handshake({name!r})" in told or "this token" in told
    return not told


def test_a_stock_proxy_needs_a_token_and_is_told_so(node: RunningNode, cache: PyroCacheClient) -> None:
    for name, address in ((NAME, f"{node.address[0]}:{node.address[1]}"), (NAMESERVER, node.nameserver)):
        for given in ("hello", None, {}, {"token": ""}, {"token": "0" * 64}, {"token": 1}, {"nonce": b""}):
            assert not admitted(name, address, given), given
        token = stock_handshake(name, node.nameserver)
        assert admitted(name, address, token)
        assert not admitted(name, address, token), "it is accepted once"


def test_what_a_fake_node_harvests_is_of_use_at_one_node_and_once(node: RunningNode, member: Member) -> None:
    """A proxy that asks a name server where anybody can register may give its token to anybody."""
    with ExitStack() as stack:
        fake = stack.enter_context(Impostor(saying(claiming(member))))
        nameserver = stack.enter_context(stock_nameserver())
        second = stack.enter_context(running_node(name="cache.node.2", open=False))
        other_address = f"{second.address[0]}:{second.address[1]}"
        register(stack.enter_context(proxy_of(nameserver)), member, port=fake.port)
        for _ in range(2):
            with Proxy(f"PYRONAME:{NAME}@{nameserver}") as victim:
                victim._pyroSerializer = "msgpack"
                victim._pyroHandshake = stock_handshake(NAME, node.nameserver)
                victim._pyroBind()
        first, later = (greeting["handshake"] for greeting in fake.greetings)
        assert not admitted("cache.node.2", other_address, first)
        assert not admitted("cache.node.2", other_address, {"token": first["token"]})
        assert not admitted(NAMESERVER, node.nameserver, {"token": first["token"]})
        assert admitted(NAME, member.address, first), "whoever has it can use it, as is documented"
        assert not admitted(NAME, member.address, first)
        assert later["token"] != first["token"]


@pytest.mark.full
def test_a_harvested_token_is_of_no_use_later(node: RunningNode, member: Member) -> None:
    late = stock_handshake(NAME, node.nameserver)
    time.sleep(LIFE_SECONDS + 0.5)
    assert not admitted(NAME, member.address, late)


def test_a_fake_node_is_not_asked_for_a_token(member: Member) -> None:
    with Impostor(saying(claiming(member, nonce=bytes(32), proof=bytes(32)))) as fake:
        with stock_nameserver() as nameserver, proxy_of(nameserver) as names:
            register(names, member, port=fake.port)
            with pytest.raises(AuthenticationError, match=NAME):
                stock_handshake(NAME, nameserver)
        assert len(fake.greetings) == 1
        assert fake.calls == []
        assert "proof" not in fake.greetings[0]["handshake"]


# What they say ---------------------------------------------------------------------------------------------------

FORGED_LINE = "x\n2026-01-01 all is well\x1b[2J\u202e" + "y" * 10_000


def test_a_stranger_cannot_write_lines_into_a_log(caplog: pytest.LogCaptureFixture) -> None:
    with node_in_this_process() as member, Peer(At(member), greet=False) as peer:
        greeting = {"nonce": bytes(32), "dialled": f"{member.host} {member.port}", "node": FORGED_LINE}
        body = messages.pack_plain({"handshake": greeting, "object": NAME})
        peer.send(framing.pack_message(framing.CONNECT, 0, body))
        assert peer.receive().header.type == framing.CONNECT_FAIL
    (record,) = [record for record in caplog.records if record.name == "pyrocache.node"]
    assert "other-node" in record.getMessage()
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 1000


def test_a_fake_node_cannot_write_lines_into_an_error(member: Member) -> None:
    with Impostor(lambda frame: refusal(f"other-secret: {FORGED_LINE}")) as fake:
        found = replace(member, port=fake.port, socket_path="")
        connection = Connection(found, "tcp", knowing(find_secret()))
        with pytest.raises(HandshakeRefused) as refused:
            connection.finish_opening(Deadline(PATIENCE_SECONDS))
        connection.close()
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


def refusal(reason: str) -> bytes:
    return framing.pack_message(framing.CONNECT_FAIL, 0, messages.pack_plain(reason))


class At:
    """The address of a node."""

    def __init__(self, member: Member) -> None:
        self.address = member.host, member.port


# Methods ---------------------------------------------------------------------------------------------------------

PRIVATE = [
    *(
        "_x",
        "__init__",
        "__class__",
        "__reduce__",
        "__getattribute__",
        "__dict__",
        "_guard",
        "_store",
        "_lock",
    ),
    *(
        "ownership",
        "sweep",
        "begin_lease",
        "begin_acquire",
        "run",
        "close",
        "shutdown",
        "get.__self__",
        "",
        "get\0",
    ),
]
OF_A_DAEMON = [
    "register",
    "unregister",
    "shutdown",
    "resetMetadataCache",
    "uriFor",
    "__init__",
    "_x",
    ISSUE_TOKEN,
]
OF_A_NAME_SERVER = [
    "storage",
    "lock",
    "_replaceable",
    "_alive",
    "__init__",
    "begin_register",
    "close",
    "shutdown",
]

NOT_THERE = "There is no such object or method here."


def test_nothing_but_the_commands_can_be_called_at_a_node(node: RunningNode, cache: PyroCacheClient) -> None:
    with TrustedPeer(node) as peer:
        calls = [(NAME, name) for name in PRIVATE if name not in COMMANDS]
        calls += [(DAEMON_NAME, name) for name in OF_A_DAEMON]
        calls += [(target, "ping") for target in ("", "cache.node.2", NAMESERVER, "__main__", "builtins")]
        for target, name in calls:
            answer = peer.call(name, target=target)
            assert (answer.code, answer.message) == (refusals.BAD_REQUEST, NOT_THERE), (target, name)
        assert peer.call("ping")["name"] == NAME


def test_nothing_but_what_is_open_can_be_called_by_strangers_at_a_name_server(
    node: RunningNode, cache: PyroCacheClient
) -> None:
    host, _, port = node.nameserver.rpartition(":")

    with Peer(At(Member(NAME, host, int(port))), greet=False) as peer:
        peer.send(handshake(NAMESERVER))
        assert peer.receive().header.type == framing.CONNECT_OK
        for target, names in (NAMESERVER, (*OF_A_NAME_SERVER, *OF_A_DAEMON)), (DAEMON_NAME, OF_A_DAEMON):
            for name in names:
                answer = peer.call(name, target=target)
                assert answer.message == NOT_THERE or answer.code == refusals.NOT_TRUSTED, (target, name)
        assert NAME in peer.call("list", "cache.", None, True, target=NAMESERVER)


DISGUISED: list[dict[str, Any]] = [
    {"__class__": "SystemExit", "__exception__": True, "args": [3], "attributes": {}},
    {"__class__": "Pyro5.core.URI", "state": ["PYRO", "x", None, "127.0.0.1", 1]},
    {"__class__": "Pyro5.client.Proxy", "state": ["PYRO:x@127.0.0.1:1", [], [], [], "hello", "serpent"]},
    {"__class__": "pyrocache.client.client.PyroCacheClient"},
    {"__class__": "os.system", "args": ["true"]},
]


@pytest.mark.parametrize("disguised", DISGUISED, ids=lambda value: value["__class__"])
def test_no_object_is_made_of_a_dictionary(
    node: RunningNode, cache: PyroCacheClient, disguised: dict[str, Any]
) -> None:
    with TrustedPeer(node) as peer:
        for arguments in ((NO_VIEW, disguised), (disguised, b"key"), (NO_VIEW, b"key", disguised, None)):
            answer = peer.call("get" if len(arguments) == 2 else "set", *arguments)
            assert isinstance(answer, Refusal), arguments
            assert answer.code == refusals.BAD_REQUEST
        body = messages.pack_plain(disguised)
        peer.send(framing.pack_message(framing.INVOKE, 1, body))
        assert peer.fate() == CLOSED
    with TrustedPeer(node) as peer:
        assert peer.call("ping")["name"] == NAME
    with proxy_of(node.nameserver) as names:  # in serpent
        with pytest.raises(PyroError, match="stock_handshake"):
            names.register(disguised, disguised)
        assert names.yplookup([str(disguised)]) == {}
        assert NAME in names.list(prefix="cache.")


def test_a_whole_cluster_is_safe_without_any_setting() -> None:
    """What the quick start starts refuses strangers at each of its processes."""
    with private_cluster(nodes=2) as cluster, cluster.client() as cache:
        cache["key"] = "value"
        assert not admitted(NAMESERVER, cluster.nameserver, "hello")
        for node in cluster.nodes:
            assert not admitted(node.name, node.address, "hello")
        assert cache["key"] == "value"
