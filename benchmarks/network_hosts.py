"""Hosts on one machine: network namespaces of Linux, joined by a switch; root and iproute2 are needed.

    with Network(hosts=2, rate=1e8, delay=0.001) as network:
        process = subprocess.Popen(network.command(1, ["ping", network.address(0)]))
        network.cut(1)

Each host has one device, eth0, and no way out. Without a delay it is one end of a veth pair, the other end a
port of a bridge, in a namespace of its own; with one it is a TAP device of network_cable.py. The rate holds
for what a host sends (tbf). All of it goes at the end, processes in the hosts too; what a killed process
has left, the next Network removes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from network_cable import address as link_address

PREFIX = "prepost-network"
CABLE = Path(__file__).with_name("network_cable.py")
BURST = 0.002  # seconds of its rate that a host may send at once, and at least SEGMENT
SEGMENT = 1 << 17  # bytes: more than a segment that is still whole
QUEUE = 1000  # milliseconds that a byte may wait at a host


class NoNetwork(Exception):
    """Why no hosts can be made here."""


def missing() -> str:
    """What is missing to make hosts, in a line; empty where nothing is."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root: run this as root, or in a container with CAP_SYS_ADMIN"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install iproute2"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    try:
        ip("netns", "add", probe)
        try:
            ip("-n", probe, "link", "add", "bridge", "type", "bridge")
            ip("-n", probe, "link", "add", "port", "type", "veth", "peer", "name", "eth0")
        finally:
            remove(probe)
    except NoNetwork as error:
        return f"network namespaces cannot be made here: {error}"
    return ""


def ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNetwork(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def namespaces() -> list[str]:
    """Those of this program, whoever has made them."""
    listed = json.loads(ip("-j", "netns", "list") or "[]")
    return [each["name"] for each in listed if each["name"].startswith(PREFIX)]


def remove(namespace: str) -> None:
    """End what runs in a namespace, and remove it."""
    for process in ip("netns", "pids", namespace).split():
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)
    ip("netns", "del", namespace)


def remove_abandoned() -> None:
    """Remove the namespaces of programs that were killed before they could."""
    for namespace in namespaces():
        if not Path("/proc", namespace.split("-")[2]).exists():
            try:
                remove(namespace)
            except NoNetwork:
                if namespace in namespaces():  # and not removed by another program meanwhile
                    raise


def end(signum: int, frame: FrameType | None) -> None:
    """SIGTERM ends this as Ctrl-C does, through all that cleans up."""
    raise KeyboardInterrupt


@contextmanager
def _signals_wait() -> Iterator[None]:
    """A signal here comes afterwards: what is made is known to be."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Network:
    """`hosts` namespaces, each with eth0 at `rate` bits a second (0: whatever the kernel does).

    `delay`: seconds of a round trip, half of it each way.
    """

    def __init__(self, hosts: int, rate: float = 0, delay: float = 0) -> None:
        self.hosts, self.rate, self.delay = hosts, rate, delay
        self.name = f"{PREFIX}-{os.getpid()}"
        self._made: list[str] = []
        self._cable: subprocess.Popen[str] | None = None

    def host(self, number: int) -> str:
        return f"{self.name}-{number}"

    @property
    def switch(self) -> str:
        return f"{self.name}-switch"

    def address(self, number: int) -> str:
        return f"10.77.0.{number + 1}"

    def command(self, number: int, argv: Sequence[str]) -> list[str]:
        """A command, at a host."""
        return ["ip", "netns", "exec", self.host(number), *argv]

    def processes(self, number: int) -> list[int]:
        """All that run at a host."""
        return [int(each) for each in ip("netns", "pids", self.host(number)).split()]

    def cut(self, number: int) -> None:
        """Unplug a host: its device has no carrier any more, and what it sends is lost."""
        assert not self.delay
        ip("-n", self.switch, "link", "set", f"port{number}", "down")

    def restore(self, number: int) -> None:
        ip("-n", self.switch, "link", "set", f"port{number}", "up")

    def __enter__(self) -> Network:
        remove_abandoned()
        try:
            for namespace in (*map(self.host, range(self.hosts)), self.switch):  # which goes first
                with _signals_wait():
                    ip("netns", "add", namespace)
                    self._made.append(namespace)
            self._join()
            for number in range(self.hosts):
                self._configure(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C waits for this
        try:
            while self._made:
                remove(self._made.pop())
            if self._cable is not None:
                self._cable.communicate()  # it was in the switch; this closes our end of its output too
        finally:
            signal.signal(signal.SIGINT, before)

    def _join(self) -> None:
        ports = [f"port{number}" for number in range(self.hosts)]
        if self.delay:
            command = ["ip", "netns", "exec", self.switch, sys.executable, str(CABLE), str(self.delay / 2)]
            self._cable = subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, text=True)
            assert self._cable.stdout is not None
            if self._cable.stdout.readline() != "ready\n":
                raise NoNetwork("the cable that delays cannot be made: is there no /dev/net/tun?")
            for number, port in enumerate(ports):
                ip("-n", self.switch, "link", "set", port, "netns", self.host(number), "name", "eth0")
            return
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for number, port in enumerate(ports):
            pair = ["link", "add", port, "netns", self.switch, "type", "veth"]
            ip(*pair, "peer", "name", "eth0", "netns", self.host(number))
            ip("-n", self.switch, "link", "set", port, "master", "bridge", "up")

    def _configure(self, number: int) -> None:
        at = ("-n", self.host(number))
        ip(*at, "link", "set", "lo", "up")
        ip(*at, "link", "set", "eth0", "address", link_address(number), "up")
        ip(*at, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
        if self.rate:
            burst = max(SEGMENT, int(self.rate / 8 * BURST))
            limit = ("rate", f"{self.rate:.0f}", "burst", str(burst), "latency", f"{QUEUE}ms")
            _run("tc", *at, "qdisc", "add", "dev", "eth0", "root", "tbf", *limit)


def ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Has it come to its end within so many seconds?"""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def alive(process: int) -> bool:
    """Does a process run, and is not merely waited for?"""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(happened, seconds: float, every: float = 0.05) -> float:  # type: ignore[no-untyped-def]
    """Seconds until it has; infinity if it does not within the limit."""
    start = time.monotonic()
    while not happened():
        if time.monotonic() - start > seconds:
            return float("inf")
        time.sleep(every)
    return time.monotonic() - start
