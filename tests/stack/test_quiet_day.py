"""A day of a host that trains as it should, and of one that does nothing: no alert fires when that day is replayed."""

from __future__ import annotations

import shutil

import pytest
from support.days import DAY, EVERY, PROGRAMS, Days, stack
from support.rules import RULE_FILES

SCENARIOS = ("steady", "idle")
# Of a host that is broken: shows that a replay does fire.
BROKEN = "gpu-lost"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not all(shutil.which(name) for name in PROGRAMS),
        reason="a day is NOT replayed: apt-get install victoria-metrics",
    ),
]
_RECORDING = [file for file in RULE_FILES if "recording-host" in file]
_ALERTS = [file for file in RULE_FILES if "recording" not in file]


def replayed(folder, scenarios, seconds):
    processes = stack.Processes(folder)
    try:
        days = Days(processes, scenarios, seconds)
        days.replay(_RECORDING)
        days.replay(_ALERTS)
        yield days
    finally:
        processes.stop()


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    yield from replayed(tmp_path_factory.mktemp("day"), SCENARIOS, DAY)


@pytest.fixture(scope="module")
def hour(tmp_path_factory):
    yield from replayed(tmp_path_factory.mktemp("hour"), (BROKEN,), 3600)


def fired(days):
    found = days.ask('count by (instance, alertname) (last_over_time(ALERTS{alertstate="firing"}[2d]))')
    return {(each["metric"]["instance"], each["metric"]["alertname"]) for each in found}


def test_no_alert_fires(day):
    assert fired(day) == set()


def test_the_whole_day_was_there(day):
    told = {each["metric"]["instance"]: each["value"][1] for each in day.ask("count_over_time(up[2d])")}
    assert told == dict.fromkeys(SCENARIOS, str(DAY // EVERY))
    recorded = day.ask("count by (instance) (count_over_time(gpu:gpuhost_nvlink_usable:ratio[2d]) > 1000)")
    assert {each["metric"]["instance"]: each["value"][1] for each in recorded} == dict.fromkeys(SCENARIOS, "8")


def test_the_same_replay_of_a_lost_gpu_fires(hour):
    assert (BROKEN, "GpuhostGPULost") in fired(hour)
