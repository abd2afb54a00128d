"""A node that is nothing but a script, on real sockets."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from pyrocache.cluster.routing import Member
from pyrocache.net.deadline import Deadline
from pyrocache.protocol import framing, messages
from pyrocache.protocol.framing import FrameDecoder
from pyrocache.protocol.refusals import Refusal
from tests.support.waiting import PATIENCE_SECONDS
from tests.support.wire import pack_refusal

MIB = 2**20


class Line:
    """A peer's end of one connection, past the handshake."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.sequence = -1
        self._decoder = FrameDecoder(lambda header: None, lambda frame_bytes: None)

    def frame(self) -> framing.Frame:
        while (frame := self._decoder.next_frame()) is None:
            data = self.sock.recv(256 * 1024)
            if not data:
                raise ConnectionResetError
            self._decoder.feed(data)
        return frame

    def request(self) -> tuple[str, list[Any]]:
        """The next call's method and arguments."""
        header, body = self.frame()
        assert header.type == framing.INVOKE
        _, method, arguments, options = messages.unpack_plain(body)
        assert options == {}
        self.sequence = header.sequence
        return method, arguments

    def send(self, *pieces: bytes) -> None:
        """Each by itself, as far as that can be arranged."""
        for piece in pieces:
            self.sock.sendall(piece)
            if len(pieces) > 1:
                time.sleep(0.0005)

    def reply(self, result: Any) -> bytes:
        return joined(messages.pack_result(self.sequence, result))

    def wait_until_closed(self) -> None:
        """Until the client has closed its end; more requests would be an error."""
        with contextlib.suppress(ConnectionError):
            assert self.sock.recv(1) == b""


Script = Callable[[Line], None]

"""Serves one connection, in a thread of its own, and leaves when it is to be closed."""


class ScriptedPeer:
    """A node that is nothing but a script."""

    def __init__(self, script: Script, path: str = "", *, number: int = 1, greeting: Any = None) -> None:
        self.script = script
        self.greeting = {"max_value_bytes": 64 * MIB} if greeting is None else greeting
        self.opened = 0
        self.open = 0
        self.most_open = 0
        self.families: list[int] = []
        self.failures: list[BaseException] = []
        self._lock = threading.Lock()
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        tcp = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listen(tcp)
        if path:
            local = socket.socket(socket.AF_UNIX)
            local.bind(path)
            local.listen(128)
            self._listen(local)
        self.member = Member(
            f"cache.node.{number}", "127.0.0.1", tcp.getsockname()[1], incarnation="i", socket_path=path
        )

    def close(self) -> None:
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
        for sock in self._socks:
            sock.close()

    def _listen(self, listener: socket.socket) -> None:
        self._socks.append(listener)
        self._start(self._accept, listener)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._socks.append(sock)
                self.families.append(sock.family)
                self.opened += 1
                self.open += 1
                self.most_open = max(self.open, self.most_open)
                line = Line(sock, self.opened)
            self._start(self._serve, line)

    def _serve(self, line: Line) -> None:
        if line.sock.family != socket.AF_UNIX:
            line.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self.greeting is not False:
                assert line.frame().header.type == framing.CONNECT
                line.send(connect_ok(self.greeting))
            self.script(line)
        except ConnectionError:
            pass
        except BaseException as error:
            self.failures.append(error)
        finally:
            with self._lock:
                self.open -= 1
            with contextlib.suppress(OSError):
                line.sock.shutdown(socket.SHUT_RDWR)


def connect_ok(greeting: Any) -> bytes:
    return framing.pack_message(
        framing.CONNECT_OK, 0, messages.pack_plain({"handshake": greeting, "meta": {}})
    )


def joined(message: bytes | list[Any]) -> bytes:
    return message if isinstance(message, bytes) else b"".join(message)


def message(
    sequence: int,
    body: bytes,
    *,
    kind: int = framing.RESULT,
    flags: int = 0,
    serializer: int = framing.MSGPACK,
    claim: int | None = None,
    magic: int = 0x4DC5,
    annotations: bytes = b"",
) -> bytes:
    length = len(body) if claim is None else claim
    header = struct.pack(
        "!4sHBBHHII16sHH",
        b"PYRO", 502, kind, serializer, flags, sequence, length, len(annotations), bytes(16), 0, magic,
    )  # fmt: skip
    return header + annotations + body


def refusal_message(sequence: int, code: str) -> bytes:
    body = pack_refusal(Refusal(code, "no"))
    return framing.pack_message(framing.RESULT, sequence, body, flags=framing.FLAG_EXCEPTION)


def echo(line: Line) -> None:
    """Answers every call with its last argument."""
    while True:
        line.send(line.reply(line.request()[1][-1]))


def soon() -> Deadline:
    """Return a deadline that is far enough away for what should come at once."""
    return Deadline(PATIENCE_SECONDS)


def in_threads(count: int, call: Callable[[int], Any]) -> list[Any]:
    """What it returns in each of so many threads; raises what one of them raised."""
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            results[number] = call(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return results
