"""Clients with other serializers, of one cluster: what they share, and what they refuse of each other."""

from __future__ import annotations

import marshal
import multiprocessing
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from operator import methodcaller
from typing import Any

import pytest

from pyrocache import ConfigurationError, LocalCluster, PartialFailure, PyroCacheClient, SerializationError


@dataclass(frozen=True)
class Person:
    name: str


class Level(Enum):
    LOW = 1


def greet() -> str:
    return "hello"


calls: list[str] = []


def fails_once() -> None:
    calls.append("allowed")
    if len(calls) == 1:
        raise AttributeError


def not_allowed() -> None:
    calls.append("not allowed")


class Unknown:
    """Pickled as an object of no special kind."""


class Texts:
    """A user's codec for texts."""

    name = "texts"

    def dumps(self, obj: Any) -> bytes:
        return str(obj).encode()

    def loads(self, data: bytes) -> Any:
        return data.decode()


SETTINGS: dict[str, dict[str, Any]] = {
    "msgpack": {"serializer": "msgpack"},
    "json": {"serializer": "json"},
    "compressed": {"compress_above": "1KiB"},
    "allowed": {"allowed_classes": [Person]},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_verb_uses_the_serializer(
    shared_cluster: LocalCluster, cache: PyroCacheClient, settings: dict[str, Any]
) -> None:
    value = {"numbers": [1, 2.5, None], "text": "é" * 1000}
    with shared_cluster.client(**settings) as client:
        assert client.set("set", value)
        assert client.add("add", value)
        client["item"] = value
        assert client.set_many({"many": value, "text": "text", "bytes": b"b" * 100_000}) == 3
        assert client.get_or_set("loaded", lambda: value) == value
        assert client.setdefault("default", value) == value
        assert client.compute("computed", lambda items: [*items, value], default=[]) == [value]
        for key in ("set", "add", "item", "many", "loaded", "default"):
            assert client[key] == value
        assert client.get_many(["many", "text", "nothing"]) == {"many": value, "text": "text"}
        assert client.get_with_version("set")[0] == value  # type: ignore[index]
        assert client.pop("set") == value
        calls = []

        @client.memoize()
        def double(number: int) -> list[int]:
            calls.append(number)
            return [2 * number]

        assert double(2) == double(2) == [4]
        assert calls == [2]
        client.namespace("inner").clear()
        client.namespace("inner")["key"] = value
        assert client.namespace("inner")["key"] == value
        assert len(dict(client.items())) == len(client)


@pytest.mark.parametrize("settings", [*SETTINGS.values(), {"codec": Texts()}], ids=[*SETTINGS, "user"])
def test_counters_are_shared_by_all(
    shared_cluster: LocalCluster, cache: PyroCacheClient, settings: dict[str, Any]
) -> None:
    with shared_cluster.client(**settings) as client:
        assert client.incr("count") == 1
        assert cache.incr("count", 2**100) == 2**100 + 1
        assert client.incr("count") == 2**100 + 2
        client["number"] = 5
        assert client.incr("number") == 6
        assert cache["number"] == client["number"] == 6


def test_a_value_of_another_serializer_is_refused_where_it_is_met(
    shared_cluster: LocalCluster, cache: PyroCacheClient
) -> None:
    cache.set_many({"pickled": (1, 2), "text": "text"})
    with shared_cluster.client(serializer="json") as client:
        refused: list[Callable[[], Any]] = [
            lambda: client["pickled"],
            lambda: client.get_with_version("pickled"),
            lambda: client.compute("pickled", lambda value: value),
            lambda: list(client.values()),
        ]
        for call in refused:
            with pytest.raises(SerializationError, match='written with serializer="pickle"'):
                call()
        with pytest.raises(PartialFailure) as caught:
            client.get_many(["pickled", "text"])
        assert caught.value.results == {"text": "text"}
        with pytest.raises(SerializationError, match="tuple"):
            client["tuple"] = (1, 2)
        with pytest.raises(SerializationError, match="tuple"):
            client.set_many({"tuple": (1, 2), "list": [1, 2]})
        assert "list" not in cache, "nothing was sent"
        client["pickled"] = [1, 2]  # which replaces it
        assert client["pickled"] == [1, 2]
    with pytest.raises(SerializationError, match='written with serializer="json"'):
        cache.get("pickled")


def test_only_allowed_classes_are_loaded_of_values_and_keys(
    shared_cluster: LocalCluster, cache: PyroCacheClient
) -> None:
    cache["person"] = Person("Ada")
    cache["other"] = Unknown()
    with shared_cluster.client(allowed_classes=[Person]) as client:
        assert client["person"] == Person("Ada")
        with pytest.raises(SerializationError, match=rf"{__name__}\.Unknown.*allowed_classes"):
            client.get("other")
        cache.delete("other")
        cache[Person("key")] = 1
        assert set(client) == {"person", Person("key")}
        cache[Unknown()] = 2
        for scan in (client.scan, client.items):
            with pytest.raises(SerializationError, match="Unknown"):
                list(scan())  # type: ignore[operator]


@pytest.mark.parametrize("target", ["Person", "Level", "greet"])
def test_a_pickle_cannot_change_what_an_allowed_name_stands_for(
    shared_cluster: LocalCluster, cache: PyroCacheClient, target: str
) -> None:
    state = b"N}(\x8c\x05added\x8c\x01xu\x86b."
    found = f"c{__name__}\n{target}\n".encode()
    if target == "Level":  # a member
        found += b"(I1\ntR"
    context = cache._context
    key = context.encode_key("key")
    context.backend.set(key, b"\x80\x04" + found + state, None, context.deadline())
    client = shared_cluster.client(allowed_classes=[Person, Level, greet])
    with client, pytest.raises(SerializationError, match="does not unpickle"):
        client.get("key")
    assert not any(hasattr(thing, "added") for thing in (Person, Level, Level(1), greet))


def test_a_pickle_that_fails_is_not_loaded_again_without_the_check(
    shared_cluster: LocalCluster, cache: PyroCacheClient
) -> None:
    calls.clear()
    context = cache._context
    frame = b"\x80\x04" + f"c{__name__}\nfails_once\n)R0c{__name__}\nnot_allowed\n)R.".encode()
    context.backend.set(context.encode_key("key"), frame, None, context.deadline())
    client = shared_cluster.client(allowed_classes=[fails_once])
    with client, pytest.raises(SerializationError, match="fails_once"):
        client.get("key")
    assert calls == ["allowed"]


def test_what_could_run_anything_is_not_recommended(
    shared_cluster: LocalCluster, cache: PyroCacheClient
) -> None:
    cache["key"] = "x".upper  # needs getattr
    client = shared_cluster.client(allowed_classes=[Person])
    with client, pytest.raises(SerializationError, match=r"builtins.getattr .* never add it"):
        client.get("key")


def test_codecs_that_are_modules_have_their_names(shared_cluster: LocalCluster) -> None:
    with shared_cluster.client(codec=marshal) as one, shared_cluster.client(codec=pickle) as other:
        one["of a module"] = [1]
        assert one["of a module"] == [1]
        with pytest.raises(SerializationError, match="'marshal'"):
            other["of a module"]


def test_a_client_and_its_codec_go_to_another_process(
    shared_cluster: LocalCluster, cache: PyroCacheClient
) -> None:
    with shared_cluster.client(codec=Texts(), compress_above=100) as client:
        client["from here"] = 1.5
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(methodcaller("get", "from here"), (client,)) == "1.5"
    original = shared_cluster.client(serializer="msgpack", allowed_classes=[Person])
    with original, pickle.loads(pickle.dumps(original)) as copy:
        assert copy._context.config == original._context.config
        with pytest.raises(SerializationError, match="msgpack"):
            copy["tuple"] = (1,)


def not_pickled() -> Any:
    class Local(Texts):
        pass

    return Local()


def test_a_client_with_a_codec_that_does_not_pickle_is_not_pickled(
    client_class: type[PyroCacheClient],
) -> None:
    with (
        client_class(codec=not_pickled()) as client,
        pytest.raises((AttributeError, pickle.PicklingError)),
    ):
        pickle.dumps(client)


@pytest.mark.parametrize(
    ("settings", "error", "about"),
    [
        ({"serializer": "yaml"}, ConfigurationError, "serializer"),
        ({"serializer": 1}, ConfigurationError, "serializer"),
        ({"codec": object()}, ConfigurationError, "dumps and loads"),
        ({"codec": Texts(), "serializer": "json"}, ConfigurationError, "codec or a serializer"),
        ({"allowed_classes": "module.Class"}, TypeError, "list of classes"),
        ({"allowed_classes": Person}, TypeError, "list of classes"),
        ({"allowed_classes": ["Person"]}, ConfigurationError, "module.Class"),
        ({"allowed_classes": [5]}, TypeError, "not int"),
        ({"compress_above": -1}, ConfigurationError, "compress_above"),
        ({"compress_above": True}, ConfigurationError, "compress_above"),
        ({"compress_above": 1.5}, ConfigurationError, "compress_above"),
        ({"compress_above": "much"}, ConfigurationError, "size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_a_setting_that_makes_no_sense_is_refused(
    client_class: type[PyroCacheClient], settings: dict[str, Any], error: type[Exception], about: str
) -> None:
    with pytest.raises(error, match=about):
        client_class(**settings)
