"""Which namespace a key is in, and which namespaces there are."""

from __future__ import annotations

import pytest

from pyrocache.client.keys.encoding import encode_key
from pyrocache.client.keys.format import namespace_prefix
from pyrocache.node.store.namespaces import ROOT, Namespace, Namespaces, prefix_of
from pyrocache.protocol.partition import partition_of


def put(space: Namespace, key: bytes, value: bytes) -> None:
    """Store an entry under a new key."""
    space.put_many([key], [partition_of(key)], [value], [key])


class TestPrefixes:
    @pytest.mark.parametrize(
        "path",
        [
            *[(), ("shop",), ("shop", "eu"), ("",), ("ü",)],
            *[("n" * size,) for size in (125, 126, 127, 128, 16_000, 16_378, 16_383, 16_384, 40_000, 65_000)],
        ],
        ids=lambda path: " ".join(f"{name[:5]}{len(name)}" for name in path),
    )
    def test_it_is_what_the_client_says(self, path: tuple[str, ...]) -> None:
        prefix = namespace_prefix(*path)
        assert prefix_of(encode_key("key", prefix)) == prefix
        assert prefix_of(prefix + b"k") == prefix
        assert prefix_of(prefix) == (ROOT if not path else b""), "a key is more than its namespace"

    @pytest.mark.parametrize(
        "key", [b"k", b"\1", b"\x05abcd", b"\x80", b"\xff\xff", b"\xff" * 10, b"\xff\xff\x03k"]
    )
    def test_a_key_shorter_than_it_says_is_in_none(self, key: bytes) -> None:
        assert prefix_of(key) == b""

    def test_every_key_that_begins_with_its_namespace_is_in_it(self) -> None:
        for first in range(256):
            for second in range(256):
                key = bytes((first, second)) + bytes(20_000)
                prefix = prefix_of(key)
                assert key.startswith(prefix)
                if prefix:
                    assert prefix_of(prefix + b"other") == prefix


class TestNamespaces:
    def test_the_root_is_always_there(self) -> None:
        spaces = Namespaces()
        assert list(spaces) == [spaces.root]
        assert spaces.of(b"\0key") is spaces.of(b"\0") is spaces.get(ROOT) is spaces.root
        assert spaces.root.overhead == 0

    def test_others_are_made_when_they_are_needed(self) -> None:
        spaces = Namespaces()
        assert spaces.get(b"\1n") is None
        space = spaces.of(b"\1nkey")
        assert space is spaces.of(b"\1nother") is spaces.get(b"\1n")
        assert (space.prefix, space.count) == (b"\1n", 0)
        assert list(spaces) == [spaces.root, space]

    @pytest.mark.parametrize("key", [b"\0key", b"\1nkey"])
    def test_one_that_is_cleared_is_replaced_and_keeps_its_figures(self, key: bytes) -> None:
        spaces = Namespaces()
        old = spaces.of(key)
        put(old, key, b"value")
        old.hits, old.misses = 3, 4
        spaces.clear(old)
        new = spaces.of(key)
        assert new is not old
        assert (new.prefix, new.count, new.hits, new.misses) == (old.prefix, 0, 3, 4)
        assert (spaces.root is new) == (key[0] == 0)
        assert list(spaces.cleared[old.prefix]) == [old]
        spaces.clear(new)
        spaces.reclaimed(old)
        assert list(spaces.cleared[old.prefix]) == [new]
        spaces.reclaimed(new)
        assert not spaces.cleared

    def test_of_many_that_are_empty_only_the_figures_are_kept(self) -> None:
        spaces = Namespaces()
        kept = spaces.of(b"\1nkey")
        put(kept, b"\1nkey", b"value")
        root = spaces.root
        for number in range(5000):
            space = spaces.of(b"\5n%04dkey" % number)
            assert spaces.get(b"\5n%04d" % number) is space, "the newest is never forgotten"
            space.hits, space.misses = 1, 2
        assert len(list(spaces)) < 1100
        assert spaces.get(b"\1n") is kept
        assert spaces.root is spaces.get(ROOT) is root
        assert spaces.hits + sum(space.hits for space in spaces) == 5000
        assert spaces.misses + sum(space.misses for space in spaces) == 10_000

    def test_any_number_of_those_with_entries_is_kept(self) -> None:
        spaces = Namespaces()
        for number in range(3000):
            key = b"\5n%04dkey" % number
            put(spaces.of(key), key, b"value")
        for number in range(3000):
            key = b"\5n%04dkey" % number
            assert spaces.of(key).get(key) == b"value"
        assert len(list(spaces)) == 3001
