"""The length of a training step, from readings a second apart; nothing where they do not show it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gpus import reading
from support.traces import START, Trace

from gpuhost_exporter.ledger.rhythm import WINDOW, Rhythm, period
from gpuhost_exporter.sources.nvml.readings import Activity


def steps(length, share, count=WINDOW, noise=0.02, seed=1):
    """Means over each second of tensor work that runs at 0.5 for a share of each step."""
    draw = random.Random(seed)

    def done(moment):
        whole, part = divmod(moment + 0.3, length)
        return 0.5 * (whole * share * length + min(part, share * length))

    return [max(0.0, done(at + 1) - done(at) + draw.gauss(0, noise)) for at in range(count)]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("length", [3.7, 5.5, 7.3, 10.0, 15.0, 24.6])
def test_a_step_with_a_pause_is_as_long_as_it_is(length, share):
    assert period(steps(length, share)) == pytest.approx(length, rel=0.01)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("length", [0.4, 0.9, 1.1, 1.3, 1.7, 1.9, 2.5])
def test_steps_too_fast_to_see_are_not_told(length, share):
    assert period(steps(length, share)) is None


@pytest.mark.parametrize(
    "values",
    [
        [],
        [0.5] * WINDOW,
        [0.0] * WINDOW,
        [0.4 + 0.05 * (at % 7) for at in range(WINDOW)],
        [random.Random(at).random() for at in range(WINDOW)],
        [at / WINDOW for at in range(WINDOW)],
        [float(at == 40) for at in range(WINDOW)],
        steps(60.0, 0.9),
    ],
    ids=["nothing", "steady", "idle", "no pause", "noise", "a ramp", "once", "fewer than three"],
)
def test_where_nothing_repeats_plainly_there_is_no_step(values):
    assert period(values) is None


@given(st.lists(st.floats(0, 1), max_size=WINDOW))
def test_any_readings_have_a_sane_step_or_none(values):
    found = period(values)
    assert found is None or 2 <= found <= WINDOW / 2


def test_two_jobs_on_a_host_have_a_step_each_and_one_that_pauses_has_none_any_more():
    rhythm, slow, fast = Rhythm(), steps(10.0, 0.6), steps(5.0, 0.6, seed=2)
    jobs = {"GPU-0": "a", "GPU-1": "a", "GPU-2": "b"}

    def told(at, **values):
        return [reading(Activity, uuid=uuid, since=at - 1, at=at, tensor_ratio=value) for uuid, value in values.items()]

    for second in range(WINDOW):
        at = 1000.0 + second
        now = told(at, **{"GPU-0": slow[second], "GPU-1": slow[second], "GPU-2": fast[second]})
        rhythm.tick(at, jobs, now)
        rhythm.tick(at + 0.5, jobs, now)
    assert rhythm.periods == {"a": pytest.approx(10, rel=0.01), "b": pytest.approx(5, rel=0.01)}
    rhythm.tick(1100.0, jobs, told(1100.0, **{"GPU-0": 0.5, "GPU-1": 0.5}))
    assert rhythm.periods == {}
    rhythm.tick(1101.0, {}, [])
    assert rhythm.periods == {}


@pytest.mark.parametrize("profiled", [True, False], ids=["by tensor work", "by NVLink"])
def test_a_job_that_waits_for_its_data_every_few_seconds_has_the_step_of_the_scenario(profiled):
    rhythm, trace = Rhythm(), Trace(("data-starved", 100), profiled=profiled)
    told = []
    trace.change = lambda seen: told.append(seen) or seen
    trace.run()
    for second, seen in enumerate(told):
        for _ in range(2):  # what is told again is not counted
            rhythm.tick(START + second, {gpu.uuid: "j" for gpu in trace.gpus}, seen.activities)
    assert rhythm.periods["j"] == pytest.approx(3.7, rel=0.01)
