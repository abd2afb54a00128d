"""The process between the hosts of `tests.support.network`: it forwards their packets, late, or not at all.

Run as ``python -m tests.support.between JSON``: for each host, the descriptor of its TUN device and its addresses. Each
line of standard input is the state from then on (`State`), and is answered by a line. It ends with standard input.

Thread safety: one thread.
"""

from __future__ import annotations

import heapq
import ipaddress
import json
import os
import random
import select
import sys
import time
from dataclasses import asdict, dataclass, field

_PACKET_BYTES = 65536


@dataclass
class State:
    """What happens to packets. Hosts are numbers.

    Attributes:
        cut: pairs between which nothing passes.
        diverted: from, to and instead of that: packets from the first host to the second one go to the third.
        delay: seconds that each packet is late.
        loss: the share of packets that are lost.
    """

    cut: list[tuple[int, int]] = field(default_factory=list)
    diverted: list[tuple[int, int, int]] = field(default_factory=list)
    delay: float = 0.0
    loss: float = 0.0

    def to_line(self) -> bytes:
        """Return the line that sets it."""
        return json.dumps(asdict(self)).encode() + b"\n"


class Between:
    """The forwarding.

    Args:
        devices: the descriptor of each host.
        owners: the host of each address, by its bytes.
        rng: decides what is lost.
    """

    def __init__(self, devices: list[int], owners: dict[bytes, int], rng: random.Random) -> None:
        self._devices = devices
        self._hosts = {device: host for host, device in enumerate(devices)}
        self._owners = owners
        self._random = rng
        self._late: list[tuple[float, int, int, int, bytes]] = []  # due, order, hosts, packet
        self._order = 0
        self.state = State()
        self._cut: set[tuple[int, int]] = set()
        self._diverted: dict[tuple[int, int], int] = {}

    def set(self, state: State) -> None:
        """Do this from now on, also with the packets that are on their way."""
        self.state = state
        self._cut = {(one, other) for pair in state.cut for one, other in (pair, pair[::-1])}
        self._diverted = {(source, target): other for source, target, other in state.diverted}

    def run(self, control: int) -> None:
        """Forward until ``control`` ends."""
        poll = select.epoll()
        for descriptor in (control, *self._devices):
            poll.register(descriptor, select.EPOLLIN)
        while True:
            for descriptor, _ in poll.poll(self._deliver()):
                if descriptor != control:
                    self._receive(descriptor)
                elif line := sys.stdin.buffer.readline():
                    self.set(State(**json.loads(line)))
                    print(flush=True)
                else:
                    return

    def _receive(self, device: int) -> None:
        source = self._hosts[device]
        try:
            packet = os.read(device, _PACKET_BYTES)
        except BlockingIOError:
            return
        target = self._owners.get(packet[24:40] if packet[0] >> 4 == 6 else packet[16:20])
        if target is None or self._random.random() < self.state.loss:
            return
        if self.state.delay:
            self._order += 1
            due = time.monotonic() + self.state.delay
            heapq.heappush(self._late, (due, self._order, source, target, packet))
        else:
            self._pass_on(source, target, packet)

    def _deliver(self) -> float:
        """Pass on what is due. Return the seconds until more is due, -1 if nothing is."""
        while self._late and self._late[0][0] <= time.monotonic():
            _, _, source, target, packet = heapq.heappop(self._late)
            self._pass_on(source, target, packet)
        return max(0.0, self._late[0][0] - time.monotonic()) if self._late else -1.0

    def _pass_on(self, source: int, target: int, packet: bytes) -> None:
        if (source, target) not in self._cut:
            try:
                os.write(self._devices[self._diverted.get((source, target), target)], packet)
            except OSError:  # the host's queue is full: the packet is lost
                pass


def main() -> None:
    """Run what the command line says."""
    hosts = json.loads(sys.argv[1])
    devices = [device for device, _ in hosts]
    owners = {
        ipaddress.ip_address(address).packed: host
        for host, (_, addresses) in enumerate(hosts)
        for address in addresses
    }
    Between(devices, owners, random.Random(len(devices))).run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
