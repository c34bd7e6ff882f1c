"""What a link does: seconds of a round trip, and bits a second of one connection.

python benchmarks/network_probe.py serve
python benchmarks/network_probe.py ADDRESS BYTES        (one JSON object on stdout)
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time

PORT, TURNS, BLOCK = 5001, 50, 1 << 20


def serve() -> None:
    """Answer one connection: each byte of TURNS at once, then everything, when all of it is there."""
    with socket.create_server(("", PORT)) as listener:
        print("ready", flush=True)
        connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(TURNS):
        connection.sendall(connection.recv(1))
    buffer, seen = bytearray(BLOCK), 0
    expected = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
    while seen < expected:
        seen += connection.recv_into(buffer)
    connection.sendall(b"!")


def measure(address: str, size: int) -> dict[str, float]:
    with socket.create_connection((address, PORT)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for _ in range(TURNS):
            start = time.perf_counter()
            connection.sendall(b"?")
            connection.recv(1)
            times.append(time.perf_counter() - start)
        block = bytes(BLOCK)
        connection.sendall(size.to_bytes(8, "big"))
        start = time.perf_counter()
        for begin in range(0, size, BLOCK):
            connection.sendall(block[: size - begin])
        connection.recv(1)
        seconds = time.perf_counter() - start
    return {"round_trip": statistics.median(times), "rate": 8 * size / seconds}


def main() -> None:
    if sys.argv[1] == "serve":
        serve()
    else:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))


if __name__ == "__main__":
    main()
