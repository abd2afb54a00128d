"""TLS around a plain channel: `TlsChannel`, for both ends, and `ServerCertificate`, which a server can reload.

OpenSSL reads from and writes to buffers in memory, not the socket. So the channel works with any non-blocking socket,
including those of gevent, and sends many records with one system call. Only TLS 1.3 is spoken. There are no session
tickets: connections are kept, so resuming a session would save little.

A stream that ends without a `close_notify` is reported as an ordinary end. That is safe here, because every message
contains its length: a truncated message is never taken for a whole one.

Thread safety: a channel is used by one thread at a time; a `ServerCertificate` by any number.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import os
import re
import ssl
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Never

from pyrocache.config import TLS
from pyrocache.errors import ConfigurationError
from pyrocache.runtime.channel import TlsRefused

# Checking the name of a host imports this codec. A child forked during that import would wait for its lock forever.
codecs.lookup("idna")

_CHUNK_BYTES = 256 * 1024  # encrypted at once
_RECORD_BYTES = 16 * 1024
_PULL_BYTES = 256 * 1024  # received at once
_ALERT = re.compile("(SSLV3|TLSV1|TLSV13)_ALERT_")  # what OpenSSL puts before the name of an alert
_SENTENCES = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has not shown a certificate",
    "CERTIFICATE_REQUIRED": "it demands a certificate of this end",
}
_NOT_TLS = (
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
    "RECORD_LAYER",
)
_ABOUT_CERTIFICATE = ("CERTIFICATE", "UNKNOWN_CA")
_BUSY = "INTERNAL_ERROR"
_END = ssl.SSLEOFError | ssl.SSLZeroReturnError


class TlsChannel:
    """A `Channel` that encrypts. It never blocks, and no method takes flags into account.

    Bytes that were not reported as sent must be offered again, from the first of them: some may be on their way.

    Args:
        sock: a connected socket that does not block.
        context: that of the whole process.
        host: what the certificate of the other end must be for; None for a server.
        certificate: that of this end, if it is a server (see the attribute).

    Attributes:
        certificate: the SHA-256 hash of the server's certificate, which both ends know after the handshake.
        rest: bytes that were received and decrypted, and did not fit into the last buffer. No event announces them.
        unsent: bytes that wait until the socket can be written to.
    """

    __slots__ = (
        "_established",
        "_incoming",
        "_outgoing",
        "_sock",
        "_taken",
        "_tls",
        "certificate",
        "rest",
        "unsent",
    )

    def __init__(
        self, sock: Any, context: ssl.SSLContext, host: str | None = None, certificate: bytes = b""
    ) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=host is None, server_hostname=host
        )
        self._established = False
        self._taken = 0  # bytes that are encrypted, and not reported as sent
        self.certificate = certificate
        self.rest = b""
        self.unsent = memoryview(b"")

    def handshake(self) -> bool:
        """Proceed with the handshake as far as possible. Return whether it is done, and all of it is sent.

        If not, call again once the socket is readable, or writable if there are `unsent` bytes.

        Raises:
            TlsRefused: it has failed.
            OSError: the connection has failed.
        """
        done = False
        while not done:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                self._fail(error)
            try:
                if not self._flush():
                    return False
            except (BrokenPipeError, ConnectionResetError):
                if done:
                    raise
                # A server that refuses connections may have closed this one already. Its alert can still be received.
            try:
                if not done:
                    self._pull(_RECORD_BYTES)
            except BlockingIOError:
                return False
        if not self.certificate:
            self.certificate = hashlib.sha256(self._tls.getpeercert(True) or b"").digest()
        return True

    @property
    def peer_certificate(self) -> dict[str, Any]:
        """Return the certificate that the other end has presented, in the form of `ssl.SSLSocket.getpeercert`."""
        return self._tls.getpeercert() or {}

    @property
    def family(self) -> int:
        """The address family."""
        return self._sock.family  # type: ignore[no-any-return]

    def getsockname(self) -> Any:
        """Return the address of this end."""
        return self._sock.getsockname()

    def getpeername(self) -> Any:
        """Return the address of the other end."""
        return self._sock.getpeername()

    def fileno(self) -> int:
        """Return the file descriptor to poll."""
        return self._sock.fileno()  # type: ignore[no-any-return]

    def send(self, data: bytes, flags: int = 0, /) -> int:
        """Send the beginning of ``data``. Return how many bytes were sent."""
        size = len(data)
        if self._taken or self.unsent or not 0 < size <= _RECORD_BYTES:
            return self.sendmsg((data,))
        # This is sendmsg() for a small message, in as few Python calls as possible.
        self._tls.write(data)
        encrypted = self._outgoing.read()
        try:
            count = self._sock.send(encrypted)
        except BlockingIOError:
            count = 0
        if count < len(encrypted):
            self.unsent, self._taken = memoryview(encrypted)[count:], size
            raise BlockingIOError
        return size

    def sendmsg(self, buffers: Iterable[Any], ancillary: Iterable[Any] = (), flags: int = 0, /) -> int:
        """Send the beginning of ``buffers``. Return how many bytes were sent."""
        if not self._taken:
            self._encrypt(buffers)
        if not self._flush():
            raise BlockingIOError
        taken, self._taken = self._taken, 0
        return taken

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Receive what has arrived, perhaps more than ``size`` bytes; empty once the peer has closed its end."""
        if self.rest:
            rest, self.rest = self.rest, b""
            return rest
        incoming = self._incoming
        if not incoming.pending:  # after the handshake, the first message may be there already
            data = self._sock.recv(size)
            if data:
                incoming.write(data)
            else:
                incoming.write_eof()
        try:
            first = self._tls.read(_RECORD_BYTES)  # as much as a record can hold
        except ssl.SSLError as error:
            return self._after(error)
        self._established = True
        return first + self._read_more() if incoming.pending else first

    def recv_into(self, buffer: memoryview, size: int = 0, flags: int = 0, /) -> int:
        """Receive into ``buffer``. Return how many bytes were received. More of them may be in `rest`."""
        count = 0
        size = size or len(buffer)
        if self.rest:
            count = min(size, len(self.rest))
            buffer[:count], self.rest = self.rest[:count], self.rest[count:]
            return count
        if not self._incoming.pending:
            self._pull(min(size, _PULL_BYTES))
        while True:
            try:
                got = int(self._tls.read(size - count, buffer[count:size]))
            except ssl.SSLError as error:
                if not (count and isinstance(error, ssl.SSLWantReadError | _END)):
                    return len(self._after(error))
                return count  # an end is found again
            count += got
            if count == size:
                self.rest = self._read_more()
            if not got or count == size or not self._holds_more():
                return count

    def shutdown(self, how: int, /) -> None:
        """End one direction of the stream, or both."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close this end."""
        self._sock.close()

    def _read(self, size: int) -> bytes:
        """Return what is decrypted of the next record. Raises `BlockingIOError` if it has not arrived as a whole."""
        try:
            data = self._tls.read(size)
        except ssl.SSLError as error:
            return self._after(error)
        self._established = True
        return data

    def _read_more(self) -> bytes:
        """Return all else that is decrypted: no event would announce it."""
        parts = []
        while self._holds_more():
            try:
                part = self._read(_RECORD_BYTES)
            except BlockingIOError:  # the rest has not arrived
                break
            if not part:  # the end is found again
                break
            parts.append(part)
        return b"".join(parts)

    def _holds_more(self) -> bool:
        return self._incoming.pending > 0 or self._tls.pending() > 0

    def _after(self, error: ssl.SSLError) -> bytes:
        """Return nothing if the stream has ended. Raises `BlockingIOError` if more must arrive, or ``error``."""
        if isinstance(error, ssl.SSLWantReadError):
            raise BlockingIOError from None
        if not isinstance(error, _END):
            self._fail(error)
        return b""

    def _pull(self, size: int) -> None:
        data = self._sock.recv(size)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _encrypt(self, buffers: Iterable[Any]) -> None:
        parts, taken = [], 0
        for buffer in buffers:
            part = memoryview(buffer)[: _CHUNK_BYTES - taken]
            taken += len(part)
            if part:
                parts.append(part)
        if len(parts) > 1 and taken <= _RECORD_BYTES:
            parts = [memoryview(b"".join(parts))]
        for part in parts:
            self._tls.write(part)
        self._taken = taken

    def _flush(self) -> bool:
        """Send what is encrypted. Return whether that was all."""
        while self.unsent or self._outgoing.pending:
            if not self.unsent:
                self.unsent = memoryview(self._outgoing.read())
            try:
                self.unsent = self.unsent[self._sock.send(self.unsent) :]
            except BlockingIOError:
                return False
        return True

    def _fail(self, error: ssl.SSLError) -> Never:
        """Tell the other end, and raise what ``error`` means."""
        with contextlib.suppress(OSError):
            self._flush()  # the alert
        if self._established:
            raise error
        if isinstance(error, _END):
            raise ConnectionResetError("the connection was closed during the TLS handshake") from None
        raise _refused(error) from None


def _refused(error: ssl.SSLError) -> TlsRefused:
    """Return what an error in a handshake means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = error.verify_message.rstrip(".")
        return TlsRefused(f"its certificate is not accepted: {text}", TlsRefused.Cause.CERTIFICATE)
    reason = _ALERT.sub("", error.reason or "")
    text = reason.lower().replace("_", " ")
    if any(word in reason for word in _ABOUT_CERTIFICATE):
        text = _SENTENCES.get(reason, f"it does not accept the certificate of this end: {text}")
        return TlsRefused(text, TlsRefused.Cause.CERTIFICATE)
    if any(word in reason for word in _NOT_TLS):
        return TlsRefused("it does not speak TLS 1.3", TlsRefused.Cause.PROTOCOL)
    if reason == _BUSY:
        return TlsRefused("it has as many connections as it takes", TlsRefused.Cause.BUSY)
    return TlsRefused(f"it breaks the rules of TLS: {text}", TlsRefused.Cause.PROTOCOL)


class ServerCertificate:
    """The certificate and key of a server, as its files had them when they were last loaded.

    Raises:
        ConfigurationError: a file cannot be used.
    """

    def __init__(self, tls: TLS) -> None:
        self._tls = tls
        self.load()

    def load(self) -> None:
        """Load the files again, for new connections. Raises `ConfigurationError`; then nothing has changed."""
        tls = self._tls
        context = _context(ssl.PROTOCOL_TLS_SERVER, tls)
        context.num_tickets = 0
        if tls.require_client_cert:
            context.verify_mode = ssl.CERT_REQUIRED
        try:
            self._current = context, _shown_by(context)
        except ssl.SSLError as error:
            raise _unusable(tls.cert, error) from None

    def secure(self, sock: Any) -> TlsChannel:
        """Return the server's end of TLS on a socket that does not block."""
        context, certificate = self._current
        return TlsChannel(sock, context, certificate=certificate)


def check_own_certificate(tls: TLS, host: str) -> None:
    """Check the certificate of a server, as others with the same authorities will.

    Args:
        host: the name or address at which others reach the server.

    Raises:
        ConfigurationError: a file cannot be used, or the certificate would not be accepted there.
    """
    client = _context(ssl.PROTOCOL_TLS_CLIENT, tls)
    try:
        _shown_by(_context(ssl.PROTOCOL_TLS_SERVER, tls), client, host.partition("%")[0])
    except ssl.SSLCertVerificationError as error:
        raise ConfigurationError(
            f"Others would not accept the certificate {tls.cert} at {host} ({error.verify_message.rstrip('.')}): give "
            "the --tls-ca that has signed it, or make one for this host with: pyrocache certificates DIR HOST,ADDRESS"
        ) from None
    except ssl.SSLError as error:
        raise _unusable(tls.cert, error) from None


def client_channel(sock: Any, tls: TLS, host: str) -> TlsChannel:
    """Return the client's end of TLS on a connected socket that does not block.

    Args:
        host: the name or address that the server's certificate must be for.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    files = [path for path in (tls.ca, tls.cert, tls.key) if path is not None]
    context = _client_context(tls, tuple(map(_changed_at, files)))
    return TlsChannel(sock, context, host.partition("%")[0])


@lru_cache(maxsize=16)
def _client_context(tls: TLS, changed_at: tuple[int, ...]) -> ssl.SSLContext:
    """Return the context for these files. ``changed_at`` is part of the cache's key: changed files are loaded again."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, tls)


def _changed_at(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _context(protocol: int, tls: TLS) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    path = tls.ca
    try:
        if tls.ca is not None:
            context.load_verify_locations(tls.ca)
        elif protocol == ssl.PROTOCOL_TLS_CLIENT:
            context.load_default_certs()
        if tls.cert is not None:
            path = f"{tls.cert} with {tls.key}"
            context.load_cert_chain(tls.cert, tls.key, password=_refuse_password)
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from None
    return context


def _unusable(path: str | None, error: OSError | ValueError) -> ConfigurationError:
    # OpenSSL's texts name lines of its source code.
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    text = str(reason).lower().replace("_", " ")
    if "pem lib" in text:
        text = "one of them does not hold what it should, in PEM"
    return ConfigurationError(f"Cannot use {path} for TLS: {text}.")


def _refuse_password() -> str:
    raise ValueError("the private key is encrypted, and nobody can be asked for its password")


def _anybody() -> ssl.SSLContext:
    """Return the context of a client that accepts every certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _shown_by(
    context: ssl.SSLContext, viewer: ssl.SSLContext | None = None, host: str | None = None
) -> bytes:
    """Return the SHA-256 hash of the certificate that a server with this context shows.

    It is taken from a handshake in memory, with a client that has the context ``viewer``. The file may have changed
    since it was loaded.
    """
    hello, answer = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = (viewer or _anybody()).wrap_bio(answer, hello, server_hostname=host)
    server = context.wrap_bio(hello, answer, server_side=True)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with contextlib.suppress(ssl.SSLWantReadError):
        server.do_handshake()
    client.do_handshake()
    return hashlib.sha256(client.getpeercert(True) or b"").digest()
