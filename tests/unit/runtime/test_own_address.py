"""Which addresses are this host's own. The kernel is asked; nothing is sent."""

from __future__ import annotations

import socket

import pytest

from pyrocache.runtime.own_address import is_own, leads_back, towards


def test_loopback_is_reached_from_loopback() -> None:
    assert towards("127.0.0.1", 9) == "127.0.0.1"
    with pytest.raises(socket.gaierror):
        towards("nowhere.invalid", 9)


def test_an_address_is_reached_from_an_own_one() -> None:
    try:
        own = towards("192.0.2.200", 9)
    except OSError:
        pytest.skip("this host has no route to others")
    assert is_own(own)
    assert not leads_back(own)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.5.5.5", True),
        ("::1", True),
        ("192.0.2.200", False),
        ("2001:db8::9", False),
        ("localhost", False),
        ("nowhere.invalid", False),
        ("", False),
        ("255.255.255.255", False),
        ("fe80::1%nowhere", False),
    ],
)
def test_which_addresses_are_own_for_certain(host: str, own: bool) -> None:
    assert is_own(host) is own


@pytest.mark.parametrize(
    ("host", "back"),
    [
        ("127.5.5.5", True),
        ("::1", True),
        ("localhost", True),
        ("192.0.2.200", False),
        ("0.0.0.0", False),
        ("nowhere.invalid", False),
        ("a" * 64 + ".invalid", False),
    ],
)
def test_which_names_and_addresses_are_loopback(host: str, back: bool) -> None:
    assert leads_back(host) is back
