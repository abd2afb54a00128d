"""Settings of clients and of TLS: frozen dataclasses, validated when made. Those of servers: `server_config`.

Also defines the notations of an address (``host:port``) and a size (``256MiB``), the checks of durations and
namespaces, and the rule for which addresses are safe to bind to. Does not read the environment.

Thread safety: thread-safe; everything is immutable.
"""

from __future__ import annotations

import math
import os
import re
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat

from pyrocache.errors import ConfigurationError
from pyrocache.late_imports import at_first_use
from pyrocache.tracebacks import brief

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from pyrocache.server_config import NameServerConfig as NameServerConfig
    from pyrocache.server_config import NodeConfig as NodeConfig

DEFAULT_NAMESERVER = "127.0.0.1:9090"
DEFAULT_TIMEOUT_SECONDS = 5.0
DEFAULT_LEASE_SECONDS = 2.0
DEFAULT_MAX_VALUE_BYTES = 64 * 2**20
REQUEST_OVERHEAD_BYTES = 320 * 1024
"""The most bytes that a request has in addition to its value: its key, its tags, and the rest of the call."""
EVICTION_POLICIES = ("s3fifo", "lru")
DEFAULT_EVICTION = "s3fifo"

MAX_NAMESPACE_BYTES = 255
"""The longest name of a namespace, in bytes of UTF-8."""

MAX_NAMESPACE_PATH_BYTES = 512
"""The longest path of a nested namespace: the bytes of all names, and one byte for each."""

MAX_SECONDS = 1_000_000
"""The longest timeout or deadline, eleven days; a TTL may be longer."""

# The first two are compiled at first use: most clients do not need them.
_SIZE = r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)(i?)b?\s*"
_CLASS_NAME = r"[^.\s]+(\.[^.\s]+)+"
_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F:.]+(?:%[\w.-]+)?)\]|([^:\s/@]+))(?::(\d{1,5}))?")
_NODE_NAME = re.compile(r"cache\.node\.[1-9]\d{0,8}")
_ZONE = re.compile(r"[A-Za-z0-9._-]{0,64}")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")

OnError = Literal["raise", "miss"]
OnUndecodable = Literal["raise", "miss"]
TransportChoice = Literal["auto", "tcp"]
SerializerChoice = Literal["pickle", "msgpack", "json"]
SERIALIZERS = ("pickle", "msgpack", "json")


def __getattr__(name: str) -> Any:
    if name not in ("NameServerConfig", "NodeConfig"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("pyrocache.server_config"), name)
    globals()[name] = value
    return value


def check(valid: bool, problem: str) -> None:
    """Raise `ConfigurationError` unless ``valid``."""
    if not valid:
        raise ConfigurationError(problem)


def parse_size(size: int | str) -> int:
    """Return a number of bytes from ``1048576``, ``"1MiB"``, ``"1.5 GB"`` or ``"64k"``.

    ``k``, ``M``, ``G``, ``T`` are powers of 1000, ``Ki``, ``Mi``, ``Gi``, ``Ti`` of 1024.

    Raises:
        ConfigurationError: it is not a valid size, or not positive.
    """
    if isinstance(size, str):
        match = re.fullmatch(_SIZE, size, re.IGNORECASE)
        if match is None:
            raise ConfigurationError(f"{size!r} is not a valid size. Examples: 256MiB, 1GiB.")
        number, letter, binary = match.groups()
        power = " kmgt".index(letter.lower() or " ")
        size = int(float(number) * (1024 if binary else 1000) ** power)
    valid = isinstance(size, int) and not isinstance(size, bool) and size > 0
    check(valid, f"A size must be a positive number of bytes, not {size!r}.")
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
    valid = 0 < port < 65536 and is_host(host)
    check(valid, f"{address!r} is not a valid address. Example: {DEFAULT_NAMESERVER}.")
    return host, port


def parse_advertised(advertise: str) -> tuple[str, int]:
    """Return host and port of an address that may lack the port; it is 0 then. IPv6 needs brackets only with a port.

    Raises:
        ConfigurationError: it is not a valid address.
    """
    if isinstance(advertise, str) and ip_address(advertise) is not None:
        return advertise, 0
    host, port = parse_address(advertise)
    match = _ADDRESS.fullmatch(advertise)
    return host, port if match and match[3] else 0


def format_address(host: str, port: int) -> str:
    """Return ``host:port``, from which `parse_address` returns the same host and port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def ip_address(host: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address that is written so; None if it is none."""
    with at_first_use:
        import ipaddress  # imported here: clients do not need it
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_host(host: str) -> bool:
    """Return whether it may be the name or the address of a host."""
    labels = host.rstrip(".").split(".")  # a fully qualified name may end with a dot
    return (len(host) <= 253 and all(map(_LABEL.fullmatch, labels))) or ip_address(host) is not None


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
                check(valid, f"The {field} of TLS must be a path or None, not {path!r}.")
                object.__setattr__(self, field, os.path.abspath(path))  # other processes get these settings
        check(
            (self.cert is None) == (self.key is None),
            "A certificate needs its private key: give both --tls-cert and --tls-key, or neither.",
        )


Encryption = TLS | Literal[False] | None
"""TLS for all TCP connections; None: none, and only with this host; False: none, although others may read along."""


def checked_tls(tls: Any) -> Encryption:
    """Return a setting of TLS, which another process may have sent as a dict. Raises `ConfigurationError`."""
    if isinstance(tls, dict):
        return TLS(**tls)
    check(
        tls is None or tls is False or isinstance(tls, TLS), f"tls must be a TLS, False or None, not {tls!r}."
    )
    return tls  # type: ignore[no-any-return]


def check_open(host: str, is_open: bool) -> None:
    """Raise `ConfigurationError` if nodes on an address that other hosts can reach are to serve everybody."""
    check(
        not (is_open and not is_loopback(host)),
        f"Nodes that serve everybody must listen on a loopback address, and {host} is none: leave --open out.",
    )


def is_loopback(host: str) -> bool:
    """Return whether only this host can reach an address, or a host name, which is not resolved."""
    address = ip_address(host)
    return host == "localhost" if address is None else address.is_loopback


def check_node_name(name: str) -> None:
    """Raise `ConfigurationError` unless ``name`` is ``cache.node.N``."""
    valid = isinstance(name, str) and _NODE_NAME.fullmatch(name) is not None
    check(valid, f"{name!r} is not a valid node name. Examples: cache.node.1, cache.node.2.")


def check_namespace(path: tuple[str, ...]) -> None:
    """Raise `ConfigurationError` unless ``path`` is a tuple of names that are not too long."""
    check(isinstance(path, tuple), f"A namespace must be a tuple of names, not {type(path).__name__}.")
    for name in path:
        check(isinstance(name, str), f"A namespace's name must be a str, not {type(name).__name__}.")
    sizes = [len(name.encode("utf-8", "surrogatepass")) for name in path]
    longest = max(sizes, default=0)
    check(
        longest <= MAX_NAMESPACE_BYTES,
        f"A namespace's name has {longest} bytes in UTF-8; the limit is {MAX_NAMESPACE_BYTES}.",
    )
    check(
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
    check(number is not None and 0 < number <= MAX_SECONDS, problem)
    return float(number or 0)


def is_number(value: object) -> bool:
    """Return whether it is an int or a float, and no bool."""
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
    if isinstance(value, bool) or not isinstance(value, _number_types()):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _number_types() -> tuple[Any, ...]:
    """Return the types that numbers of other than builtin types have."""
    # Nothing is of a type whose module is not imported, or still being imported by another thread.
    rare = (("numbers", "Real"), ("decimal", "Decimal"))
    found = (getattr(sys.modules.get(module), name, None) for module, name in rare)
    return int, float, *filter(None, found)


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


def check_port(port: int) -> None:
    """Raise `ConfigurationError` unless ``port`` is a number from 0 to 65535."""
    valid = isinstance(port, int) and not isinstance(port, bool) and 0 <= port < 65536
    check(valid, f"A port must be a number from 0 to 65535, not {port!r}.")


def check_weight(weight: float) -> None:
    """Raise `ConfigurationError` unless ``weight`` is a number from 0.01 to 100."""
    valid = is_number(weight) and 0.01 <= weight <= 100
    check(valid, f"A weight must be a number from 0.01 to 100, not {weight!r}.")


def is_zone(zone: object) -> bool:
    """Return whether ``zone`` may be the name of a zone; the empty text stands for none."""
    return isinstance(zone, str) and _ZONE.fullmatch(zone) is not None


def check_zone(zone: str) -> None:
    """Raise `ConfigurationError` unless ``zone`` is empty or a name of 1 to 64 characters."""
    check(
        is_zone(zone),
        f"A zone must have 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-', not {zone!r}.",
    )


def check_count(what: str, number: int) -> None:
    """Raise `ConfigurationError` unless ``number`` is an integer and at least 1."""
    valid = isinstance(number, int) and not isinstance(number, bool) and number >= 1
    check(valid, f"{what} must be a whole number, at least 1, not {number!r}.")


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
        check(self.on_error in actions, f"on_error must be 'raise' or 'miss', not {self.on_error!r}.")
        undecodable = self.on_undecodable
        check(undecodable in actions, f"on_undecodable must be 'raise' or 'miss', not {undecodable!r}.")
        path = self.signing_key_file
        valid = path is None or (isinstance(path, str) and path != "")
        check(valid, f"signing_key_file must be a path or None, not {path!r}.")
        check(isinstance(self.counters, bool), f"counters must be True or False, not {self.counters!r}.")
        check_count("max_connections", self.max_connections)
        check_count("connections", self.connections)
        check(self.transport in transports, f"transport must be 'auto' or 'tcp', not {self.transport!r}.")

    def _check_serializer(self) -> None:
        known = self.serializer in SERIALIZERS
        check(known, f"serializer must be one of {', '.join(SERIALIZERS)}, not {self.serializer!r}.")
        if self.codec is not None:
            methods = all(callable(getattr(self.codec, name, None)) for name in ("dumps", "loads"))
            kind = type(self.codec).__name__
            check(methods, f"codec must be an object with the methods dumps and loads, not {kind}.")
            check(self.serializer == "pickle", "Give either a codec or a serializer.")
        names = self.allowed_classes
        valid = names is None or (
            isinstance(names, tuple) and all(re.fullmatch(_CLASS_NAME, name) for name in names)
        )
        check(valid, f"allowed_classes must be classes, or names like 'module.Class', not {names!r}.")
        if self.compress_above is not None:
            valid = type(self.compress_above) is int and self.compress_above >= 0
            check(valid, f"compress_above must be a number of bytes or None, not {self.compress_above!r}.")
