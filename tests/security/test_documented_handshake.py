"""A client made from docs/wire-format.md, without this package, is admitted if it proves the secret, else refused."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from pyrocache.config import parse_address
from pyrocache.runtime.secret import find_secret
from tests.support.nodes import RunningNode, running_node

_CONNECT, _OK, _FAIL, _INVOKE, _RESULT = 1, 2, 3, 4, 5
_NODE, _NAMESERVER = "cache.node.1", "Pyro.NameServer"
_SECONDS = 10.0


@pytest.fixture(scope="module")
def node() -> Iterator[RunningNode]:
    with running_node(open=False) as running:
        yield running


@pytest.fixture(scope="module")
def key() -> bytes:
    path = find_secret().path
    assert path is not None
    lines = [line.partition("#")[0].strip() for line in Path(path).read_text(encoding="ascii").splitlines()]
    return bytes.fromhex(next(line for line in lines if line))


class _Stranger:
    """One connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._sock = socket.create_connection(address, _SECONDS)

    def __enter__(self) -> _Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def exchange(self, kind: int, body: Any) -> tuple[int, Any]:
        """Send a message, and return the type and the body of the answer."""
        packed = msgpack.packb(body)
        header = struct.pack(
            "!4sHBBHHII16sHH", b"PYRO", 502, kind, 4, 0, 0, len(packed), 0, bytes(16), 0, 0x4DC5
        )
        self._sock.sendall(header + packed)
        answer = self._receive(40)
        return answer[6], msgpack.unpackb(self._receive(int.from_bytes(answer[12:16], "big")))

    def greet(self, object_id: str, **more: Any) -> tuple[int, Any, dict[str, Any]]:
        """Send the first message. Return the answer and the greeting that was sent."""
        host, port = self._sock.getpeername()
        offer = {"protocol": 1, "nonce": os.urandom(32), "dialled": f"{host} {port}", "unknown": 7, **more}
        return *self.exchange(_CONNECT, {"handshake": offer, "object": object_id}), offer

    def prove(self, object_id: str, proof: bytes) -> tuple[int, Any]:
        return self.exchange(_CONNECT, {"handshake": {"proof": proof}, "object": object_id})

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += (more := self._sock.recv(count - len(data)))
            assert more, "the connection was closed"
        return data


def _proof(key: bytes, role: str, object_id: str, offer: dict[str, Any], answer: dict[str, Any]) -> bytes:
    pseudorandom = hmac.digest(bytes(32), key, hashlib.sha256)
    derived = hmac.digest(pseudorandom, role.encode() + b"\1", hashlib.sha256)
    fields = [[[name, one[name]] for name in sorted(one)] for one in (offer, {**answer, "proof": None})]
    return hmac.digest(derived, msgpack.packb([object_id, *fields]), hashlib.sha256)


_SERVER, _CALLER = "pyrocache 1: proof of a server", "pyrocache 1: proof of a caller"


@pytest.mark.parametrize("object_id", [_NODE, _NAMESERVER])
def test_both_ends_prove_the_secret(node: RunningNode, key: bytes, object_id: str) -> None:
    with _Stranger(_address(node, object_id)) as stranger:
        kind, said, offer = stranger.greet(object_id)
        assert kind == _OK, said
        answer = said["handshake"]
        assert answer["proof"] == _proof(key, _SERVER, object_id, offer, answer)
        own = _proof(key, _CALLER, object_id, offer, answer)
        assert stranger.prove(object_id, own) == (_OK, {"handshake": {}, "meta": {}})
        kind, token = stranger.exchange(_INVOKE, [object_id, "issue_token", [], {}])
        assert kind == _RESULT
    with _Stranger(_address(node, object_id)) as another:
        greeting = {"handshake": {"token": token}, "object": object_id}
        assert another.exchange(_CONNECT, greeting)[0] == _OK
        assert another.exchange(_INVOKE, [object_id, "ping", [], {}])[0] == _RESULT


def test_the_proof_of_the_node_is_none_of_the_caller(node: RunningNode, key: bytes) -> None:
    with _Stranger(node.address) as stranger:
        _, said, _ = stranger.greet(_NODE)
        assert _refused(stranger.prove(_NODE, said["handshake"]["proof"])) == "other-secret"


def test_another_key_is_refused(node: RunningNode) -> None:
    with _Stranger(node.address) as stranger:
        _, said, offer = stranger.greet(_NODE)
        assert (
            _refused(stranger.prove(_NODE, _proof(bytes(32), _CALLER, _NODE, offer, said["handshake"])))
            == "other-secret"
        )


def test_another_address_is_refused(node: RunningNode) -> None:
    with _Stranger(node.address) as stranger:
        assert _refused(stranger.greet(_NODE, dialled="127.0.0.1 1")[:2]) == "other-address"


def test_a_short_nonce_is_refused(node: RunningNode) -> None:
    with _Stranger(node.address) as stranger:
        assert _refused(stranger.greet(_NODE, nonce=b"short")[:2]) == "other-secret"


def test_without_a_nonce_only_the_name_server_answers(node: RunningNode) -> None:
    with _Stranger(node.address) as stranger:
        assert _refused(stranger.exchange(_CONNECT, {"handshake": "hello", "object": _NODE})) == "no-secret"
    with _Stranger(_address(node, _NAMESERVER)) as stranger:
        kind, said = stranger.exchange(_CONNECT, {"handshake": "hello", "object": _NAMESERVER})
        assert (kind, said["handshake"]) == (_OK, {"protocol": 1, "capabilities": "pipelined unordered"})
        entry = ["cache.node.9", "PYRO:cache.node.9@127.0.0.1:1", False, None]
        _, refusal = stranger.exchange(_INVOKE, [_NAMESERVER, "register", entry, {}])
        assert refusal["attributes"]["code"] == "not-trusted"


def _address(node: RunningNode, object_id: str) -> tuple[str, int]:
    return node.address if object_id == _NODE else parse_address(node.nameserver)


def _refused(answer: tuple[int, Any]) -> str:
    kind, text = answer
    assert kind == _FAIL
    return str(text).partition(":")[0]
