"""The command ``pyrocache certificates``: a private authority and certificates of hosts and clients, as files.

The directory has ``ca.key`` and ``ca.pem`` of the authority. For each host or client, it has a directory of that name
with ``ca.pem``, ``cert.pem`` and ``key.pem``, to be copied to the host or client. Keys have the mode 0600, directories
that are made have 0700. `cli.authority` makes the content of the files.

Thread safety: runs in the main thread; two processes must not use one directory at the same time.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from pyrocache.cli.authority import HOST_DAYS, Authority, check_available, names_in, new_authority
from pyrocache.errors import ConfigurationError

OWN_NAMES = ("localhost", "127.0.0.1", "::1")
"""Each host's certificate is for these too: programs on a host may reach its name server at 127.0.0.1.

This lets no host pose as another one: at these addresses, a program reaches its own host.
"""

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Holder:
    """The holder of a certificate: a host or a client.

    Attributes:
        name: also the name of the directory.
        names: the host names and IP addresses that it is for.
        server: whether it is for servers and clients, instead of for clients only.
        given: whether all names were given, and not only the first one.
    """

    name: str
    names: tuple[str, ...] = ()
    server: bool = True
    given: bool = True


@dataclass(frozen=True)
class Made:
    """What was made for one holder: the directory, and when the certificate ends."""

    holder: Holder
    directory: Path
    ends: datetime


def host(text: str) -> Holder:
    """Return the holder for an argument HOST: names and addresses of one host, separated by commas.

    Raises:
        ConfigurationError: one of them is not a host name or an address that others can connect to.
    """
    names = list(dict.fromkeys(_host_name(name.strip()) for name in text.split(",")))
    return Holder(names[0], tuple(dict.fromkeys((*names, *OWN_NAMES))), given=len(names) > 1)


def client(name: str) -> Holder:
    """Return the holder for the option ``--client``. Raises `ConfigurationError` for a name that is not valid."""
    return Holder(_host_name(name), server=False)


def _host_name(name: str) -> str:
    """Return a host name or an address as certificates have it."""
    try:
        address = ip_address(name)
    except ValueError:
        labels = name.lower().removesuffix(".").split(".")
        # A name that ends with a number would be taken for an IPv4 address that is not valid.
        if all(map(_LABEL.fullmatch, labels)) and len(name) <= 253 and not labels[-1].isdigit():
            return ".".join(labels)
        raise ConfigurationError(
            f"{name!r} is not a host name or an IP address. Examples: cache1.example.org, 192.0.2.1, 2001:db8::1."
        ) from None
    if address.is_unspecified or "%" in name:
        raise ConfigurationError(f"{name} is not an address that other hosts can connect to.")
    return str(address)


def make(
    directory: Path, holders: Sequence[Holder], *, days: float = HOST_DAYS, renew: bool = False
) -> list[Made]:
    """Make certificates, and the authority if there is none.

    Args:
        days: for how long the certificates are valid, those of the authority excepted.
        renew: replace existing certificates; without holders, all of them, with the names that they have.

    Raises:
        ConfigurationError: cryptography is not installed, a certificate exists already, or a file cannot be used.
    """
    check_available()
    with _explained():
        if renew:
            holders = [_as_before(directory, holder) for holder in holders] or list(_existing(directory))
        else:
            _check_new(directory, holders)
        if not holders:
            raise ConfigurationError("Name the hosts that need a certificate.")
        authority = _authority(directory, may_make=not renew)
        return [_make(directory, authority, holder, days) for holder in holders]


def _check_new(directory: Path, holders: Sequence[Holder]) -> None:
    """Raise `ConfigurationError` if a holder has a certificate, or two have one directory, before anything is made."""
    for number, holder in enumerate(holders):
        if os.path.lexists(directory / holder.name):
            raise ConfigurationError(
                f"{directory / holder.name} exists already: add --renew to replace the certificate of {holder.name}."
            )
        if any(other.name == holder.name for other in holders[:number]):
            raise ConfigurationError(f"{holder.name} is given twice.")


def _existing(directory: Path) -> Iterator[Holder]:
    """Yield the holders that have a certificate in the directory."""
    for cert in sorted(directory.glob("*/cert.pem")):
        names, server = names_in(cert.read_bytes())
        yield Holder(cert.parent.name, tuple(names), server)


def _as_before(directory: Path, holder: Holder) -> Holder:
    """Return a holder whose certificate is renewed: with the names that it has, if only its first one was given."""
    path = directory / holder.name / "cert.pem"
    if not path.exists():
        raise ConfigurationError(f"There is no {path} to renew: leave --renew out.")
    names, server = names_in(path.read_bytes())
    if server != holder.server:
        raise ConfigurationError(
            f"{path} is the certificate of a {'host' if server else 'client'}: renew it as one, or delete it."
        )
    return holder if holder.given or not server else Holder(holder.name, tuple(names))


def _authority(directory: Path, *, may_make: bool) -> Authority:
    key, cert = directory / "ca.key", directory / "ca.pem"
    there = [path for path in (key, cert) if path.exists()]
    if len(there) == 1:
        missing = cert if there[0] == key else key
        raise ConfigurationError(
            f"{missing} is missing: put it back; or delete {there[0]}, and make all certificates anew."
        )
    if not there and not may_make:
        raise ConfigurationError(f"There is no authority in {directory}: leave --renew out to make one.")
    if not there:
        _make_directory(directory)
        made = new_authority()
        _write(cert, made.cert, 0o644)
        _write(key, made.key, 0o600)
    _check_private(directory)
    authority = Authority(key.read_bytes(), cert.read_bytes())
    if authority.ends <= datetime.now(UTC):
        raise ConfigurationError(
            f"The authority in {directory} ended on {authority.ends:%Y-%m-%d}: make all certificates anew, in another "
            "directory."
        )
    return authority


def _make_directory(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    _check_private(directory)


def _check_private(directory: Path) -> None:
    """Raise `ConfigurationError` if others could replace what is in the directory."""
    if directory.stat().st_mode & _OTHERS_WRITE:
        raise ConfigurationError(
            f"Other users can change {directory}: run `chmod go-w {shlex.quote(str(directory))}`."
        )


def _make(directory: Path, authority: Authority, holder: Holder, days: float) -> Made:
    issued = authority.issue(holder.name, holder.names, server=holder.server, days=days)
    place = directory / holder.name
    place.mkdir(mode=0o700, exist_ok=True)
    _check_private(place)
    _write(place / "ca.pem", authority.cert, 0o644)
    _write(place / "key.pem", issued.key, 0o600)
    _write(place / "cert.pem", issued.cert, 0o644)
    return Made(holder, place, issued.ends)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file as a whole, whatever was there."""
    unfinished = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def _explained() -> Iterator[None]:
    """Raise a sentence in place of an `OSError`."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{error.filename} cannot be used: {error.strerror or error}.") from None


def describe(directory: Path, made: Sequence[Made]) -> str:
    """Return what was made, what to copy where, and the options to use it with."""
    hosts, clients = (
        [one for one in made if one.holder.server],
        [one for one in made if not one.holder.server],
    )
    lines = [
        f"{directory / 'ca.key'}: the key of your authority. Keep it here; no host needs it.",
        f"{directory / 'ca.pem'}: its certificate. All programs need it.",
        *(f"{one.directory}: for {', '.join(one.holder.names)}; {_until(one)}" for one in hosts),
        *(f"{one.directory}: for the client {one.holder.name}; {_until(one)}" for one in clients),
    ]
    if hosts:
        lines += [
            "",
            "Copy each directory to its host, readable for the user of the nodes alone. Name server and nodes there:",
            f"  {_server_options(hosts[0].directory.name)}",
            "Clients, and commands that ask the cluster:",
            "  --tls-ca ca.pem, in Python tls=pyrocache.TLS(ca='ca.pem')",
        ]
    if clients:
        lines += [
            "",
            "Clients with a certificate, for servers with --tls-require-client-cert:",
            f"  {_server_options(clients[0].directory.name)}",
        ]
    lines += [
        "",
        "After a renewal, copy the files again, and send SIGHUP to the name server and to `pyrocache nodes`.",
    ]
    return "\n".join(lines)


def _until(made: Made) -> str:
    return f"valid until {made.ends:%Y-%m-%d}"


def _server_options(name: str) -> str:
    files = {option: shlex.quote(f"{name}/{option}.pem") for option in ("ca", "cert", "key")}
    return " ".join(f"--tls-{option} {file}" for option, file in files.items())
