"""A switch that holds every frame back for a while, where the kernel itself has nothing that delays.

    python benchmarks/network_cable.py SECONDS PORT...

Makes a TAP device of each name and hands on what comes out of one to the others, after so many seconds. Says
`ready` when the devices are there; they may then be moved into other network namespaces. Frames go where
their address says (`address(port)`), and to all if it is none of these. Frames come with their offloads
(IFF_VNET_HDR), so that one read may be 64 kB of a connection, as it is between two ends of a veth pair.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
TAP, NO_PACKET_INFORMATION, WITH_HEADER = 0x0002, 0x1000, 0x4000
CHECKSUMS, SEGMENTS = 0x01, 0x02  # of TCP over IPv4: left to the other end, as a network card does
HEADER, LARGEST = 10, 1 << 17  # bytes: of virtio's header, and of what is read at once


def address(port: int) -> str:
    """The address of the device at a port of the switch."""
    return f"02:00:00:00:00:{port:02x}"


def plug(name: str) -> int:
    """A new TAP device; it is there as long as its file is open."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(
        file, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP | NO_PACKET_INFORMATION | WITH_HEADER)
    )
    fcntl.ioctl(file, TUNSETOFFLOAD, CHECKSUMS | SEGMENTS)
    return file


def switch(files: list[int], delay: float) -> None:
    """Hand on frames for ever."""
    ports = {bytes.fromhex(address(port).replace(":", "")): file for port, file in enumerate(files)}
    held: deque[tuple[float, int, bytes]] = deque()  # all wait equally long, so the first is due first
    while True:
        patience = max(0.0, held[0][0] - time.monotonic()) if held else None
        for file in select.select(files, (), (), patience)[0]:
            frame = os.read(file, LARGEST)
            to = ports.get(frame[HEADER : HEADER + 6])
            due = time.monotonic() + delay
            held.extend((due, other, frame) for other in ([to] if to else files) if other != file)
        while held and held[0][0] <= time.monotonic():
            _, file, frame = held.popleft()
            try:
                os.write(file, frame)
            except OSError as error:
                if error.errno != errno.EIO:  # of a device that is not up: what is sent to it is lost
                    raise


def main() -> None:
    delay, *names = sys.argv[1:]
    files = [plug(name) for name in names]
    print("ready", flush=True)
    switch(files, float(delay))


if __name__ == "__main__":
    main()
