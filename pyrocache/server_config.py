"""Settings of nodes and name servers: frozen dataclasses, validated when made. `pyrocache.config` has these names too.

A module of its own, because making the dataclasses takes time that clients need not spend. Does not read the
environment.

Thread safety: thread-safe; everything is immutable.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyrocache.config import (
    DEFAULT_EVICTION,
    DEFAULT_LEASE_SECONDS,
    DEFAULT_NAMESERVER,
    EVICTION_POLICIES,
    MAX_SECONDS,
    REQUEST_OVERHEAD_BYTES,
    TLS,
    Encryption,
    check,
    check_count,
    check_node_name,
    check_open,
    check_port,
    check_seconds,
    check_weight,
    check_zone,
    checked_tls,
    format_size,
    ip_address,
    is_host,
    is_loopback,
    is_number,
    parse_address,
    parse_advertised,
)
from pyrocache.errors import InsecureAddress

_LARGEST_VALUE = 2**32 - 1 - REQUEST_OVERHEAD_BYTES  # a Pyro5 message has its length in 32 bits
_SPARE_BUFFER_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """The settings of one node.

    Attributes:
        nameserver: the name server's ``host:port``.
        name: ``cache.node.N``, or None to take the first free one.
        host: the address to listen on.
        port: the port; 0 for a free one.
        advertise: the host, or ``host:port``, at which others reach this node; by default where it listens.
        tls: how TCP connections are protected, see `Encryption`.
        open: serve also callers that do not know the secret; only with a loopback ``host``.
        weight: share of the keys relative to the other nodes' weights.
        zone: the name of the rack, room or site that the node is in, for people; empty for none.
        max_memory: bytes that entries may take, overhead included.
        eviction: the policy that chooses the entries to evict when memory is full, one of `EVICTION_POLICIES`.
        max_value_bytes: the largest value frame that is accepted; 0 for a quarter of ``max_memory``.
        max_connections: the most connections at a time; further ones are refused.
        max_unproven: the most connections of one address that have not proved the secret; one more closes the oldest.
            All addresses together may have half of ``max_connections``.
        handshake_seconds: how long the handshake of a new connection may take.
        request_seconds: how long a request may take to arrive, and a reply to be read, once begun.
        idle_seconds: how long a connection may be idle between requests.
        workers: threads for calls that may block or take long.
        max_queued_calls: calls that may run on a worker or wait for one; further calls are refused as `Overloaded`.
        max_buffered_bytes: bytes of incomplete requests and unread replies, over all connections; 0 for a quarter of
            ``max_memory`` and 16 MiB, with which the process stays below 1.3 times ``max_memory`` + 64 MiB, and
            ``max_value_bytes`` is checked to be less. Close to it, long requests are received one after the other;
            beyond it, the largest incomplete request is refused as `Overloaded`, or the connection with the most
            unread bytes is closed.
        heartbeat_seconds: how long, in addition to a lease, a new node waits for a live one to restore what the name
            server has forgotten.
        lease_seconds: how long a node may serve after the last confirmation of its view (``docs/failure-modes.md``).
        new_cluster: there is no cluster yet, so the node need not wait for one.
        drain_seconds: how long a leaving node redirects clients.
    """

    nameserver: str = DEFAULT_NAMESERVER
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    advertise: str | None = None
    tls: Encryption = None
    open: bool = False
    weight: float = 1.0
    zone: str = ""
    max_memory: int = 2**30
    eviction: str = DEFAULT_EVICTION
    max_value_bytes: int = 0
    max_connections: int = 4096
    max_unproven: int = 1024
    handshake_seconds: float = 5.0
    request_seconds: float = 20.0
    idle_seconds: float = 900.0
    workers: int = 4
    max_queued_calls: int = 64
    max_buffered_bytes: int = 0
    heartbeat_seconds: float = 1.0
    lease_seconds: float = DEFAULT_LEASE_SECONDS
    new_cluster: bool = False
    drain_seconds: float = 0.5

    def __post_init__(self) -> None:
        parse_address(self.nameserver)
        object.__setattr__(self, "tls", checked_tls(self.tls))
        _check_server(self.host, self.advertise, self.tls)
        check_open(self.host, self.open)
        if self.advertise is not None:
            check_open(parse_advertised(self.advertise)[0], self.open)
        if self.name is not None:
            check_node_name(self.name)
        check_port(self.port)
        check_weight(self.weight)
        check_zone(self.zone)
        memory = self.max_memory
        check(memory >= 64 * 1024, f"A node needs at least 64KiB of memory for entries, not {memory}.")
        check(
            self.eviction != "adaptive",
            f"The eviction policy 'adaptive' was removed: the default is {DEFAULT_EVICTION!r}, which needs no option.",
        )
        policies = ", ".join(EVICTION_POLICIES)
        known = self.eviction in EVICTION_POLICIES
        check(known, f"{self.eviction!r} is not an eviction policy; choose one of {policies}.")
        for field in (
            "handshake_seconds",
            "request_seconds",
            "idle_seconds",
            "heartbeat_seconds",
            "lease_seconds",
        ):
            object.__setattr__(self, field, check_seconds(field, getattr(self, field)))
        drain = self.drain_seconds
        valid = is_number(drain) and 0 <= drain <= MAX_SECONDS
        check(valid, f"drain_seconds must be a number of seconds from 0 to {MAX_SECONDS}, not {drain!r}.")
        self._complete_sizes()
        counts = "max_value_bytes max_connections max_unproven workers max_queued_calls max_buffered_bytes"
        for field in counts.split():
            check_count(field, getattr(self, field))

    def _complete_sizes(self) -> None:
        """Set the sizes that depend on ``max_memory``, and check that the largest value can be received."""
        if self.max_value_bytes == 0:
            object.__setattr__(self, "max_value_bytes", min(self.max_memory // 4, _LARGEST_VALUE))
        if self.max_buffered_bytes == 0:
            object.__setattr__(self, "max_buffered_bytes", self.max_memory // 4 + _SPARE_BUFFER_BYTES)
            largest = min(self.max_buffered_bytes - REQUEST_OVERHEAD_BYTES, _LARGEST_VALUE)
            check(
                self.max_value_bytes <= largest,
                f"Values of {self.max_value_bytes} bytes cannot be received: with {format_size(self.max_memory)} of "
                f"memory, the largest can have {largest} bytes. Give a smaller --max-value, or more --max-memory.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NameServerConfig:
    """The settings of a name server.

    Attributes:
        host: the address to listen on.
        port: the port; 0 for a free one.
        advertise: the host, or ``host:port``, at which others reach it; by default where it listens.
        storage: ``"memory"``, or ``"sql:FILE"`` to keep the entries in an SQLite file.
        tls: how TCP connections are protected, see `Encryption`.
    """

    host: str = "127.0.0.1"
    port: int = 9090
    advertise: str | None = None
    storage: str = "memory"
    tls: Encryption = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tls", checked_tls(self.tls))
        _check_server(self.host, self.advertise, self.tls)
        check_port(self.port)
        known = self.storage == "memory" or (self.storage.startswith("sql:") and len(self.storage) > 4)
        check(known, f"{self.storage!r} is no storage: give memory, or sql:FILE.")


def _check_server(host: str, advertise: str | None, tls: Encryption) -> None:
    """Check where a server listens, and the address at which others reach it.

    Raises:
        ConfigurationError: they are not valid, nobody could connect to them, or the certificate is missing.
        InsecureAddress: other hosts can reach it, and nothing says how connections with them are protected.
    """
    check(isinstance(host, str) and is_host(host), f"{host!r} is not a valid host name or address.")
    if isinstance(tls, TLS):
        check(tls.cert is not None, "A server with TLS needs a certificate: give --tls-cert and --tls-key.")
        check(
            not (tls.require_client_cert and tls.ca is None),
            "To check the certificates of clients, a server needs that of their authority: give --tls-ca.",
        )
    _check_advertised(host, advertise)
    reached = [host] if advertise is None else [host, parse_advertised(advertise)[0]]
    exposed = [one for one in reached if not is_loopback(one)]
    if tls is None and exposed:
        raise InsecureAddress(
            f"Other hosts can reach {exposed[-1]}: give --tls-cert, --tls-key and --tls-ca, which "
            "`pyrocache certificates` makes, or --no-tls if you trust everybody on the path between the hosts."
        )


def _check_advertised(host: str, advertise: str | None) -> None:
    """Check the address at which others reach a server that listens on ``host``."""
    reached = host
    if advertise is not None:
        reached, _ = parse_advertised(advertise)
        check(not _is_wildcard(reached), f"{reached} is not an address that others can connect to.")
    check(
        not _is_wildcard(reached),
        f"{host} is not an address that others can connect to: give --advertise with the name or address of this "
        "host that they use.",
    )
    check(
        "%" not in reached,
        f"{reached} is a link-local address, which other hosts write in another way: give --advertise with a name or "
        "another address of this host.",
    )


def _is_wildcard(host: str) -> bool:
    address = ip_address(host)
    return address is not None and address.is_unspecified
