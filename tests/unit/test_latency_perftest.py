"""perftest: what it is told, what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeClock
from support.perftest import NO_DEVICE, output

from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.latency.settings import LatencySettings, Rdma
from gpuhost_exporter.sources.latency import perftest
from gpuhost_exporter.sources.latency.results import Results, Round, Skipped
from gpuhost_exporter.sources.latency.trials import Trials
from gpuhost_exporter.verify.wire import parse_perftest

RDMA = Rdma("mlx5_0", gid_index=3)
RECORDED = Path(__file__).parents[1] / "support" / "recorded" / "ib_write_lat-unsorted.txt"


def test_the_client_is_told_the_server_and_both_the_same_of_the_rest():
    server = perftest.command(RDMA, 45, None)
    assert " ".join(server) == "ib_write_lat -d mlx5_0 -i 1 -p 18515 -n 46 -s 8 -x 3 -F -U"
    assert perftest.command(RDMA, 45, "10.0.0.2") == [*server, "10.0.0.2"]
    assert perftest.command(Rdma("efa0", program="ib_send_lat"), 45, None)[0] == "ib_send_lat"


def test_a_round_trip_is_twice_what_perftest_prints():
    assert perftest.parse(output([9.5, 1.05, 0.98, 1e-05]), warm_up=1) == pytest.approx((2.1e-6, 1.96e-6, 2e-11))


def test_what_perftest_really_printed_is_read_and_agrees_with_its_own_table():
    """Of Debian 12 over soft-RoCE, told -n 45 (tests/vm/test_rdma.py)."""
    text = RECORDED.read_text()
    seconds = perftest.parse(text, warm_up=0)
    halves = [1e6 * value / 2 for value in seconds]
    assert len(seconds) == 44
    assert halves[:2] == pytest.approx([779.507, 135.638])
    for column, told in (("t_min", min(halves)), ("t_typical", statistics.median(halves))):
        assert told == pytest.approx(parse_perftest(text, column), rel=0.01)
    assert perftest.parse(text, warm_up=5) == seconds[5:]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected a list headed '#, usec', got ''"),
        (NO_DEVICE, "got 'Unable to find the Infiniband/RoCE device'"),
        (output([1.0, 2.0]), "expected more than 5 latencies above 0, got 2"),
        (output([1.0, 0.0, 2.0, 2.0, 2.0, 2.0]), "above 0"),
        (output([1.0] * 9).replace("usec\n1,", "cycles\n1,"), "expected a list headed"),
    ],
    ids=["nothing", "no device", "too few", "zero", "cycles"],
)
def test_what_is_no_result_says_what_perftest_said(text, complaint):
    with pytest.raises(Malformed, match=complaint.replace("(", r"\(")):
        perftest.parse(text, warm_up=5)


@given(
    st.text() | st.text().map(lambda text: f"#, usec\n{text}") | st.binary().map(lambda data: data.decode("latin-1"))
)
def test_no_output_raises_anything_but_malformed(text):
    with contextlib.suppress(Malformed):
        assert all(0 < seconds < 1e5 for seconds in perftest.parse(text, warm_up=0))


def ended(program):
    while select.select([program], [], [], 10)[0] and program.read():
        pass
    return program.end()


def test_a_program_tells_its_output_and_status():
    assert ended(perftest.Program(["sh", "-c", "echo out; echo err >&2; exit 3"])) == (3, "out\nerr\n")


def test_a_program_that_does_not_exist_is_an_exit_status():
    status, text = ended(perftest.Program(["no-such-program"]))
    assert status == 127
    assert "no-such-program" in text


def test_a_program_that_prints_without_end_costs_bounded_memory_and_can_be_stopped():
    program = perftest.Program(["yes"])
    for _ in range(100):
        select.select([program], [], [], 10)
        program.read()
    program.stop()
    status, text = ended(program)
    assert status != 0
    assert len(text) <= 512 << 10


def test_a_program_that_hangs_is_killed_without_the_exporters_help(monkeypatch):
    monkeypatch.setattr(perftest, "RUN_SECONDS", 1)
    assert ended(perftest.Program(["sleep", "60"]))[0] in (-9, 137)


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """Trials with an ib_write_lat of the test's own: `write(script)`."""
    results = Results()
    hosts = {"a": ("127.0.0.1", 1), "b": ("127.0.0.2", 2)}
    settings = LatencySettings("a", ("127.0.0.1", 1), "key", hosts, messages=10, rdma=RDMA)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(script):
        file = tmp_path / "ib_write_lat"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    made = Trials(settings, results, FakeClock())
    made.write, made.results = write, results
    yield made
    made.stop()


def until_ended(trials):
    for _ in range(1000):
        roles = list(trials.read(select.select(trials.running(), [], [], 5)[0]))
        if roles:
            return roles
    raise AssertionError("it did not end")


def test_a_clients_result_is_a_round_of_rdma_without_its_warm_up(trials, tmp_path):
    (tmp_path / "text").write_text(output([50.0] * 5 + [1.5] * 10))
    trials.write(f'echo "$@" > {tmp_path}/told; cat {tmp_path}/text')
    assert trials.start("client", "b")
    assert until_ended(trials) == ["client"]
    assert trials.results.take() == (Round("b", "rdma", (pytest.approx(3e-6),) * 10, 0, 0, 1000.0),)
    assert (tmp_path / "told").read_text().split()[-1] == "127.0.0.2"


def test_a_server_needs_no_result(trials):
    trials.write("exit 0")
    assert trials.start("server", "b")
    assert until_ended(trials) == ["server"]
    assert trials.results.take() == ()


def test_a_client_whose_server_is_not_there_yet_tries_again_and_then_gives_up(trials, tmp_path):
    trials.write(f'echo x >> {tmp_path}/tries; echo "Couldn\'t connect to 127.0.0.2:18515"; exit 1')
    trials.start("client", "b")
    roles = []
    while not roles:
        roles = list(trials.read(select.select(trials.running(), [], [], 0.05)[0]))
        trials._clock.time += 0.2
        trials.begin_due()
    tries = len((tmp_path / "tries").read_text().split())
    assert 3 <= tries <= 12
    [skipped] = trials.results.take()
    assert skipped == Skipped("b", "rdma", "failed", skipped.why)
    assert "Couldn't connect to 127.0.0.2:18515" in skipped.why


@pytest.mark.parametrize(("role", "rdma"), [("server", RDMA), ("server", None)], ids=["a second", "not configured"])
def test_what_the_prober_should_not_ask_for_is_refused(trials, role, rdma):
    trials.write("sleep 5")
    if rdma:
        trials.start(role, "b")
    else:
        trials._settings = LatencySettings("a", ("127.0.0.1", 1), "key", trials._settings.hosts)
    with pytest.raises(Malformed):
        trials.start(role, "b")
