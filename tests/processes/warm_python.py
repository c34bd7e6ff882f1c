"""A Python that has torch and the toolkit imported: to start it takes milliseconds instead of seconds.

A server imports them once for all tests and forks. A program that stands where `sys.executable` does hands it
arguments, environment, directory and standard streams, passes signals on, and ends as the fork ends. What is
imported first, and how, is not seen by this: tests of that start the real one.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

PRELOADED = (
    *(f"transformer.cli.{name}" for name in ("train", "translate", "study")),
    *("torch.utils.tensorboard", "torch._dynamo", "matplotlib.figure"),
)
OWN_ID = ["submitit.local._local"]  # its parent knows it by the id of its process, and a fork has another
has_servers = hasattr(os, "pidfd_open")  # Linux


def ask(place: str, python: str) -> NoReturn:
    """What the program does: be `python` with its arguments, by a fork of the server at `place`."""
    program, *words = sys.argv
    unbuffered = words[:1] == ["-u"]
    words = words[unbuffered:]
    if (
        words[1:2] == OWN_ID or not words or (words[0].startswith("-") and words[0] not in ("-c", "-m"))
    ):  # of the interpreter's own
        os.execv(python, [python, *words])
    server, child, early = socket.socket(socket.AF_UNIX), 0, list[int]()
    if server.connect_ex(place):  # it has ended: slower, and no less right
        os.execv(python, [python, *sys.argv[1:]])

    def pass_on(number: int, frame: object) -> None:
        if child:
            os.kill(child, number)
        else:
            early.append(number)

    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    for number in (signal.SIGTERM, signal.SIGINT):  # what is ignored the fork ignores, unless it is told
        signal.signal(number, pass_on)
    with server:
        server.sendmsg([b"r"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (0, 1, 2)))])
        told = {"words": words, "environment": dict(os.environ), "folder": os.getcwd(), "ignored": ignored}
        told |= {"unbuffered": unbuffered, "program": program}
        server.sendall(json.dumps(told).encode() + b"\n")
        with server.makefile("r") as answers:
            child = int(answers.readline())
            for number in early:
                os.kill(child, number)
            code = int(answers.readline())
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def start(place: str) -> None:
    """Have a server at `place`, if there is none or not yet; it stays as long as we or who `keep`s it."""
    with open(f"{place}.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        known = lock.read()
        if known and os.path.exists(f"/proc/{known}"):
            return
        ours, its = socket.socketpair()
        words = [sys.executable, __file__, place]
        server = os.posix_spawn(
            sys.executable, words, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, its.fileno(), 0)]
        )
        its.close()
        ours.detach()  # open until this process ends
        lock.truncate(0)
        lock.write(str(server))


def keep(place: str) -> socket.socket:
    """A connection that keeps the server at `place`, when it is there."""
    for _ in range(6000):
        start(place)
        connection = socket.socket(socket.AF_UNIX)
        if not connection.connect_ex(place):
            connection.sendall(b"k")
            if connection.recv(1):
                return connection
        connection.close()
        time.sleep(0.02)
    raise AssertionError(f"no server at {place}")


def serve(place: str) -> None:
    """Import, listen at `place`, fork for each who asks; until nobody keeps us."""
    import gc
    import importlib
    import selectors
    from importlib.util import find_spec

    for name in PRELOADED:
        if find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    if not os.path.isdir(os.path.dirname(place)):  # the tests have ended meanwhile
        return
    starter = socket.socket(fileno=os.dup(0))
    keeping, children = {starter}, dict[int, tuple[int, socket.socket]]()
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(f"{place}.new")
        listener.listen(64)
        os.rename(f"{place}.new", place)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(starter, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if selector.get_map().get(key.fd) is not key:  # closed before this, its number another's
                    continue
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    kind, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
                    if kind == b"k":
                        with suppress(BrokenPipeError):
                            connection.sendall(kind)
                        keeping.add(connection)
                        selector.register(connection, selectors.EVENT_READ)
                    elif kind == b"r":
                        with connection.makefile("r") as lines:
                            line = lines.readline()
                        if not line.endswith("\n"):  # who asked was killed meanwhile
                            for descriptor in descriptors:
                                os.close(descriptor)
                            connection.close()
                            continue
                        child = os.fork()
                        if not child:
                            for each in [*selector.get_map().values()]:
                                os.close(each.fd)
                            connection.close()
                            become(json.loads(line), descriptors)
                        for descriptor in descriptors:
                            os.close(descriptor)
                        with suppress(BrokenPipeError):  # killed before this: `selector` tells it, too
                            connection.sendall(f"{child}\n".encode())
                        watched = os.pidfd_open(child)
                        children[watched] = child, connection
                        selector.register(watched, selectors.EVENT_READ)
                        selector.register(connection, selectors.EVENT_READ, data=watched)
                elif key.fd in children:  # it has ended
                    child, connection = children.pop(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    if connection.fileno() >= 0:
                        selector.unregister(connection)
                        with connection, suppress(BrokenPipeError):
                            connection.sendall(f"{code}\n".encode())
                elif key.fileobj in keeping:
                    keeping.remove(key.fileobj)  # type: ignore[arg-type]
                    selector.unregister(key.fileobj)
                    if not keeping:
                        with suppress(FileNotFoundError):
                            os.unlink(place)
                        return
                elif key.data in children:  # whoever asked was killed
                    os.kill(children[key.data][0], signal.SIGKILL)
                    selector.unregister(key.fileobj)
                    children[key.data][1].close()


def become(told: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """What a fork does: be a new Python with these arguments."""
    import atexit
    import runpy
    import threading
    import traceback
    import types

    import torch

    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if told["unbuffered"]:
        sys.stdout.reconfigure(write_through=True)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN if told["ignored"] else signal.default_int_handler)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    sys.executable = told["program"]  # what it starts is warm, too
    first, *rest = told["words"]
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path.insert(0, {"-c": "", "-m": os.getcwd()}.get(first) or os.path.dirname(first))
    code: Any = 0
    try:
        if first == "-c":
            sys.argv = ["-c", *rest[1:]]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), main.__dict__)
        elif first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # as Python itself ends where nobody reads
            code = code or 120
    os._exit(code & 0xFF)


if __name__ == "__main__":
    serve(sys.argv[1])
