"""Malicious pickles, and frames that were changed, from whoever can store or change them: what a signing key is for.

The secret keeps strangers out. These attackers are inside: a client of the same user, a node, or somebody on the way
between two hosts. `test_signed_values.py` tries every method of a client; here are real processes and real messages.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyrocache import CorruptValue, PyroCacheClient, SerializationError, TamperedValue
from pyrocache.cluster.routing import Member
from pyrocache.net.call_protocol import knowing
from pyrocache.net.directory import NameServerDirectory
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.protocol import framing, messages
from pyrocache.protocol.framing import Frame
from pyrocache.protocol.handshake import format_peer
from pyrocache.runtime import secret_file
from pyrocache.runtime.secret import find_secret
from tests.support.attackers import Between, node_in_this_process
from tests.support.nodes import running_nameserver, running_node
from tests.support.processes import environment


class Evil:
    """Its pickle makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The directory that exists if code has run."""
    return tmp_path / "ran"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("keys") / "signing.key")
    secret_file.make(path)
    return path


@pytest.fixture(scope="module")
def nameserver() -> Iterator[str]:
    """The name server of one real node."""
    with running_node(open=False, max_memory=2**26) as node:
        yield node.nameserver


@contextmanager
def signing(nameserver: str, key_file: str, **options: Any) -> Iterator[PyroCacheClient]:
    """A client with the signing key. All that it does not accept is counted."""
    with PyroCacheClient(nameserver, signing_key_file=key_file, **options) as cache:
        yield cache


def expect_tampered(cache: PyroCacheClient, trace: Path, *keys: str) -> None:
    for number, key in enumerate(keys, 1):
        with pytest.raises(TamperedValue):
            cache.get(key)
        assert cache.stats().client.tampered_values == number
    assert not trace.exists()


# A client without the key --------------------------------------------------------------------------------------

_PUT = """
import os, sys
from pyrocache import PyroCacheClient

class Evil:
    def __reduce__(self):
        return os.mkdir, (sys.argv[2],)

with PyroCacheClient(sys.argv[1]) as cache:
    cache["plain"] = Evil()
    cache["in a list"] = [1, {"x": Evil()}]
    cache["replaced"] = Evil()
with PyroCacheClient(sys.argv[1], compress_above=1) as cache:
    cache["compressed"] = [Evil(), "x" * 10_000]
"""


def test_a_malicious_pickle_of_a_client_without_the_key(nameserver: str, key_file: str, trace: Path) -> None:
    with signing(nameserver, key_file) as cache:
        cache["replaced"] = "signed"
        command = [sys.executable, "-c", _PUT, nameserver, str(trace)]
        subprocess.run(command, env=environment(), check=True, timeout=60)
        expect_tampered(cache, trace, "plain", "in a list", "replaced", "compressed")
        cache["replaced"] = "signed again"
        assert cache["replaced"] == "signed again"
    with PyroCacheClient(nameserver) as unsigned:  # what the key protects from
        unsigned.get("plain")
        assert trace.exists()


# A node --------------------------------------------------------------------------------------------------------


class Changing(CacheNode):
    """A node of ours that changes what it returns."""

    change: Callable[[bytes], bytes] = staticmethod(lambda frame: frame)

    def get(self, view: int, key: bytes, touch_seconds: float | None = None) -> Any:
        frame = super().get(view, key, touch_seconds)
        return None if frame is None else type(self).change(bytes(frame))

    def get_many(self, view: int, keys: list[bytes]) -> list[Any]:
        return [self.get(view, key) for key in keys]


@contextmanager
def at_node(kind: type[CacheNode], *, between: bool = False) -> Iterator[tuple[str, Between | None]]:
    """Run such a node, which proves the secret. Yield its name server, and who is on the way to it, if anybody is."""
    with ExitStack() as stack:
        nameserver = stack.enter_context(running_nameserver())
        advertised: set[str] = set()
        member: Member = stack.enter_context(node_in_this_process(kind, advertised=advertised))
        proxy = stack.enter_context(Between((member.host, member.port))) if between else None
        if proxy is not None:
            # As if he had the address of the node, which is what it takes to be on the way.
            advertised.add(format_peer(proxy.address))
            member = replace(member, port=proxy.address[1])
        directory = NameServerDirectory(nameserver, caller=knowing(find_secret(), trusting=True))
        assert directory.register(member)
        yield nameserver, proxy


def test_a_malicious_pickle_of_a_node(key_file: str, trace: Path) -> None:
    class Malicious(Changing):
        change = staticmethod(lambda frame: pickle.dumps(Evil(trace)))

    with at_node(Malicious) as (nameserver, _):
        with signing(nameserver, key_file) as cache:
            cache["key"] = "signed"
            expect_tampered(cache, trace, "key")
        with PyroCacheClient(nameserver) as unsigned:
            unsigned.get("key")
            assert trace.exists()


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit of the value": lambda frame: frame[:-1] + bytes([frame[-1] ^ 1]),
    "a bit of the tag": lambda frame: frame[:31] + bytes([frame[31] ^ 1]) + frame[32:],
    "a bit of the key id": lambda frame: frame[:7] + bytes([frame[7] ^ 1]) + frame[8:],
    "another kind inside": lambda frame: (
        frame[:32] + (b"\x80" if frame[32:33] == b"x" else b"x") + frame[33:]
    ),
    "another kind": lambda frame: b"x" + frame[1:],
    "without the signature": lambda frame: frame[32:],
    "signed twice": lambda frame: frame[:32] + frame,
    "a tag of zeros": lambda frame: frame[:8] + bytes(24) + frame[32:],
    "an empty one": lambda frame: b"",
    "its kind": lambda frame: frame[:1],
    "its head": lambda frame: frame[:32],
    "half of it": lambda frame: frame[: len(frame) // 2],
    "a byte less": lambda frame: frame[:-1],
    "a byte more": lambda frame: frame + b"\0",
    "an int": lambda frame: b"i" + (2**70).to_bytes(16, "big"),
    "an empty signed one": lambda frame: b"S" + bytes(31),
    "compressed": lambda frame: b"z" + zlib.compress(frame),
}
VALUES: dict[str, Any] = {
    "text": "a value",
    "bytes": b"a value",
    "int": 5,
    "list": [1, {"a": 2}],
    "long": "x" * 200_000,
    "array": np.arange(1000.0),
}


def test_changed_frames_are_noticed(key_file: str) -> None:
    class Busy(Changing):
        pass

    with at_node(Busy) as (nameserver, _), signing(nameserver, key_file, compress_above=1000) as cache:
        for key, value in VALUES.items():
            cache[key] = value
        assert cache.get_many(["text", "int"]) == {"text": "a value", "int": 5}
        count = 0
        for name, change in CHANGES.items():
            Busy.change = staticmethod(change)
            for key in VALUES:
                with pytest.raises((TamperedValue, CorruptValue)) as raised:
                    cache.get(key)
                assert type(raised.value) is TamperedValue, (name, key)
                count += 1
        assert cache.stats().client.tampered_values == count
        Busy.change = staticmethod(lambda frame: frame)
        assert cache["text"] == "a value"


def test_swapped_frames_are_noticed(key_file: str) -> None:
    """A node gives the value of another key, of another namespace, and of the same key in another namespace."""

    class Swapping(CacheNode):
        frames: dict[bytes, Any] = {}  # noqa: RUF012
        instead: dict[bytes, bytes] = {}  # noqa: RUF012

        def get(self, view: int, key: bytes, touch_seconds: float | None = None) -> Any:
            frame = super().get(view, key, touch_seconds)
            self.frames[key] = frame
            return self.frames.get(self.instead.get(key, key))

    with at_node(Swapping) as (nameserver, _), signing(nameserver, key_file) as cache:
        other = cache.namespace("other")
        cache["a"], cache["b"], other["a"] = "1", "2", "3"
        assert (cache["a"], cache["b"], other["a"]) == ("1", "2", "3")
        keys = list(Swapping.frames)
        assert len(keys) == 3
        for first in keys:
            for second in keys:
                if first != second:
                    Swapping.instead = {first: second}
                    read = dict(zip(keys, (cache, cache, other), strict=True))[first]
                    with pytest.raises(TamperedValue):
                        read["b" if first == keys[1] else "a"]
        Swapping.instead = {}
        assert (cache["a"], cache["b"], other["a"]) == ("1", "2", "3")


# Somebody on the way -------------------------------------------------------------------------------------------


def with_value(change: Callable[[bytes], bytes]) -> Callable[[Frame, bytes], bytes]:
    """Change the values in replies, or in the requests that store one, and leave all other messages as they are."""

    def changed(frame: Frame, message: bytes) -> bytes:
        header = frame.header
        if header.type not in (framing.RESULT, framing.INVOKE) or header.flags & framing.FLAG_EXCEPTION:
            return message
        body: Any = messages.unpack_plain(frame.body)
        if header.type == framing.RESULT and isinstance(body, bytes):
            body = change(body)
        elif header.type == framing.INVOKE and body[1] == "set":
            view, key, value, *rest = body[2]
            body = (body[0], body[1], (view, key, change(bytes(value)), *rest), body[3])
        else:
            return message
        # The header keeps its flags and the correlation id, which say whose request it is.
        packed = messages.pack_plain(body)
        return message[:12] + len(packed).to_bytes(4, "big") + message[16 : framing.HEADER_BYTES] + packed

    return changed


@pytest.mark.parametrize("direction", ["to_client", "to_server"])
def test_a_malicious_pickle_of_somebody_on_the_way(key_file: str, trace: Path, direction: str) -> None:
    evil = pickle.dumps(Evil(trace))
    with at_node(CacheNode, between=True) as (nameserver, between):
        assert between is not None
        with signing(nameserver, key_file) as cache:
            cache["key"] = "signed"
            assert cache["key"] == "signed"
            for change in (lambda frame: evil, lambda frame: frame[:32] + evil, *CHANGES.values()):
                setattr(between, direction, with_value(change))
                if direction == "to_server":
                    cache["key"] = "signed"
                with pytest.raises((TamperedValue, CorruptValue)) as raised:
                    cache.get("key")
                assert type(raised.value) is TamperedValue
                assert not trace.exists()
            setattr(between, direction, lambda frame, message: message)
            cache["key"] = "signed"
            assert cache["key"] == "signed"
            assert cache.stats().client.tampered_values == len(CHANGES) + 2
        setattr(between, direction, with_value(lambda frame: evil))
        with PyroCacheClient(nameserver) as unsigned:  # what the key protects from
            unsigned["key"] = "unsigned"
            unsigned.get("key")
            assert trace.exists()


def test_classes_that_are_not_allowed_are_not_loaded_without_a_key_either(
    nameserver: str, trace: Path
) -> None:
    with PyroCacheClient(nameserver) as cache, PyroCacheClient(nameserver, allowed_classes=()) as careful:
        cache["key"] = Evil(trace)
        with pytest.raises(SerializationError, match="allowed_classes"):
            careful.get("key")
        assert not trace.exists()
