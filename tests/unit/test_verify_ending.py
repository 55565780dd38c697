"""Signals: the first is the way out, and what is made or removed is made or removed whole."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from gpuhost_exporter.sources import tools
from gpuhost_exporter.verify import command
from gpuhost_exporter.verify.ending import Ending
from gpuhost_exporter.verify.measurement import Asked

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def restored():
    """The test's own handlers: after an interruption signals do nothing to the end of the process."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ask(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_interrupts_and_the_others_do_not_break_off_the_way_out(number):
    cleaned = []

    def work():
        with Ending():
            try:
                ask(number)
                pytest.fail("interrupted at once")
            finally:
                ask(*SIGNALS)
                cleaned.append("whole")

    with restored():
        with pytest.raises(KeyboardInterrupt):
            work()
        ask(*SIGNALS)
        cleaned.append("still here")
    assert cleaned == ["whole", "still here"]


def test_what_is_held_is_done_before_it_is_interrupted():
    done = []

    def work(ending):
        with ending:
            with ending.held():
                ask(signal.SIGTERM, signal.SIGINT)
                done.append("made")
            done.append("not reached")

    with restored(), pytest.raises(KeyboardInterrupt):
        work(Ending())
    assert done == ["made"]


def test_without_a_signal_handlers_are_as_before_and_what_nohup_starts_stays_so():
    with restored():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        before = [signal.getsignal(number) for number in SIGNALS]
        with Ending():
            ask(signal.SIGHUP)
        assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_clean_up_that_is_interrupted_is_done_again():
    tries = []

    def clean_up():
        tries.append(len(tries))
        if len(tries) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tools._whole(clean_up)
    assert tries == [0, 1]


class App:
    """Asked to end where the test says: while it is made, while it looks, while it is closed."""

    def __init__(self, during):
        self.during = during
        self.closed = 0
        self.made = False
        self.ask("making")
        self.made = True

    def ask(self, moment):
        if moment == self.during:
            ask(signal.SIGTERM, signal.SIGINT)

    def start(self):
        self.ask("looking")
        raise AssertionError("no look is taken in these tests")

    def close(self):
        assert self.made
        if self.during == "closing":
            ask(signal.SIGTERM)
        self.closed += 1


@pytest.mark.parametrize("moment", ["making", "looking"])
def test_a_simulated_hosts_folder_is_removed_whenever_the_signal_comes(monkeypatch, capsys, moment):
    made = []

    def app(*_, **__):
        made.append(App.__new__(App))
        made[0].__init__(moment)
        return made[0]

    monkeypatch.setattr(command, "App", app)
    options = command.Options("passive", Asked(), while_busy=False, new_baseline=False, as_json=True, junit=None)
    with restored(), pytest.raises(KeyboardInterrupt):
        command.verify(SimpleNamespace(), SimpleNamespace(), options)
    assert (made[0].made, made[0].closed) == (True, 1)
    told = capsys.readouterr()
    assert told.err == "interrupted: nothing is judged or kept, and nothing left behind\n"
    assert told.out == ""
