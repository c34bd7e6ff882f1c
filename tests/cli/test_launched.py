"""Several processes before they have found each other: what started them is wrong, or the others are late."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import transformer.training.meeting as meeting
from transformer.__main__ import main as toolkit
from transformer.cli.train import main as train
from transformer.training.launch import require_launch
from transformer.training.meeting import CalledOff, NotMet, Roll, Wait, call_the_roll, meet

TWO = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
NOWHERE = ["MASTER_ADDR: not set", "MASTER_PORT: not set"]
WRONG: dict[str, tuple[dict[str, str], list[str]]] = {
    "no meeting": ({"RANK": "0", "WORLD_SIZE": "2"}, NOWHERE),
    "no number": (
        {"RANK": "0", "WORLD_SIZE": "two"},
        ["WORLD_SIZE: a whole number from 1 up is wanted, not 'two'", *NOWHERE],
    ),
    "a rank too large": ({**TWO, "RANK": "2"}, ["RANK: a whole number from 0 to 1 is wanted, not '2'"]),
    "a rank below 0": ({**TWO, "RANK": "-1"}, ["RANK: a whole number from 0 to 1 is wanted, not '-1'"]),
    "no processes": ({**TWO, "RANK": "0", "WORLD_SIZE": "0"}, ["WORLD_SIZE: a whole number from 1 up"]),
    "no address": ({**TWO, "RANK": "1", "MASTER_ADDR": ""}, ["MASTER_ADDR: empty"]),
    "a label too long": ({**TWO, "RANK": "1", "MASTER_ADDR": "a" * 70}, ["MASTER_ADDR: 'aaa"]),
    "a service": ({**TWO, "RANK": "1", "MASTER_PORT": "http"}, ["MASTER_PORT: a whole number from 1 to"]),
    "half of it": (
        {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "x"},
        ["TORCHELASTIC_RESTART_COUNT: a"],
    ),
    "a port too large": ({**TWO, "RANK": "1", "MASTER_PORT": "65536"}, ["MASTER_PORT: a whole number from"]),
    "an attempt": (
        {**TWO, "RANK": "1", "TORCHELASTIC_RESTART_COUNT": "x"},
        ["TORCHELASTIC_RESTART_COUNT: a whole number from 0 up"],
    ),
    "its machine": (
        {**TWO, "RANK": "1", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"},
        ["LOCAL_WORLD_SIZE: a whole number from 1 to 2", "LOCAL_RANK: a whole number from 0 to 1"],
    ),
    "which of its machine": ({**TWO, "RANK": "1", "LOCAL_WORLD_SIZE": "2"}, ["LOCAL_RANK: not set"]),
    "several": (
        {"RANK": "x", "WORLD_SIZE": "y", "LOCAL_RANK": "z", "MASTER_PORT": "0"},
        ["WORLD_SIZE: a", "RANK: a", "LOCAL_RANK: a", "MASTER_ADDR: not set", "MASTER_PORT: a"],
    ),
}
pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


@pytest.mark.parametrize("case", WRONG)
def test_all_that_a_launcher_has_wrong_is_told_at_once_before_anything_is_read(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variables, words = WRONG[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert train(["there-is-no-such.yaml"]) == 2
    told = capsys.readouterr().err
    problems = re.findall(r"^  - (.*)", told, re.MULTILINE)
    assert [text[: len(word)] for text, word in zip(problems, words, strict=True)] == words
    assert told.count("torchrun sets all of these") == 1
    assert "there-is-no-such" not in told


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LOCAL_RANK": "x"},
        {"RANK": "0"},
        {"WORLD_SIZE": "4"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {**TWO, "RANK": "1", "MASTER_ADDR": "::1"},
        {**TWO, "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "3"},
    ],
)
def test_what_torchrun_sets_and_what_says_nothing_of_processes_is_right(variables: dict[str, str]) -> None:
    require_launch(variables)


@pytest.mark.parametrize("name", ["translate", "study", "export", "average", "data"])
def test_what_is_one_process_is_not_started_several_times(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two that read one standard input got a part of the lines each."""
    for variable, value in {**TWO, "RANK": "1"}.items():
        monkeypatch.setenv(variable, value)
    assert toolkit([name, "x"]) == 2
    assert f"error: {name}: RANK and WORLD_SIZE say that this is one of 2" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        toolkit([name, "--help"])
    for alone in ("1", ""):
        monkeypatch.setenv("WORLD_SIZE", alone)
        with suppress(SystemExit):
            assert toolkit([name, "x"]) != 0
        assert "RANK" not in capsys.readouterr().err


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


STARTS = "import sys, transformer.training.meeting as m; m.NOTE = 0.0; " + (
    "from transformer.__main__ import program; sys.exit(program('train'))"
)
LATE = [
    ("1", "nowhere.invalid", {}, signal.SIGTERM, 130),
    ("0", "nowhere.invalid", {}, signal.SIGINT, 130),
    ("1", "127.0.0.1", {}, signal.SIGINT, 130),
    ("0", "127.0.0.1", {}, signal.SIGTERM, 130),
    ("0", "127.0.0.1", {"TORCHELASTIC_RESTART_COUNT": "1"}, signal.SIGTERM, 130),  # torchrun ends the others
    ("1", "127.0.0.1", {"TORCHELASTIC_RESTART_COUNT": "1"}, signal.SIGINT, 130),
]


@pytest.mark.usefixtures("starts_warm")
@pytest.mark.parametrize(("rank", "address", "more", "number", "code"), LATE)
def test_a_process_that_waits_for_the_others_says_so_and_ends_with_a_signal(
    rank: str,
    address: str,
    more: dict[str, str],
    number: signal.Signals,
    code: int,
    config: str,
    tmp_path: Path,
) -> None:
    variables = {**os.environ, **TWO, "RANK": rank, "MASTER_ADDR": address, "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", STARTS, config, "--run-dir", str(tmp_path / "run"), "--device", "cpu"]
    with subprocess.Popen(
        command,
        env=variables | more,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            process.send_signal(number)
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert f"rank {rank} of 2: " in first
    assert ("have not come: 1; waiting" if (rank, address) == ("0", "127.0.0.1") else "MASTER_ADDR=") in first
    assert process.returncode == code
    assert (f"{number.name} to rank {rank} of 2 before all had come" if more else "interrupted") in rest
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("when", ["while it imports", "while it waits"])
def test_a_process_whose_torchrun_is_gone_does_not_wait_for_the_others(
    when: str, config: str, tmp_path: Path
) -> None:
    """It would be taken for one of those that are started next."""
    agent = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    # Says that torch is asked for, and waits until its parent is another one.
    importing = (
        "import os, sys, time\nclass Late:\n def find_spec(self, name, *_):\n"
        "  if name == 'torch' and first:\n"
        "   first.clear(); print('importing', file=sys.stderr, flush=True)\n"
        "   while os.getppid() == parent: time.sleep(0.05)\n"
        "first, parent = [1], os.getppid()\nsys.meta_path.insert(0, Late())\n"
        "from transformer.__main__ import program\nsys.exit(program('train'))"
    )
    source = importing if when == "while it imports" else STARTS
    command = [sys.executable, "-c", source, config, "--run-dir", str(tmp_path / "run"), "--device", "cpu"]
    variables = {**TWO, "RANK": "0", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RESTART_COUNT": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", agent, *command],
        env=os.environ | variables,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as torchrun:
        try:
            assert torchrun.stderr is not None
            first = torchrun.stderr.readline()
            torchrun.kill()
            said = torchrun.communicate(timeout=60)[1]  # to the end of both
        finally:
            with suppress(ProcessLookupError):
                os.killpg(torchrun.pid, signal.SIGKILL)
    assert first.startswith("importing" if when == "while it imports" else "rank 0 of 2: ")
    assert "error: rank 0 of 2: torchrun, which started this process, is gone" in said
    assert not (tmp_path / "run").exists()


OTHERS = {
    "options": (
        ["--lr", "0.5", "--set", "train.clip=7.0"],
        "here train.lr is 0.5 and not 0.01; train.clip is 7.0 and not 1.0",
    ),
    "text": (["--set", "data.train=other"], "here training text is "),
}


@pytest.mark.usefixtures("starts_warm")
@pytest.mark.parametrize("case", OTHERS)
def test_processes_that_are_not_started_alike_do_not_train(
    case: str, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more, told = OTHERS[case]
    monkeypatch.chdir(tmp_path)
    for side in ("en", "de"):
        lines = Path(config).with_name(f"train.{side}").read_text(encoding="utf-8").splitlines()
        Path(f"other.{side}").write_text("\n".join([*lines[1:], lines[0]]) + "\n", encoding="utf-8")
    variables = {**os.environ, **TWO, "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", STARTS, config, "--run-dir", str(tmp_path / "run"), "--device", "cpu"]
    ranks = [
        subprocess.Popen(
            [*command, *more * rank], env={**variables, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    said = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert "error: not all processes are started as rank 0 is" in said[0]
    assert f"error: rank 1 of 2 is not started as rank 0 is: {told}" in said[1]
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.fixture
def store() -> Any:
    return torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@contextmanager
def answering(store: Any, wait: Wait) -> Iterator[list[str]]:
    """Another process at the roll call, as a thread; how it ended."""
    ended: list[str] = []

    def answer() -> None:
        try:
            call_the_roll(store, wait)
            ended.append("met")
        except (CalledOff, NotMet) as error:
            ended.append(str(error))

    thread = threading.Thread(target=answer)
    thread.start()
    yield ended
    thread.join(30)
    assert not thread.is_alive()


def test_a_roll_call_ends_when_the_last_has_come(store: Any) -> None:
    with answering(store, Wait(0, 3)) as first, answering(store, Wait(2, 3)) as last:
        time.sleep(0.3)
        assert (first, last) == ([], [])
        call_the_roll(store, Wait(1, 3))
    assert (first, last) == (["met"], ["met"])


def test_a_signal_that_comes_when_all_are_there_is_too_late(store: Any) -> None:
    rolls = [Roll(store, rank, 2) for rank in (0, 1)]
    assert [roll.look() for roll in rolls] == ["", ""]
    assert rolls[0].look() == meeting.ALL
    assert rolls[1].decide("SIGTERM") == rolls[1].look() == meeting.ALL


@pytest.mark.parametrize("size", [1, 2])
def test_what_a_smaller_meeting_left_is_nobody_s(size: int, store: Any) -> None:
    """The answer of one more is free in its call, but nobody sees it there."""
    gone = [Roll(store, rank, size) for rank in range(size)]
    assert [roll.look() for roll in [*gone, gone[0]]][-1] == meeting.ALL
    last = Roll(store, size, size + 1)
    assert (last.look(), last.look()) == ("", "")
    others = [Roll(store, rank, size + 1) for rank in range(size)]
    assert "".join(roll.look() for roll in [*others, last]) == ""
    assert [roll.look() for roll in [*others, last]] == [meeting.ALL] * (size + 1)
    assert len({roll.name for roll in [*others, last, gone[0]]}) == 2


def test_a_job_is_all_torchruns_that_start_its_processes(store: Any) -> None:
    rolls = [Roll(store, rank, 3, agent) for rank, agent in enumerate(["b 1 2", "", "a 7 8"])]
    assert "".join(roll.look() for roll in rolls) == ""
    assert rolls[0].look() == meeting.ALL
    assert rolls[0].job == "a 7 8\nb 1 2"


def test_whom_a_torchrun_that_was_killed_has_left_is_not_taken_for_a_rank(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another machine rank 0 cannot know."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("GROUP_RANK", "0")
    first, stray, real = Roll(store, 0, 3, "new"), Roll(store, 1, 3, "old"), Roll(store, 1, 3, "new")
    monkeypatch.setenv("GROUP_RANK", "1")
    last = Roll(store, 2, 3, "its own")
    everyone = [first, stray, real, last, first, real]
    assert "".join(roll.look() for roll in everyone) == ""
    assert [roll.look() for roll in (first, real, last, stray)] == [meeting.ALL] * 3 + [""]
    assert first.job == "its own\nnew"


def test_who_comes_while_rank_0_leaves_finds_the_word(store: Any) -> None:
    first, one = Roll(store, 0, 3), Roll(store, 1, 3)
    assert (first.look(), one.look(), first.look()) == ("", "", "")
    leaving = threading.Thread(target=first.leave, args=("SIGTERM to rank 0",))
    leaving.start()
    with answering(store, Wait(2, 3)) as late:
        pass
    assert late == ["SIGTERM to rank 0"]
    one.leave(one.look())
    leaving.join(30)
    assert not leaving.is_alive()


def test_connecting_that_lasts_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    wait = Wait(0, 2, longest=meeting.timedelta(seconds=0.3))
    with pytest.raises(NotMet, match="rank 0 of 2: not connected, for 0 minutes"):
        wait.once(lambda: over.wait(30), "not connected")
    over.set()


@pytest.mark.parametrize("before", [meeting.ALL, meeting.FAILED, ""])
def test_what_an_earlier_meeting_left_in_the_store_is_nobody_s(
    before: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun keeps its store for new attempts and, with a machine less or more, for the same attempt."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    gone = [Roll(store, rank, 2) for rank in (0, 1)]
    assert [roll.look() for roll in gone] == ["", ""]
    if before:
        gone[0].decide(before)
    last = Roll(store, 1, 2)
    assert (last.look(), last.missing()) == ("", "another process has answered as rank 1")
    first = Roll(store, 0, 2)
    assert (first.look(), last.look()) == ("", "")
    assert first.look() == last.look() == meeting.ALL
    assert first.name == last.name != gone[0].name


def test_processes_of_another_size_do_not_meet(store: Any) -> None:
    with (
        answering(store, Wait(1, 3)) as other,
        pytest.raises(NotMet, match="WORLD_SIZE is 2 for rank 0, and 3 for rank 1"),
    ):
        call_the_roll(store, Wait(0, 2))
    assert "WORLD_SIZE is 2" in other[0]


def test_two_processes_of_one_rank_do_not_meet(store: Any) -> None:
    one, another = answering(store, Wait(1, 3)), answering(store, Wait(1, 3))
    with answering(store, Wait(0, 3)) as first, one as one, another as another:
        time.sleep(0.5)
        (refused,) = (ended for ended in (one, another) if ended)
        call_the_roll(store, Wait(2, 3))
    assert "another process is rank 1 of 3" in refused[0]
    assert sorted([*first, *one, *another])[1:] == ["met", "met"]


class Silent:
    """A store on a machine that stands still."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return self._wait

    def _wait(self, *_: object) -> None:
        self.over.wait(30)
        raise RuntimeError("it is gone")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_store_that_is_silent_does_not_keep_a_process_from_ending(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meeting, "NOTE", 0.0)
    monkeypatch.setattr(meeting, "LEAVING", 0.2)
    told, silent = iter([""] * 3 + ["SIGTERM"] * 100), Silent()
    with pytest.raises(CalledOff, match="SIGTERM to rank"):
        call_the_roll(silent, Wait(rank, 2, heard=lambda: next(told)))
    silent.over.set()
    assert "the store of rank 0 or torchrun does not answer; waiting" in capsys.readouterr().err


def test_rank_0_that_ends_stays_until_the_others_know(store: Any) -> None:
    told = threading.Event()
    first = answering(store, Wait(0, 3, heard=lambda: "SIGTERM" * told.is_set()))
    with answering(store, Wait(1, 3)) as other, first as ended:
        time.sleep(0.5)
        told.set()
    assert other == ended
    assert "SIGTERM to rank 0 of 3" in ended[0]


def test_who_is_told_to_end_leaves_word_for_those_that_wait(store: Any) -> None:
    told = iter([""] * 3 + ["SIGTERM"] * 100)
    with (
        answering(store, Wait(0, 4)) as first,
        answering(store, Wait(2, 4)) as other,
        pytest.raises(CalledOff, match="SIGTERM to rank 1 of 4"),
    ):
        call_the_roll(store, Wait(1, 4, heard=lambda: next(told)))
    assert "SIGTERM to rank 1 of 4 before all had come" in first[0]
    assert first == other


def test_under_torchrun_a_process_ends_for_itself_since_it_may_be_started_anew_in_the_same_store(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(CalledOff, match="SIGTERM to rank 1 of 2"):
        call_the_roll(store, Wait(1, 2, heard=lambda: "SIGTERM"))
    monkeypatch.setattr(meeting, "LONGEST_START", meeting.timedelta(0))
    with pytest.raises(NotMet):
        call_the_roll(store, Wait(1, 2))
    monkeypatch.undo()
    with answering(store, Wait(1, 2)) as other:
        call_the_roll(store, Wait(0, 2))
    assert other == ["met"]


def test_a_process_that_is_interrupted_leaves_word(store: Any) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    with answering(store, Wait(0, 3)) as first, pytest.raises(KeyboardInterrupt):
        call_the_roll(store, Wait(1, 3, heard=interrupted))
    assert "a signal to rank 1 of 3" in first[0]


def test_a_wait_is_told_of_ever_more_rarely_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Any
) -> None:
    now = [0.0]
    monkeypatch.setattr(meeting.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(meeting.time, "sleep", lambda _: now.__setitem__(0, now[0] + 1.0))
    with pytest.raises(NotMet, match="these ranks have not come: 1, 2, 3, for 30 minutes"):
        call_the_roll(store, Wait(0, 4))
    assert capsys.readouterr().err.count("have not come: 1, 2, 3; waiting\n") == 4  # 5 s, 30 s, 3, 18 min
    with pytest.raises(NotMet, match=r"rank 1 of 4: .* for 30 minutes"):
        call_the_roll(store, Wait(1, 4))


def test_somebody_who_listens_and_never_answers_is_not_waited_for_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meeting, "NOTE", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        told = iter([""] * 10 + ["SIGTERM"] * 100)
        with pytest.raises(CalledOff, match="SIGTERM to rank 1 of 2"):
            meet({**TWO, "RANK": "1", "MASTER_PORT": port}, Wait(1, 2, heard=lambda: next(told)))
    said = capsys.readouterr().err
    assert (
        f"rank 1 of 2: who listens at MASTER_ADDR=127.0.0.1 MASTER_PORT={port} says nothing; waiting" in said
    )


def test_an_address_that_is_taken_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        variables = {**TWO, "RANK": "0", "MASTER_PORT": str(taken.getsockname()[1])}
        with pytest.raises(NotMet, match=r"rank 0 of 2: MASTER_ADDR=127.0.0.1 .*a port that is free there"):
            meet(variables, Wait(0, 2))
