"""Descriptors in reserve, in a process that has no others left."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from pyrocache.runtime.descriptors import DescriptorReserve
from tests.support.processes import environment

WITHOUT_DESCRIPTORS = """
import os, resource, socket
from pyrocache.runtime.descriptors import DescriptorReserve

reserve = DescriptorReserve(3)
print(len(reserve))
reserve.refill()
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, 99))
try:
    socket.socket()
except OSError as error:
    print(error.errno)
opened = [reserve.opening(socket.socket, socket.AF_INET) for _ in range(3)]
print(len(reserve))
try:
    reserve.opening(socket.socket)
except OSError as error:
    print(error.errno)
opened.pop().close()
reserve.refill()
print(len(reserve))
opened.append(reserve.opening(socket.socket))
for one in opened:
    one.close()
reserve.refill()
print(len(reserve))
reserve.close()
print(len(reserve))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts descriptors in /proc")
def test_what_is_needed_is_opened_with_a_descriptor_in_reserve() -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", WITHOUT_DESCRIPTORS],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert outcome.stderr == ""
    emfile = str(errno.EMFILE)
    assert outcome.stdout.split() == ["0", emfile, "0", emfile, "1", "3", "0"]


def test_other_errors_are_raised_at_once() -> None:
    reserve = DescriptorReserve(2)
    reserve.refill()

    def refused() -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    try:
        with pytest.raises(ConnectionRefusedError):
            reserve.opening(refused)
        assert len(reserve) == 2
    finally:
        reserve.close()
