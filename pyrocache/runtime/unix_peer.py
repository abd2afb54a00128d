"""Which user is at the other end of a Unix socket.

Thread safety: functions without state.
"""

from __future__ import annotations

import os
import socket
import struct

_UCRED = struct.Struct("3i")  # Linux's struct ucred: pid, uid, gid
_XUCRED = struct.Struct("=2I")  # macOS's struct xucred: version, uid, and more
_XUCRED_BYTES = 76
_SOL_LOCAL = 0


def is_trusted(sock: socket.socket) -> bool:
    """Return whether the peer of a connected Unix socket is a process of this user or of root.

    Where the system does not tell, only the mode of the socket's directory and the handshake protect.

    Raises:
        OSError: the socket is not connected any more.
    """
    uid = _uid(sock)
    return uid is None or uid in (os.geteuid(), 0)


def _uid(sock: socket.socket) -> int | None:
    if hasattr(socket, "SO_PEERCRED"):
        _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return int(uid)
    if hasattr(socket, "LOCAL_PEERCRED"):
        _, uid = _XUCRED.unpack(
            sock.getsockopt(_SOL_LOCAL, socket.LOCAL_PEERCRED, _XUCRED_BYTES)[: _XUCRED.size]
        )
        return int(uid)
    return None
