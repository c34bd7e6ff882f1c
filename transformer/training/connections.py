"""Have the kernel notice that another machine is gone, where nothing closes: its power, or a cable.

A process that ends has its connections closed by its kernel, and the others see it at once. A machine that
cannot be reached any more closes nothing: a rank that waits for it, with nothing sent that would have to be
acknowledged, waits as long as it is told to. gloo, and torch's store, do not ask for keepalive probes, which
are meant for this: the kernel asks the other kernel, which answers also while its process computes,
validates, or is suspended. Other than a time limit, they end no wait that is merely long.

What is sent and not acknowledged is another matter: the kernel sends it again, and gives up by itself, on
Linux after about 15 minutes (net.ipv4.tcp_retries2).
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

PROBES = 4  # without an answer, until a connection is given up


def probe_connections(silence: float) -> int:
    """Give up any TCP connection of this process after `silence` seconds without a sign of life.

    Its number of connections; 0 where a process cannot list its files, or has no such option: elsewhere than
    on Linux. Nothing is sent while other data is; probing begins after half of that time.
    """
    files = Path("/proc/self/fd")
    if not (files.is_dir() and hasattr(socket, "TCP_KEEPIDLE")):
        return 0
    idle, between = max(1, round(silence / 2)), max(1, round(silence / 2 / PROBES))
    options = ((socket.TCP_KEEPIDLE, idle), (socket.TCP_KEEPINTVL, between), (socket.TCP_KEEPCNT, PROBES))
    count = 0
    for file in sorted(int(each.name) for each in files.iterdir()):
        try:
            duplicate = os.dup(file)
        except OSError:  # closed by now: the listing itself was one of them
            continue
        if stat.S_ISSOCK(os.fstat(duplicate).st_mode):
            count += _probe(duplicate, options)
        else:
            os.close(duplicate)
    return count


def _probe(file: int, options: tuple[tuple[int, int], ...]) -> bool:
    """Set the options of a TCP connection, and close this descriptor of it; false if it is none."""
    with socket.socket(fileno=file) as connection:
        inet = connection.family in (socket.AF_INET, socket.AF_INET6)
        if not (inet and connection.type == socket.SOCK_STREAM):
            return False
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):  # it listens
            return False
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in options:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return True
