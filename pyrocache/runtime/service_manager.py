"""`ServiceManager`: tells systemd that a service is ready, reloading, stopping, or alive (sd_notify).

Sends datagrams to the socket that ``$NOTIFY_SOCKET`` names, as sd_notify(3) describes. Does nothing without that
variable. A message that cannot be sent is dropped. Implemented here because the Python packages for it are
unmaintained, or bind to the C library.

Only the process that systemd has started uses this. Its child processes inherit the variables and ignore them.

Thread safety: for the main thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping


class ServiceManager:
    """The service manager that has started this process, if there is one.

    Args:
        environment: the variables of this process.
        clock: seconds, monotonic.
    """

    def __init__(
        self, environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address  # @: an abstract socket
        self._clock = clock
        self._pause = _watchdog_seconds(environment) / 2
        self._alive_at = clock() - self._pause

    def ready(self, status: str) -> None:
        """Report that the service can be used, with a line for ``systemctl status``."""
        self._send(f"READY=1\nSTATUS={status}")

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Report that the service is reloading, and after the block that it is ready again."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            yield
        finally:
            self._send("READY=1")

    def stopping(self) -> None:
        """Report that the service ends."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Report that the main loop runs, if half of the time has passed after which systemd would end the process.

        For a main loop that calls this several times a second.
        """
        if self._pause and self._clock() - self._alive_at >= self._pause:
            self._alive_at = self._clock()
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1.0)  # its buffer may be full
            sock.sendto(message.encode(), self._address)


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    """Return within how many seconds the process must report that it is alive; 0 if it need not."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    other = environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid())
    return int(microseconds) / 1e6 if microseconds.isdecimal() and not other else 0.0
