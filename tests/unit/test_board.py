"""The board: whole readings, for as long as what their collector publishes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.fakes import Scripted
from support.gpus import NOW, FakeNvml, host_of

from gpuhost_exporter.board import Board
from gpuhost_exporter.config import CollectorSettings
from gpuhost_exporter.runner import Task


def test_a_post_takes_the_place_of_the_one_before_and_other_subjects_keep_theirs():
    board = Board()
    board.post("drives", (1,), NOW)
    board.post("ports", (7,), NOW)
    board.post("drives", (2,), NOW)
    assert (board.last("drives", tuple, NOW), board.last("ports", tuple, NOW)) == ((2,), (7,))


def test_the_last_few_are_kept_of_activity_alone():
    board = Board()
    for number in range(6):
        board.post("activity", (number,), NOW)
        board.post("links", (number,), NOW)
    assert board.recent("activity", tuple, NOW) == ((2,), (3,), (4,), (5,))
    assert board.recent("links", tuple, NOW) == ((5,),)


def test_what_is_not_there_is_of_another_kind_or_too_old_is_no_reading():
    board = Board()
    board.post("drives", (1,), NOW)
    assert board.last("ports", tuple, NOW) is None
    assert board.last("drives", dict, NOW) is None
    assert board.last("drives", tuple, NOW + 0.1) is None


@pytest.mark.parametrize(
    ("interval", "configured", "seconds"),
    [(1.0, None, 30), (10.0, None, 30), (15.0, None, 45), (1.0, 60.0, 180), (60.0, 1.0, 30)],
)
def test_a_reading_lasts_as_long_as_a_snapshot_of_the_collector_that_posted_it(interval, configured, seconds):
    host = host_of(FakeNvml())
    if configured:
        host.settings = replace(host.settings, collectors={"scripted": CollectorSettings(interval=configured)})
    collector = Scripted(lambda: ())
    collector.host, collector.interval = host, interval
    collector.post("drives", (1,))
    task = Task(collector, configured or interval, host.clock)
    task.poll()
    for age, fresh in ((0, True), (seconds, True), (seconds + 0.5, False)):
        assert (task.fresh(NOW + age) is not None) == (host.board.last("drives", tuple, NOW + age) is not None) == fresh
