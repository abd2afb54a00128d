"""Listening sockets, and the addresses by which callers know them."""

from __future__ import annotations

import errno
import logging
import socket

import pytest

from pyrocache.server import tcp_socket


def ipv6() -> None:
    """Skip the test where there is no IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this host has no IPv6")


def test_all_addresses_of_ipv6_are_those_of_ipv4_too() -> None:
    ipv6()
    with tcp_socket.listen("::", 0) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), 5.0).close()


@pytest.mark.parametrize(
    ("host", "advertise", "registered"),
    [
        ("127.0.0.1", None, ("127.0.0.1", 0)),
        ("localhost", None, ("127.0.0.1", 0)),
        ("0.0.0.0", "a.example", ("a.example", 0)),
        ("0.0.0.0", "a.example:7", ("a.example", 7)),
        ("127.0.0.1", "[2001:db8::1]:7", ("2001:db8::1", 7)),
        ("127.0.0.1", "localhost:7", ("127.0.0.1", 7)),
    ],
)
def test_others_are_told_what_is_advertised(
    host: str, advertise: str | None, registered: tuple[str, int]
) -> None:
    with tcp_socket.listen(host, 0) as listener:
        expected = (registered[0], registered[1] or listener.getsockname()[1])
        assert tcp_socket.registered_address(listener, host, advertise) == expected


@pytest.mark.parametrize(
    ("host", "dialled"),
    [
        ("10.0.0.7", {"10.0.0.7 7"}),
        ("2001:db8::0:1", {"2001:db8::1 7"}),
        ("::ffff:10.0.0.7", {"10.0.0.7 7"}),
    ],
)
def test_what_callers_dial_is_in_the_form_that_is_compared(host: str, dialled: set[str]) -> None:
    assert tcp_socket.dialled_addresses(host, 7) == dialled


def test_a_host_that_cannot_be_resolved_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pyrocache"):
        assert not tcp_socket.dialled_addresses("nowhere.invalid", 7)
    assert "nowhere.invalid:7 cannot be resolved" in caplog.text


def test_what_to_do_about_an_address_that_cannot_be_used() -> None:
    with pytest.raises(OSError, match="assign") as missing:
        tcp_socket.listen("192.0.2.200", 0)
    assert "--advertise" in tcp_socket.remedy(missing.value)
    with pytest.raises(socket.gaierror) as unknown:
        tcp_socket.listen("nowhere.invalid", 0)
    assert "a name that it has" in tcp_socket.remedy(unknown.value)
    assert tcp_socket.remedy(OSError(errno.EADDRINUSE, "in use")) == "", "that is about the port"
