"""benchmarks/network.py: arithmetic and tables; where hosts can be made, links, and that nothing stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import network
import network_hosts
import pytest
from network_faults import Ending, message
from network_hosts import Network, ip, missing, namespaces, remove_abandoned, until
from network_runs import Case, Found, delays, expected_bytes, expected_update, of_updates, probe, ring

needs_hosts = pytest.mark.skipif(bool(missing()), reason=missing())


def found(case: Case, **more: float) -> Found:
    values = {"round_trip": 0.0, "rate": 1e9, "update": 1.0, "sent": 8e6, "votes": 4.0, "voting": 0.1}
    return Found(case, 1_000_000, 800_000, 0.0, **{**values, "vote": 0.001, **more})


def test_the_bytes_of_an_update_are_those_of_a_ring() -> None:
    """Of 4 hosts each sends 3 of 4 parts twice; fsdp gathers 0.8 + 1.0 million parameters as well."""
    assert ring(4, 1_000_000) == 2 * 3 * 1_000_000
    assert expected_bytes(found(Case(4, "ddp"))) == 6_000_000
    assert expected_bytes(found(Case(4, "fsdp"))) == 6_000_000 + 3 * 1_800_000
    slow = found(Case(4, "ddp", 1e8), rate=1e8)
    assert expected_update(slow, found(Case(4, "ddp"))) == pytest.approx(1.0 + 0.48)


def test_a_vote_that_waits_for_six_delays_is_told_so() -> None:
    near = found(Case(4, "ddp"))
    far = found(Case(4, "ddp", 0.0, 0.01), round_trip=0.01, voting=0.22, vote=0.046)
    assert delays(far, near) == pytest.approx((6, 9))


def test_updates_are_counted_from_what_the_ranks_note_but_for_the_first_ones() -> None:
    """The bytes are the mean of the hosts', the times are the first rank's."""
    ends = [0.0, 9.0, 10.0, 11.0, 12.5, 13.0, 14.0]
    marks = [[[end, 100 * k * (1 + rank), 4 * k, 0.5 * k] for k, end in enumerate(ends)] for rank in (0, 1)]
    assert of_updates(marks) == {"update": 1.0, "sent": 150.0, "votes": 4.0, "voting": 0.5}


def test_the_page_has_a_row_of_each_case_and_the_plan_s_error() -> None:
    rows = [found(Case(2, "ddp")), found(Case(2, "ddp", 1e9), update=1.064)]
    votes = [
        found(Case(2, "ddp")),
        found(Case(2, "ddp", 0.0, 0.01), round_trip=0.01, vote=0.011, voting=0.14),
    ]
    ends = [Ending("cut", 0, 1.0, float("inf"), None, "a | b"), Ending("cut", 1, 2.0, 3.0, 1, "")]
    made = {"command": "python benchmarks/network.py", "commit": "c", "date": "d"}
    parts = {"updates": rows, "votes": votes, "faults": ends}
    kept = {part: {"rows": [network.asdict(each) for each in found], **made} for part, found in parts.items()}
    text = network.page(kept)
    assert text.count("    python benchmarks/network.py\n") == 1
    assert "| 2 | ddp | 1,000 Mb/s | 1,000 Mb/s | 0e+00 | 8.00 | 4.00 | 2.00 | 1.064 | 1.032 | -3 % |" in text
    assert "| 2 | ddp | 10 | 10.00 | 4.0 | 1.000 | 0.140 | 2.0 | 2 | 11.00 | 2.0 |" in text
    assert "| cut | host 0 | 1.0 | not within the limit |  | a \\| b |" in text
    assert len(text.splitlines()[0]) < 80


def test_only_what_a_rank_says_of_itself_is_its_message() -> None:
    said = "E1121 torch: failed\n[rank1]: error: rank 1 of 2: speaking failed ([/b/p/pair.cc:5] Read"
    assert message(f"{said}. This is typically\nTraceback") == "rank 1 of 2: speaking failed (pair.cc:5: Read"
    assert message("Traceback") == ""


def test_who_may_not_make_hosts_is_told_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network_hosts.sys, "platform", "linux")
    monkeypatch.setattr(network_hosts.os, "geteuid", lambda: 1000)
    assert network.main([]) == 2
    assert "need root" in capsys.readouterr().err
    monkeypatch.setattr(network_hosts.os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    assert network.main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: ip is not installed: apt-get install iproute2"]


@needs_hosts
def test_a_link_is_as_slow_as_asked_and_can_be_cut() -> None:
    with Network(2, rate=1e8) as hosts:
        assert 0.5e8 < probe(hosts)["rate"] < 1.2e8
        hosts.cut(1)
        state = ip("-n", hosts.host(1), "link", "show", "eth0")
        assert "NO-CARRIER" in state
    assert not [each for each in namespaces() if each.startswith(hosts.name)]


@needs_hosts
@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="there are no TAP devices")
def test_a_link_is_as_far_as_asked() -> None:
    with Network(2, delay=0.02) as hosts:
        assert 0.02 < probe(hosts, 10_000)["round_trip"] < 0.2
    assert not [each for each in namespaces() if each.startswith(hosts.name)]


@needs_hosts
def test_nothing_stays_after_an_error_or_of_a_program_that_was_killed() -> None:
    hosts = Network(2)

    def fail() -> None:
        with hosts:
            sleepers.append(subprocess.Popen(hosts.command(1, ["sleep", "60"])))
            raise ZeroDivisionError

    sleepers: list[subprocess.Popen[bytes]] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    assert sleepers[0].wait(5) == -signal.SIGKILL
    gone = subprocess.Popen(["true"])
    gone.wait()
    ip("netns", "add", f"{network_hosts.PREFIX}-{gone.pid}-0")
    remove_abandoned()
    assert not [name for name in namespaces() if f"-{gone.pid}-" in name or name.startswith(hosts.name)]


@needs_hosts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_nothing_left(number: signal.Signals, tmp_path: Path) -> None:
    script = Path(network.__file__)
    command = [sys.executable, str(script), "--part", "faults", "--fault", "rank"]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1]), "TMPDIR": str(tmp_path)}
    running = subprocess.Popen(command, env=environment, preexec_fn=_default_signals)
    own = f"{network_hosts.PREFIX}-{running.pid}-"
    assert until(lambda: f"{own}switch" in namespaces(), 30) < 30
    running.send_signal(number)
    assert running.wait(30) == 130
    assert not [each for each in namespaces() if each.startswith(own)]
    assert list(tmp_path.iterdir()) == []


def _default_signals() -> None:
    """Where the suite runs in the background, Ctrl-C is ignored, and stays so in what it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@needs_hosts
@pytest.mark.slow
def test_a_training_between_hosts_makes_the_updates_of_one_process(tmp_path: Path) -> None:
    page, kept = tmp_path / "page.md", tmp_path / "kept.json"
    size = ["--hosts", "2", "--updates", "6", "--votes", "5", "--rates", "100", "--delays", "20"]
    assert network.main(["--part", "updates", "votes", *size, "--json", str(kept), "--write", str(page)]) == 0
    rows = json.loads(kept.read_text())
    for each in network.found_in(rows["updates"]["rows"]):
        assert each.difference < network.TOLERANCE
        assert each.sent == pytest.approx(expected_bytes(each), rel=0.02)
    near, far = network.found_in(rows["votes"]["rows"])[:2]
    assert min(delays(far, near)) > 1.5
    assert page.read_text().count("\n| 2 | ") == 8
    command = ["--part", "faults", "--fault", "rank", "--json", str(kept)]
    assert network.main(command) == 0
    ends = json.loads(kept.read_text())["faults"]["rows"]
    assert [end["code"] for end in ends] == [1, 1]
    assert "rank 0 of 2" in ends[0]["message"]
