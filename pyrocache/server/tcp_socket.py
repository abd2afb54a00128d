"""The listening TCP socket of a server. The Unix socket is in `server.unix_socket`."""

from __future__ import annotations

import socket


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Port 0 takes a free port.

    Raises:
        OSError: the host cannot be resolved, or the address cannot be used.
    """
    host = "127.0.0.1" if host == "localhost" else host  # where clients look for it
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # A restarted server takes its port again although connections of the former one are in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener
