"""Settings of name servers, nodes and clients, and of TLS: frozen dataclasses, validated when made.

Also defines the notations of an address (``host:port``) and a size (``256MiB``), the checks of durations and
namespaces, and the rule for which addresses are safe to bind to. Does not read the environment.

Thread safety: thread-safe; everything is immutable.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from numbers import Real
from typing import Any, Literal, SupportsFloat

from pyrocache.errors import ConfigurationError, InsecureAddress
from pyrocache.tracebacks import brief

DEFAULT_NAMESERVER = "127.0.0.1:9090"
DEFAULT_TIMEOUT_SECONDS = 5.0
DEFAULT_LEASE_SECONDS = 2.0
DEFAULT_MAX_VALUE_BYTES = 64 * 2**20
REQUEST_OVERHEAD_BYTES = 320 * 1024
"""The most bytes that a request has in addition to its value: its key, its tags, and the rest of the call."""

_LARGEST_VALUE = 2**32 - 1 - REQUEST_OVERHEAD_BYTES  # a Pyro5 message has its length in 32 bits
_SPARE_BUFFER_BYTES = 16 * 2**20
EVICTION_POLICIES = ("s3fifo", "lru")
DEFAULT_EVICTION = "s3fifo"

MAX_NAMESPACE_BYTES = 255
"""The longest name of a namespace, in bytes of UTF-8."""

MAX_NAMESPACE_PATH_BYTES = 512
"""The longest path of a nested namespace: the bytes of all names, and one byte for each."""

MAX_SECONDS = 1_000_000
"""The longest timeout or deadline, eleven days; a TTL may be longer."""

_SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F:.]+(?:%[\w.-]+)?)\]|([^:\s/@]+))(?::(\d{1,5}))?")
_NODE_NAME = re.compile(r"cache\.node\.[1-9]\d{0,8}")
_CLASS_NAME = re.compile(r"[^.\s]+(\.[^.\s]+)+")
_ZONE = re.compile(r"[A-Za-z0-9._-]{0,64}")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")

_NUMBERS: Any = (Real, Decimal)

OnError = Literal["raise", "miss"]
OnUndecodable = Literal["raise", "miss"]
TransportChoice = Literal["auto", "tcp"]
SerializerChoice = Literal["pickle", "msgpack", "json"]
SERIALIZERS = ("pickle", "msgpack", "json")


def _check(valid: bool, problem: str) -> None:
    if not valid:
        raise ConfigurationError(problem)


def parse_size(size: int | str) -> int:
    """Return a number of bytes from ``1048576``, ``"1MiB"``, ``"1.5 GB"`` or ``"64k"``.

    ``k``, ``M``, ``G``, ``T`` are powers of 1000, ``Ki``, ``Mi``, ``Gi``, ``Ti`` of 1024.

    Raises:
        ConfigurationError: it is not a valid size, or not positive.
    """
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        if match is None:
            raise ConfigurationError(f"{size!r} is not a valid size. Examples: 256MiB, 1GiB.")
        number, letter, binary = match.groups()
        power = " kmgt".index(letter.lower() or " ")
        size = int(float(number) * (1024 if binary else 1000) ** power)
    valid = isinstance(size, int) and not isinstance(size, bool) and size > 0
    _check(valid, f"A size must be a positive number of bytes, not {size!r}.")
    return size


def format_size(size: float) -> str:
    """Return a number of bytes as a short text, such as ``"256.0 MiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def parse_address(address: str, *, default_port: int = 9090) -> tuple[str, int]:
    """Return host and port from ``"127.0.0.1:9090"``, ``"127.0.0.1"`` or ``"[::1]:9090"``.

    Raises:
        ConfigurationError: it is not a valid address.
    """
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    host, port = (match[1] or match[2], int(match[3] or default_port)) if match else ("", 0)
    valid = 0 < port < 65536 and _is_host(host)
    _check(valid, f"{address!r} is not a valid address. Example: {DEFAULT_NAMESERVER}.")
    return host, port


def parse_advertised(advertise: str) -> tuple[str, int]:
    """Return host and port of an address that may lack the port; it is 0 then. IPv6 needs brackets only with a port.

    Raises:
        ConfigurationError: it is not a valid address.
    """
    if isinstance(advertise, str) and _ip_address(advertise) is not None:
        return advertise, 0
    host, port = parse_address(advertise)
    match = _ADDRESS.fullmatch(advertise)
    return host, port if match and match[3] else 0


def format_address(host: str, port: int) -> str:
    """Return ``host:port``, from which `parse_address` returns the same host and port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_host(host: str) -> bool:
    labels = host.rstrip(".").split(".")  # a fully qualified name may end with a dot
    return _ip_address(host) is not None or (len(host) <= 253 and all(map(_LABEL.fullmatch, labels)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """The files of TLS, in PEM. ``pyrocache certificates`` makes them.

    Attributes:
        ca: the certificates of the authorities that sign those of the other ends; None for those of the system.
        cert, key: the certificate of this end, with the intermediate ones after it, and its private key. A server needs
            them; a client does if the servers require a certificate.
        require_client_cert: whether a server demands a certificate that ``ca`` has signed.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    require_client_cert: bool = False

    def __post_init__(self) -> None:
        for field in ("ca", "cert", "key"):
            path = getattr(self, field)
            if path is not None:
                valid = isinstance(path, str | os.PathLike) and str(path) != ""
                _check(valid, f"The {field} of TLS must be a path or None, not {path!r}.")
                object.__setattr__(self, field, os.path.abspath(path))  # other processes get these settings
        _check(
            (self.cert is None) == (self.key is None),
            "A certificate needs its private key: give both --tls-cert and --tls-key, or neither.",
        )


Encryption = TLS | Literal[False] | None
"""TLS for all TCP connections; None: none, and only with this host; False: none, although others may read along."""


def checked_tls(tls: Any) -> Encryption:
    """Return a setting of TLS, which another process may have sent as a dict. Raises `ConfigurationError`."""
    if isinstance(tls, dict):
        return TLS(**tls)
    _check(
        tls is None or tls is False or isinstance(tls, TLS), f"tls must be a TLS, False or None, not {tls!r}."
    )
    return tls  # type: ignore[no-any-return]


def _check_server(host: str, advertise: str | None, tls: Encryption) -> None:
    """Check where a server listens, and the address at which others reach it.

    Raises:
        ConfigurationError: they are not valid, nobody could connect to them, or the certificate is missing.
        InsecureAddress: other hosts can reach it, and nothing says how connections with them are protected.
    """
    _check(isinstance(host, str) and _is_host(host), f"{host!r} is not a valid host name or address.")
    if isinstance(tls, TLS):
        _check(tls.cert is not None, "A server with TLS needs a certificate: give --tls-cert and --tls-key.")
        _check(
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


def check_open(host: str, is_open: bool) -> None:
    """Raise `ConfigurationError` if nodes on an address that other hosts can reach are to serve everybody."""
    _check(
        not (is_open and not is_loopback(host)),
        f"Nodes that serve everybody must listen on a loopback address, and {host} is none: leave --open out.",
    )


def is_loopback(host: str) -> bool:
    """Return whether only this host can reach an address, or a host name, which is not resolved."""
    address = _ip_address(host)
    return host == "localhost" if address is None else address.is_loopback


def check_node_name(name: str) -> None:
    """Raise `ConfigurationError` unless ``name`` is ``cache.node.N``."""
    valid = isinstance(name, str) and _NODE_NAME.fullmatch(name) is not None
    _check(valid, f"{name!r} is not a valid node name. Examples: cache.node.1, cache.node.2.")


def check_namespace(path: tuple[str, ...]) -> None:
    """Raise `ConfigurationError` unless ``path`` is a tuple of names that are not too long."""
    _check(isinstance(path, tuple), f"A namespace must be a tuple of names, not {type(path).__name__}.")
    for name in path:
        _check(isinstance(name, str), f"A namespace's name must be a str, not {type(name).__name__}.")
    sizes = [len(name.encode("utf-8", "surrogatepass")) for name in path]
    longest = max(sizes, default=0)
    _check(
        longest <= MAX_NAMESPACE_BYTES,
        f"A namespace's name has {longest} bytes in UTF-8; the limit is {MAX_NAMESPACE_BYTES}.",
    )
    _check(
        sum(sizes) + len(sizes) <= MAX_NAMESPACE_PATH_BYTES,
        f"This namespace is nested too deeply: its {len(sizes)} names, with one byte for each, take more than "
        f"{MAX_NAMESPACE_PATH_BYTES} bytes.",
    )


def check_seconds(what: str, seconds: SupportsFloat) -> float:
    """Return ``seconds`` as a float.

    Raises:
        ConfigurationError: it is not a number above 0 and at most `MAX_SECONDS`.
    """
    number = None if isinstance(seconds, timedelta) else _number(seconds)
    problem = f"{what} must be a number of seconds above 0 and at most {MAX_SECONDS}, not {seconds!r}."
    _check(number is not None and 0 < number <= MAX_SECONDS, problem)
    return float(number or 0)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)  # a bool is an int


def _number(value: Any) -> float | None:
    """Return a number of any type, or the seconds of a duration, as an int or a float; None if it is neither.

    Numbers of numpy are among them, as are Decimal and Fraction. A numpy number must not be calculated with as it is: a
    float32 would make the result a float32.
    """
    if type(value) is int or type(value) is float:
        return value
    if isinstance(value, timedelta):
        return value.total_seconds()
    if type(value).__module__ == "numpy" and type(value).__name__ == "timedelta64":
        try:
            return float(value / type(value)(1, "s"))
        except TypeError:  # months and years have no fixed length
            return None
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def ttl_to_seconds(ttl_seconds: SupportsFloat | timedelta | None, name: str = "ttl_seconds") -> float | None:
    """Return a time to live as the wire carries it: float seconds, or None for no expiry.

    Args:
        name: the argument that the error names.

    Raises:
        TypeError: not a number, timedelta or None.
        ValueError: zero, negative or NaN.
    """
    if ttl_seconds is None:
        return None
    seconds = _number(ttl_seconds)
    if seconds is None:
        raise brief(
            TypeError(
                f"{name} must be an int, a float, a timedelta or None, not {type(ttl_seconds).__name__}."
            )
        )
    if not seconds > 0:  # also true for NaN
        raise brief(ValueError(f"{name} must be above 0 (or None for no expiry), not {seconds!r}."))
    # Infinity means no expiry, and so does an int that no float can hold.
    return float(seconds) if seconds <= sys.float_info.max else None


def seconds_until(expires_at: SupportsFloat | datetime, now: float) -> float | None:
    """Return the seconds from ``now`` until a point in time; 0 if it has passed, None if it is infinitely far.

    Args:
        expires_at: an aware datetime, or seconds since the epoch (as ``time.time()`` and ``now``).

    Raises:
        TypeError: not a datetime or a number.
        ValueError: a datetime without a time zone, or NaN.
    """
    if isinstance(expires_at, datetime):
        if expires_at.utcoffset() is None:
            raise brief(
                ValueError(
                    "expires_at needs a time zone, such as datetime.now(UTC); a naive datetime may mean any."
                )
            )
        at: float | None = expires_at.timestamp()
    else:
        at = None if isinstance(expires_at, timedelta) else _number(expires_at)
    if at is None:
        kind = type(expires_at).__name__
        raise brief(
            TypeError(f"expires_at must be an aware datetime or a number of seconds since 1970, not {kind}.")
        )
    if at != at:
        raise brief(ValueError("expires_at must not be NaN."))
    if at <= now:
        return 0.0
    return at - now if at <= sys.float_info.max else None


def to_seconds(duration: SupportsFloat | timedelta, name: str, *, zero: bool = True) -> float:
    """Return the seconds of a finite duration.

    Args:
        name: the argument that the error names.
        zero: whether 0 is valid.

    Raises:
        TypeError: not a number or timedelta.
        ValueError: negative, infinite, NaN, or an invalid 0.
    """
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    return check_number(seconds, name, zero=zero, kinds="an int, a float or a timedelta")


def check_number(
    number: SupportsFloat, name: str, *, zero: bool = True, kinds: str = "an int or a float"
) -> float:
    """Return ``number`` as an int or a float.

    Raises `TypeError` or `ValueError` unless it is finite and not negative.

    Args:
        name: the argument that the error names.
        zero: whether 0 is valid.
        kinds: the valid types, as the error lists them.
    """
    value = None if isinstance(number, timedelta) else _number(number)
    if value is None:
        raise brief(TypeError(f"{name} must be {kinds}, not {type(number).__name__}."))
    if not 0 <= value < math.inf or (value == 0 and not zero):
        least = "not negative" if zero else "above 0"
        raise brief(ValueError(f"{name} must be finite and {least}, not {value!r}."))
    return value


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
        _check(memory >= 64 * 1024, f"A node needs at least 64KiB of memory for entries, not {memory}.")
        _check(
            self.eviction != "adaptive",
            f"The eviction policy 'adaptive' was removed: the default is {DEFAULT_EVICTION!r}, which needs no option.",
        )
        policies = ", ".join(EVICTION_POLICIES)
        known = self.eviction in EVICTION_POLICIES
        _check(known, f"{self.eviction!r} is not an eviction policy; choose one of {policies}.")
        for field in (
            "handshake_seconds",
            "request_seconds",
            "idle_seconds",
            "heartbeat_seconds",
            "lease_seconds",
        ):
            object.__setattr__(self, field, check_seconds(field, getattr(self, field)))
        drain = self.drain_seconds
        valid = _is_number(drain) and 0 <= drain <= MAX_SECONDS
        _check(valid, f"drain_seconds must be a number of seconds from 0 to {MAX_SECONDS}, not {drain!r}.")
        self._complete_sizes()
        counts = "max_value_bytes max_connections max_unproven workers max_queued_calls max_buffered_bytes"
        for field in counts.split():
            _check_count(field, getattr(self, field))

    def _complete_sizes(self) -> None:
        """Set the sizes that depend on ``max_memory``, and check that the largest value can be received."""
        if self.max_value_bytes == 0:
            object.__setattr__(self, "max_value_bytes", min(self.max_memory // 4, _LARGEST_VALUE))
        if self.max_buffered_bytes == 0:
            object.__setattr__(self, "max_buffered_bytes", self.max_memory // 4 + _SPARE_BUFFER_BYTES)
            largest = min(self.max_buffered_bytes - REQUEST_OVERHEAD_BYTES, _LARGEST_VALUE)
            _check(
                self.max_value_bytes <= largest,
                f"Values of {self.max_value_bytes} bytes cannot be received: with {format_size(self.max_memory)} of "
                f"memory, the largest can have {largest} bytes. Give a smaller --max-value, or more --max-memory.",
            )


def check_port(port: int) -> None:
    """Raise `ConfigurationError` unless ``port`` is a number from 0 to 65535."""
    valid = isinstance(port, int) and not isinstance(port, bool) and 0 <= port < 65536
    _check(valid, f"A port must be a number from 0 to 65535, not {port!r}.")


def check_weight(weight: float) -> None:
    """Raise `ConfigurationError` unless ``weight`` is a number from 0.01 to 100."""
    valid = _is_number(weight) and 0.01 <= weight <= 100
    _check(valid, f"A weight must be a number from 0.01 to 100, not {weight!r}.")


def is_zone(zone: object) -> bool:
    """Return whether ``zone`` may be the name of a zone; the empty text stands for none."""
    return isinstance(zone, str) and _ZONE.fullmatch(zone) is not None


def check_zone(zone: str) -> None:
    """Raise `ConfigurationError` unless ``zone`` is empty or a name of 1 to 64 characters."""
    _check(
        is_zone(zone),
        f"A zone must have 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-', not {zone!r}.",
    )


def _check_count(what: str, number: int) -> None:
    _check(number >= 1, f"{what} must be at least 1, not {number!r}.")


def _check_advertised(host: str, advertise: str | None) -> None:
    """Check the address at which others reach a server that listens on ``host``."""
    reached = host
    if advertise is not None:
        reached, _ = parse_advertised(advertise)
        _check(not _is_wildcard(reached), f"{reached} is not an address that others can connect to.")
    _check(
        not _is_wildcard(reached),
        f"{host} is not an address that others can connect to: give --advertise with the name or address of this "
        "host that they use.",
    )
    _check(
        "%" not in reached,
        f"{reached} is a link-local address, which other hosts write in another way: give --advertise with a name or "
        "another address of this host.",
    )


def _is_wildcard(host: str) -> bool:
    address = _ip_address(host)
    return address is not None and address.is_unspecified


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
        _check(known, f"{self.storage!r} is no storage: give memory, or sql:FILE.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """The settings of one client.

    Attributes:
        nameserver: the name server's ``host:port``.
        namespace: the namespace of this client's keys, as a path of names; the empty path is the root.
        timeout: seconds that a call may take, connecting and retries included.
        on_error: ``"raise"`` raises `CacheUnavailable`; ``"miss"`` counts it and behaves as a miss.
        on_undecodable: ``"raise"`` raises the error of a stored key or value that does not decode here; ``"miss"``
            counts it and behaves as if there were no such entry.
        max_connections: the most connections to each node; further threads wait for a permit.
        connections: the most connections of an asyncio client to each node for calls, in each event loop.
        transport: ``"auto"`` uses the Unix socket of a node on this host; ``"tcp"`` always uses TCP.
        ttl_seconds: the time to live of entries that are stored without one; None for no expiry.
        serializer: how values are serialized, one of `SERIALIZERS`.
        codec: a user's serializer, with ``dumps`` and ``loads``; None for ``serializer``.
        allowed_classes: the names of the classes that stored values and keys may refer to; None for the default.
        compress_above: the size in bytes of the values above which they are compressed; None for never.
        signing_key_file: the path of the file with the keys that sign values; None for no signatures.
        counters: whether ints are not signed, so that nodes can add to them.
        secret: what nodes must prove that they know, a `runtime.secret.Secret`; None if they need not.
        tls: how TCP connections are protected, see `Encryption`.
    """

    nameserver: str = DEFAULT_NAMESERVER
    namespace: tuple[str, ...] = ()
    timeout: float = DEFAULT_TIMEOUT_SECONDS
    on_error: OnError = "raise"
    max_connections: int = 64
    connections: int = 2
    transport: TransportChoice = "auto"
    ttl_seconds: float | None = None
    serializer: SerializerChoice = "pickle"
    codec: Any = None
    allowed_classes: tuple[str, ...] | None = None
    compress_above: int | None = None
    on_undecodable: OnUndecodable = "raise"
    signing_key_file: str | None = None
    counters: bool = False
    secret: Any = None
    tls: Encryption = None

    def __post_init__(self) -> None:
        parse_address(self.nameserver)
        object.__setattr__(self, "tls", checked_tls(self.tls))
        check_namespace(self.namespace)
        self._check_serializer()
        object.__setattr__(self, "timeout", check_seconds("timeout", self.timeout))
        actions, transports = ("raise", "miss"), ("auto", "tcp")
        _check(self.on_error in actions, f"on_error must be 'raise' or 'miss', not {self.on_error!r}.")
        undecodable = self.on_undecodable
        _check(undecodable in actions, f"on_undecodable must be 'raise' or 'miss', not {undecodable!r}.")
        path = self.signing_key_file
        valid = path is None or (isinstance(path, str) and path != "")
        _check(valid, f"signing_key_file must be a path or None, not {path!r}.")
        _check(isinstance(self.counters, bool), f"counters must be True or False, not {self.counters!r}.")
        _check_count("max_connections", self.max_connections)
        _check_count("connections", self.connections)
        _check(self.transport in transports, f"transport must be 'auto' or 'tcp', not {self.transport!r}.")

    def _check_serializer(self) -> None:
        known = self.serializer in SERIALIZERS
        _check(known, f"serializer must be one of {', '.join(SERIALIZERS)}, not {self.serializer!r}.")
        if self.codec is not None:
            methods = all(callable(getattr(self.codec, name, None)) for name in ("dumps", "loads"))
            kind = type(self.codec).__name__
            _check(methods, f"codec must be an object with the methods dumps and loads, not {kind}.")
            _check(self.serializer == "pickle", "Give either a codec or a serializer.")
        names = self.allowed_classes
        valid = names is None or (isinstance(names, tuple) and all(map(_CLASS_NAME.fullmatch, names)))
        _check(valid, f"allowed_classes must be classes, or names like 'module.Class', not {names!r}.")
        if self.compress_above is not None:
            valid = type(self.compress_above) is int and self.compress_above >= 0
            _check(valid, f"compress_above must be a number of bytes or None, not {self.compress_above!r}.")
