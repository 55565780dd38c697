"""Owners of processes, from a tree that stands for /proc; and the handle on what the privileged reader finds."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeClock
from support.gpus import FakeNvml, host_of

from gpuhost_exporter.collectors.ledger import LedgerCollector
from gpuhost_exporter.sources.evidence import Evidence, HostIo, ProcessSample
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.processes import Processes, owners


def process_of_another_user(path):
    """A folder that somebody else owns: given away by root, borrowed from root by others."""
    if os.getuid() == 0:
        path.mkdir()
        os.chown(path, 4711, -1)
        return 4711
    path.symlink_to("/")
    return 0


def test_owners_are_distinct_and_what_is_gone_is_left_out(tmp_path):
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "1").mkdir()
    (proc / "2").mkdir()
    other = process_of_another_user(proc / "3")
    root = Root.below(str(tmp_path))
    assert owners(root, [1, 2]) == {os.getuid()}
    assert owners(root, [1, 3, 4]) == {os.getuid(), other}
    assert owners(root, [4]) == frozenset()
    assert owners(root, []) == frozenset()


def test_the_real_proc_says_who_owns_this_process():
    assert owners(Root(), [os.getpid()]) == {os.geteuid()}


@given(st.lists(st.integers()))
def test_any_process_id_is_answered(pids):
    assert owners(Root.below("/nonexistent"), pids) == frozenset()


# What the privileged reader answers


class Asked:
    """A reader that answers when the test says so."""

    def __init__(self):
        self.clock = FakeClock()
        self.processes = Processes(self.clock)
        self.requests = []
        self.there = True
        self.processes.connect(self.ask)

    def ask(self, request):
        self.requests.append(request)
        return self.there


def process(**told):
    return ProcessSample(*[None] * len(ProcessSample._fields))._replace(**told)


def window(at, *processes):
    return Evidence(at - 1, at, processes, (), (), (), HostIo(None, None, None), (), frozenset())


def test_each_window_is_handed_out_once_and_the_newest_stays():
    asked = Asked()
    asked.processes.follow({"GPU-0": {7}, "GPU-1": ()})
    assert asked.requests == [{"holding": {"GPU-0": [7], "GPU-1": []}}]
    asked.processes.put(window(5.0))
    asked.processes.put(window(6.0))
    assert [each.at for each in asked.processes.take()] == [5.0, 6.0]
    assert asked.processes.take() == ()
    assert asked.processes.last().at == 6.0


def test_nothing_is_asked_while_an_answer_is_due_and_a_slow_one_is_said_to_hang():
    asked = Asked()
    asked.processes.follow({})
    asked.processes.follow({})
    assert len(asked.requests) == 1
    asked.clock.time += 5
    assert asked.processes.state() == ("hung", "the privileged reader has been looking at processes for 5 s")
    asked.processes.put(window(5.0))
    assert asked.processes.state() == ("ok", "")
    asked.processes.follow({})
    assert len(asked.requests) == 2


def test_a_reader_that_is_not_there_is_asked_again_the_next_time():
    asked = Asked()
    asked.there = False
    asked.processes.follow({})
    asked.clock.time += 5
    assert asked.processes.state()[0] == "starting"
    asked.processes.follow({})
    assert len(asked.requests) == 2


def test_a_failure_is_told_until_the_next_window():
    asked = Asked()
    asked.processes.follow({})
    asked.processes.fail("unavailable", "the privileged reader ended: gone")
    assert asked.processes.state() == ("unavailable", "the privileged reader ended: gone")
    asked.processes.put(window(5.0))
    assert asked.processes.state() == ("ok", "")


def test_windows_that_nobody_takes_do_not_pile_up():
    asked = Asked()
    for at in range(100):
        asked.processes.put(window(float(at)))
    assert [each.at for each in asked.processes.take()] == [float(at) for at in range(84, 100)]


def test_denied_io_is_a_remark_that_makes_doctor_say_what_grants_it():
    host = host_of(FakeNvml())
    collector = LedgerCollector(host)
    assert collector.remarks() == ()
    host.processes.put(window(5.0, process(denied=True)))
    assert collector.remarks() == ("I/O of GPU processes: denied",)
    assert "CAP_SYS_PTRACE" in collector.privilege
    host.processes.put(window(6.0, process(denied=False)))
    assert collector.remarks() == ()
