"""What ``pyrocache doctor`` has observed, as values: `gather` makes them, `findings` judges them.

In all of them, ``error`` is a part of a sentence that says why something could not be observed; empty if it could.

Thread safety: thread-safe; everything is immutable.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from pyrocache.client.stats import NodeStats
from pyrocache.cluster.routing import Member
from pyrocache.config import Encryption
from pyrocache.net.directory import Listing

_NOTHING = Listing()


class Cause(Enum):
    """Why there is no connection, as far as the advice depends on it."""

    NONE = "there is a connection"
    REFUSED = "nothing listens at the address"
    TIMED_OUT = "no answer in time"
    UNRESOLVED = "the host name has no address"
    SECRET = "the secret is not proved"
    CERTIFICATE = "one end does not accept the certificate of the other"
    OTHER = "anything else"


@dataclass(frozen=True, kw_only=True)
class KeyFileSeen:
    """A file of keys.

    Attributes:
        path: where it is; empty if there is none.
        keys: the number of accepted keys.
        staged: whether one of them is not used yet.
        temporary: whether it is in a directory for temporary files.
    """

    path: str = ""
    error: str = ""
    keys: int = 0
    staged: bool = False
    temporary: bool = False


@dataclass(frozen=True, kw_only=True)
class CertificateSeen:
    """A certificate in a file, or one that a server has presented.

    Attributes:
        place: the path of the file, or who presented it.
        ends: when it, or the first certificate of its file, ends.
        names: the host names and addresses that it is for.
    """

    place: str
    error: str = ""
    ends: datetime | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Way:
    """A connection to a server over TCP or over a Unix socket.

    Attributes:
        advice: what the error says that can be done.
        milliseconds: the median time of a ping.
        proved: whether both ends have proved the secret.
        certificate: what the server has presented; None without TLS.
    """

    error: str = ""
    cause: Cause = Cause.NONE
    advice: str = ""
    milliseconds: float = 0.0
    proved: bool = False
    certificate: CertificateSeen | None = None


@dataclass(frozen=True, kw_only=True)
class NameServerSeen:
    """The name server.

    Attributes:
        address: its ``host:port``.
        source: where the address is from.
        on_loopback: whether only this host can reach it.
        listing: what it lists.
    """

    address: str
    source: str = ""
    on_loopback: bool = True
    way: Way = Way()
    listing: Listing = _NOTHING


@dataclass(frozen=True, kw_only=True)
class NodeSeen:
    """A node.

    Attributes:
        here: whether its address is one of this host.
        tcp, unix: the two ways to it; ``unix`` is None if it has no Unix socket, or not on this host.
        stats: what it says of itself; None if it did not answer.
        version: of its pyrocache; empty if it does not say so.
        max_value_bytes: the largest value that it accepts.
        descriptors: how many it may have; None if that is unknown.
        memory_limit: bytes that its control group may have; None if there is no limit, or it is unknown.
    """

    member: Member
    here: bool = False
    tcp: Way = Way()
    unix: Way | None = None
    stats: NodeStats | None = None
    version: str = ""
    max_value_bytes: int = 0
    descriptors: int | None = None
    memory_limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class HostSeen:
    """This host and this process.

    Attributes:
        version: of pyrocache.
        memory: bytes of the machine; 0 if unknown.
        descriptors: how many this process may have.
        socket_directory: where nodes that are started here have their Unix sockets; empty if there is no such place.
        socket_path_bytes: how long the paths of these are, and how long they may be.
    """

    version: str = ""
    memory: int = 0
    descriptors: int = 0
    socket_directory: str = ""
    socket_path_bytes: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """All of it.

    Attributes:
        now: the time of the system's clock.
        tls: how this process protects its connections.
        certificates: the files of ``tls``.
        secret, signing_key: the key files; None for no signing key.
        name_server: None if it was not asked.
    """

    now: datetime
    tls: Encryption = None
    certificates: tuple[CertificateSeen, ...] = ()
    secret: KeyFileSeen = KeyFileSeen()
    signing_key: KeyFileSeen | None = None
    name_server: NameServerSeen
    nodes: tuple[NodeSeen, ...] = ()
    host: HostSeen = HostSeen()
