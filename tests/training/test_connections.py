"""A machine that is gone, and closes nothing, is noticed by the kernel; a long wait alone ends nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from network_hosts import Network, ip, missing

from transformer.training.connections import probe_connections

KEEPALIVE = (socket.SOL_SOCKET, socket.SO_KEEPALIVE)
ROOT = Path(__file__).parents[2]
# Rank 0 is busy, as in a validation, while rank 1 waits for it.
WAITING = """
import ctypes, os, sys, time, torch
with open(sys.argv[1]) as host:  # of which this process is one, before it has a connection or a thread
    assert not ctypes.CDLL(None).setns(host.fileno(), 0)
from transformer.training import connections, ranks
ranks.LONGEST_SILENCE, connections.PROBES = 2.0, 1
with ranks.open_ranks(torch.device("cpu")) as all:
    all.barrier()
    print("ready", flush=True)
    if all.chief:
        time.sleep(60)
    try:
        all.barrier()
    except ranks.RankLost as error:
        print(error, flush=True)
        os._exit(7)  # as `program` does: a thread of torch's may abort an interpreter that takes itself down
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what is set is Linux's")
def test_connections_are_probed_and_nothing_else_is_touched() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
        listener.accept()[0] as far,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        open(os.devnull) as file,
    ):
        unprobed = probe_connections(120.0) - 2  # others of this process
        assert unprobed >= 0
        for connection in (near, far):
            assert connection.getsockopt(*KEEPALIVE) == 1
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            idle, between, count = (connection.getsockopt(socket.IPPROTO_TCP, each) for each in options)
            assert idle + count * between == 120
        assert listener.getsockopt(*KEEPALIVE) == datagrams.getsockopt(*KEEPALIVE) == 0
        assert file.read() == ""
        near.sendall(b"x")
        assert far.recv(1) == b"x"


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.usefixtures("starts_warm")
def test_a_rank_that_waits_ends_soon_after_the_cable_is_cut_and_no_sooner() -> None:
    with Network(2) as hosts:
        # On a busy machine its vote may be under way when the cable is cut: that is not what is tried here.
        ip("netns", "exec", hosts.host(1), "sysctl", "-qw", "net.ipv4.tcp_retries2=3")
        running = []
        for rank in range(2):
            environment = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
            environment |= {"MASTER_ADDR": hosts.address(0), "MASTER_PORT": "29500"}
            environment |= {"GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", WAITING, f"/run/netns/{hosts.host(rank)}"]
            running.append(
                subprocess.Popen(
                    command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
                )
            )
        out = [each.stdout for each in running]
        assert out[0] is not None
        assert out[1] is not None
        assert [each.readline() for each in out if each] == ["ready\n"] * 2
        time.sleep(3)  # longer than the silence that is allowed, with a kernel that answers
        assert running[1].poll() is None
        hosts.cut(1)
        assert running[1].wait(15) == 7
        assert "rank 1 of 2" in out[1].read()
        for each in out:
            if each:
                each.close()
    for each in running:
        each.wait(5)
