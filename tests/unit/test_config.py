"""Settings and their notations."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.config import (
    REQUEST_OVERHEAD_BYTES,
    TLS,
    ClientConfig,
    NameServerConfig,
    NodeConfig,
    format_address,
    format_size,
    parse_address,
    parse_advertised,
    parse_size,
    seconds_until,
    to_seconds,
    ttl_to_seconds,
)
from pyrocache.errors import ConfigurationError, InsecureAddress


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512B", 512),
        ("1KiB", 1024),
        ("1k", 1000),
        ("1.5 MiB", 1572864),
        ("2gb", 2 * 10**9),
        ("1GiB", 2**30),
        ("1TiB", 2**40),
        (77, 77),
    ],
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1 PiB", "1.2.3", "0", 0, -5, True, None, 1.5, "∞"])
def test_no_sizes(text: Any) -> None:
    with pytest.raises(ConfigurationError):
        parse_size(text)


def test_sizes_are_shown_short() -> None:
    assert [format_size(n) for n in (0, 1023, 1024, 2**30, 5 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.0 GiB",
        "5.0 TiB",
    ]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9090", ("127.0.0.1", 9090)),
        ("localhost", ("localhost", 9090)),
        ("[::1]:1234", ("::1", 1234)),
        ("cache-1.example.org:80", ("cache-1.example.org", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address
    assert parse_address(format_address(*address)) == address


@pytest.mark.parametrize(
    "text",
    ["", ":9090", "host:", "host:0", "host:65536", "a b:1", "::1:5", "x@y:1", "http://h:1", None, "h:-1"],
)
def test_no_addresses(text: Any) -> None:
    with pytest.raises(ConfigurationError, match="not a valid address"):
        parse_address(text)


@given(st.text())
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    try:
        host, port = parse_address(text)
    except ConfigurationError:
        return
    assert host
    assert 0 < port < 65536


CERTIFICATE = TLS(ca="ca.pem", cert="cert.pem", key="key.pem")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_is_safe(host: str) -> None:
    assert NodeConfig(host=host).tls is NameServerConfig(host=host).tls is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "192.168.1.5"])
@pytest.mark.parametrize("kind", [NodeConfig, NameServerConfig])
def test_other_addresses_need_tls_or_leave(kind: Any, host: str) -> None:
    with pytest.raises(InsecureAddress, match="--no-tls"):
        kind(host=host, advertise="10.0.0.1")
    for tls in (False, CERTIFICATE):
        assert kind(host=host, advertise="10.0.0.1", tls=tls).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize("advertise", [None, "0.0.0.0:1", "::"])
@pytest.mark.parametrize("kind", [NodeConfig, NameServerConfig])
def test_nobody_can_connect_to_all_addresses(kind: Any, host: str, advertise: str | None) -> None:
    with pytest.raises(ConfigurationError, match=r"not an address|not a valid address"):
        kind(host=host, advertise=advertise, tls=False)


@pytest.mark.parametrize("kind", [NodeConfig, NameServerConfig])
def test_an_address_that_other_hosts_write_in_another_way_is_not_advertised(kind: Any) -> None:
    """Pyro5's URIs do not take such addresses either."""
    for settings in ({"host": "fe80::1%eth0"}, {"host": "::", "advertise": "fe80::1%eth0"}):
        with pytest.raises(ConfigurationError, match="is a link-local address"):
            kind(tls=False, **settings)
    assert kind(tls=False, host="fe80::1%eth0", advertise="a.example").advertise == "a.example"


@pytest.mark.parametrize("kind", [NodeConfig, NameServerConfig])
def test_what_leads_to_loopback_from_other_hosts_is_not_safe(kind: Any) -> None:
    with pytest.raises(InsecureAddress, match=r"Other hosts can reach 10\.0\.0\.1"):
        kind(advertise="10.0.0.1:7")
    assert kind(advertise="10.0.0.1:7", tls=False).host == kind(advertise="localhost:7").host == "127.0.0.1"
    with pytest.raises(ConfigurationError, match="leave --open out"):
        NodeConfig(advertise="10.0.0.1:7", tls=False, open=True)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("a.b", ("a.b", 0)),
        ("a.b:7", ("a.b", 7)),
        ("[::1]", ("::1", 0)),
        ("::1", ("::1", 0)),
        ("fe80::1%eth0", ("fe80::1%eth0", 0)),
        ("[::1]:7", ("::1", 7)),
    ],
)
def test_what_is_advertised_may_lack_a_port(text: str, address: tuple[str, int]) -> None:
    assert parse_advertised(text) == address


def test_settings_of_tls_are_checked_and_absolute() -> None:
    assert os.path.isabs(CERTIFICATE.ca or "")
    for wrong in ({"cert": "cert.pem"}, {"key": "key.pem"}, {"ca": ""}, {"ca": 1}):
        with pytest.raises(ConfigurationError):
            TLS(**wrong)  # type: ignore[arg-type]
    for tls, problem in (
        (TLS(ca="ca.pem"), "needs a certificate"),
        (TLS(cert="cert.pem", key="key.pem", require_client_cert=True), "--tls-ca"),
        ("ca.pem", "tls must be a TLS"),
        (True, "tls must be a TLS"),
    ):
        with pytest.raises(ConfigurationError, match=problem):
            NodeConfig(tls=tls)  # type: ignore[arg-type]


@pytest.mark.parametrize("tls", [None, False, CERTIFICATE])
def test_settings_survive_json(tls: Any) -> None:
    config = NodeConfig(tls=tls)
    assert NodeConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [(None, None), (1, 1.0), (0.25, 0.25), (timedelta(minutes=1), 60.0), (math.inf, None), (10**400, None)],
)
def test_ttls(ttl: Any, seconds: float | None) -> None:
    assert ttl_to_seconds(ttl) == seconds


@pytest.mark.parametrize("ttl", [0, -1, -0.5, math.nan, timedelta(0), timedelta(seconds=-1), -math.inf])
def test_ttls_that_are_not_above_zero(ttl: Any) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ttl_to_seconds(ttl)


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        (np.int32(60), 60.0),
        (np.uint8(60), 60.0),
        (np.float32(0.25), 0.25),
        (np.float64(0.25), 0.25),
        (np.timedelta64(2, "m"), 120.0),
        (np.timedelta64(1500, "ms"), 1.5),
        (Decimal("0.25"), 0.25),
        (Fraction(1, 4), 0.25),
    ],
    ids=repr,
)
def test_durations_may_be_numbers_of_any_type(duration: Any, seconds: float) -> None:
    for converted in (ttl_to_seconds(duration), to_seconds(duration, "x")):
        assert (converted, type(converted)) == (seconds, float)
    if not isinstance(duration, np.timedelta64):
        assert type(ClientConfig(timeout=duration).timeout) is float
        assert type(NodeConfig(idle_seconds=duration).idle_seconds) is float


def test_a_number_that_no_float_can_hold_is_infinite() -> None:
    assert ttl_to_seconds(Fraction(10**400)) is None
    with pytest.raises(ValueError, match="finite"):
        to_seconds(Decimal("1e400"), "x")
    with pytest.raises(ValueError, match="above 0"):
        ttl_to_seconds(-Fraction(10**400))


@pytest.mark.parametrize(
    "ttl",
    [np.bool_(True), np.str_("5"), np.array([5]), np.timedelta64(1, "M"), np.datetime64(5, "s")],
    ids=repr,
)
def test_what_is_no_duration(ttl: Any) -> None:
    with pytest.raises(TypeError, match="x must be an int, a float"):
        ttl_to_seconds(ttl, "x")
    with pytest.raises(TypeError, match="x must be an int, a float"):
        to_seconds(ttl, "x")


@pytest.mark.parametrize(
    "ttl", [np.float32("nan"), np.timedelta64("NaT"), Decimal("NaN"), np.int8(-1)], ids=repr
)
def test_numbers_of_any_type_are_checked(ttl: Any) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ttl_to_seconds(ttl)


@pytest.mark.parametrize(
    ("at", "seconds"),
    [
        (1060, 60.0),
        (np.float64(1060.5), 60.5),
        (np.int64(1060), 60.0),
        (Decimal("1000.25"), 0.25),
        (1000, 0.0),
        (999.5, 0.0),
        (-(10**400), 0.0),
        (-math.inf, 0.0),
        (math.inf, None),
        (10**400, None),
        (datetime(1970, 1, 1, 0, 20, tzinfo=UTC), 200.0),
        (datetime(1970, 1, 1, 1, 20, tzinfo=timezone(timedelta(hours=1))), 200.0),
        (datetime(1969, 1, 1, tzinfo=UTC), 0.0),
        (datetime.max.replace(tzinfo=UTC), 253402299800.0),
    ],
)
def test_the_seconds_until_a_point_in_time(at: Any, seconds: float | None) -> None:
    assert seconds_until(at, 1000.0) == seconds


@pytest.mark.parametrize(
    "at", ["1060", True, None, date(2030, 1, 1), timedelta(1), np.datetime64("2030-01-01"), 1j]
)
def test_what_is_no_point_in_time(at: Any) -> None:
    with pytest.raises(TypeError, match="an aware datetime or a number"):
        seconds_until(at, 1000.0)


@pytest.mark.parametrize("at", [datetime(2030, 1, 1), math.nan])
def test_an_ambiguous_point_in_time(at: Any) -> None:
    with pytest.raises(ValueError, match="expires_at"):
        seconds_until(at, 1000.0)


@pytest.mark.parametrize("ttl", ["60", True, [1], 1j])
def test_ttls_of_the_wrong_type(ttl: Any) -> None:
    with pytest.raises(TypeError):
        ttl_to_seconds(ttl)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "node1"},
        {"name": "cache.node.0"},
        {"host": "10.0.0.1"},
        {"host": "not a host"},
        {"port": 70000},
        {"nameserver": "nowhere:"},
        {"weight": 0},
        {"weight": math.nan},
        {"zone": "a b"},
        {"zone": "rack/1"},
        {"zone": "ä"},
        {"zone": "a\n"},
        {"zone": "z" * 65},
        {"zone": None},
        {"max_memory": 1},
        {"workers": 0},
        {"request_seconds": 0},
        {"heartbeat_seconds": math.inf},
    ],
)
def test_node_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        NodeConfig(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nameserver": "x y"},
        {"namespace": 5},
        {"namespace": "shop"},
        {"namespace": ("shop", 5)},
        {"namespace": ("n" * 256,)},
        {"namespace": ("é" * 128,)},
        {"namespace": ("n" * 200, "n" * 200, "n" * 110)},
        {"namespace": ("",) * 513},
        {"timeout": 0},
        {"timeout": math.nan},
        {"timeout": "5"},
        {"on_error": "ignore"},
        {"on_undecodable": "ignore"},
        {"max_connections": 0},
    ],
)
def test_client_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ClientConfig(**wrong)


@pytest.mark.parametrize("path", [(), ("",), ("n" * 255, "n" * 255), ("",) * 512, ("\0", "\ud800", "a/b")])
def test_a_namespace_is_a_path_of_any_names(path: tuple[str, ...]) -> None:
    assert ClientConfig(namespace=path).namespace == path


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        ClientConfig().timeout = 1  # type: ignore[misc]


def test_the_error_for_the_adaptive_eviction_policy_says_that_it_was_removed() -> None:
    with pytest.raises(ConfigurationError, match="'adaptive' was removed: the default is 's3fifo'"):
        NodeConfig(eviction="adaptive")
    assert NodeConfig().eviction == "s3fifo"


@pytest.mark.parametrize(
    ("memory", "largest"), [(2**30, 2**28), (64 * 2**20, 16 * 2**20), (64 * 1024, 16 * 1024)]
)
def test_the_largest_value_is_a_quarter_of_the_memory(memory: int, largest: int) -> None:
    assert NodeConfig(max_memory=memory).max_value_bytes == largest


@pytest.mark.parametrize("memory", [64 * 1024, 64 * 2**20, 2**30, 2**40])
def test_a_largest_value_that_cannot_be_received_is_refused(memory: int) -> None:
    with pytest.raises(ConfigurationError, match="cannot be received") as caught:
        NodeConfig(max_memory=memory, max_value_bytes=2**40)
    largest = int(re.findall(r"can have (\d+) bytes", str(caught.value))[0])
    config = NodeConfig(max_memory=memory, max_value_bytes=largest)
    assert config.max_value_bytes + REQUEST_OVERHEAD_BYTES <= min(config.max_buffered_bytes, 2**32 - 1)
    with pytest.raises(ConfigurationError):
        NodeConfig(max_memory=memory, max_value_bytes=largest + 1)
    assert NodeConfig(**asdict(config)) == config


@pytest.mark.parametrize("zone", ["", "a", "rack-1", "eu_west.b", "z" * 64])
def test_a_zone_is_a_short_name(zone: str) -> None:
    assert NodeConfig(zone=zone).zone == zone


_IN_A_NEW_PROCESS = """
import sys
from pyrocache.config import check_number
Int, Float = type("Int", (int,), {}), type("Float", (float,), {})
print(check_number(Int(3), "x"), check_number(Float(0.5), "x"), {"decimal", "numbers"} & set(sys.modules))
try:
    check_number("3", "x")
except TypeError as error:
    print(error)
"""


def test_numbers_are_known_before_the_program_has_imported_their_modules() -> None:
    command = [sys.executable, "-S", "-c", _IN_A_NEW_PROCESS]
    paths = os.pathsep.join(sys.path)  # -S: without what an environment's .pth files import
    output = subprocess.check_output(command, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert output.splitlines() == ["3.0 0.5 set()", "x must be an int or a float, not str."]


@pytest.mark.parametrize("number", [0, -1, 1.5, 2.0, True, None, "2"])
@pytest.mark.parametrize("name", ["connections", "max_connections"])
def test_a_number_of_connections_is_a_whole_number(name: str, number: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=f"^{name} must be a whole number, at least 1, not {number!r}.$"
    ):
        ClientConfig(**{name: number})
