"""Hourly buckets in the state directory, and what `report` makes of them."""

from __future__ import annotations

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeClock
from support.gpus import gpu

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.ledger import hours
from gpuhost_exporter.ledger.cost import per_gpu, together
from gpuhost_exporter.report import report
from gpuhost_exporter.sources.state import VERSION, State

NOON = 1_760_011_200.0  # 2025-10-09 12:00 UTC


def book(folder, wall, account, seconds, index=3, price=3.0):
    state = State(str(folder))
    collected = hours.Hours(state)
    collected.add(wall, f"GPU-{index}", account, seconds)
    collected.save(wall, (gpu(index),), {f"GPU-{index}": price})
    state.flush()
    return state


@pytest.fixture
def clock():
    clock = FakeClock()
    clock.time = NOON + 1800
    return clock


def test_what_several_runs_booked_adds_up_by_hour(tmp_path):
    book(tmp_path, NOON + 1, "compute", 10.5)
    book(tmp_path, NOON + 3599, "compute", 1.5)
    state = book(tmp_path, NOON + 3600, "checkpoint", 7.0)
    found = list(hours.buckets(state, NOON, NOON + 7200))
    assert [(bucket.start, dict(bucket.seconds)) for bucket in found] == [
        (NOON, {"compute": 12.0}),
        (NOON + 3600, {"checkpoint": 7.0}),
    ]


def test_hours_outside_of_the_time_asked_for_are_left_out(tmp_path):
    for hour in (-25, -2, -1, 0, 1):
        state = book(tmp_path, NOON + 3600 * hour, "compute", 1.0)
    found = [bucket.start for bucket in hours.buckets(state, NOON - 3600, NOON + 1)]
    assert found == [NOON - 3600, NOON]


def test_the_newest_days_are_kept_and_older_ones_removed(tmp_path):
    (tmp_path / "inventory.json").write_text("{}")
    for day in range(hours.DAYS_KEPT + 3):
        book(tmp_path, NOON + 86400 * day, "compute", 1.0)
    files = sorted(path.name for path in tmp_path.glob("ledger-*.json"))
    assert len(files) == hours.DAYS_KEPT
    assert files[0] == "ledger-2025-10-12.json"
    assert (tmp_path / "inventory.json").exists()


def test_when_something_was_last_booked(tmp_path):
    assert hours.last_booked(State(str(tmp_path / "none"))) is None
    book(tmp_path, NOON, "compute", 1.0)
    state = book(tmp_path, NOON + 86400, "compute", 1.0)
    assert hours.last_booked(state) == NOON + 86400


def test_the_last_day_is_in_memory_with_what_earlier_runs_booked(tmp_path):
    book(tmp_path, NOON - 30 * 3600, "data", 7.0)
    state = book(tmp_path, NOON - 3600, "data", 10.0)
    collected = hours.Hours(state)
    collected.load(NOON)
    collected.add(NOON - 5, "GPU-3", "data", 2.0)
    collected.add(NOON + 5, "GPU-3", "checkpoint", 4.0)

    def day(wall):
        (spent,) = per_gpu(collected.day(wall, (gpu(3),), {"GPU-3": 3600.0}))
        return spent.most, spent.seconds

    assert day(NOON + 5) == (("data", 12.0, 12.0), {"data": 12.0, "checkpoint": 4.0})
    assert day(NOON + 25 * 3600 - 1)[1] == {"checkpoint": 4.0}, "hours that are over for a day are left out"
    assert list(collected.day(NOON + 25 * 3600, (gpu(3),), {"GPU-3": 1.0})) == []


def test_a_disk_that_takes_nothing_for_long_costs_one_change_a_day_and_nothing_counted(tmp_path):
    (tmp_path / "state").write_text("a file in the folder's place")
    state = State(str(tmp_path / "state"))
    collected = hours.Hours(state)
    for minute in range(-90, 90):
        collected.add(NOON + 12 * 3600 + 60 * minute, "GPU-3", "data", 7.0)
        collected.save(NOON + 12 * 3600 + 60 * minute, (gpu(3),), {"GPU-3": 3.0})
        state.flush()
    assert not state.writable
    assert [len(subject.changes) for subject in state._subjects.values()] == [1, 1]
    (tmp_path / "state").unlink()
    state.flush()
    collected.save(NOON + 14 * 3600, (gpu(3),), {"GPU-3": 3.0})
    state.flush()
    found = hours.buckets(State(str(tmp_path / "state")), NOON, NOON + 86400)
    assert sum(bucket.seconds["data"] for bucket in found) == 180 * 7.0


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["12", "GPU-3", "compute", "x"]), inner)
    ),
)


@given(JSON, JSON)
def test_a_file_of_anything_is_read_as_far_as_it_makes_sense(tmp_path_factory, gpus, by_hour):
    folder = tmp_path_factory.mktemp("state")
    (folder / "ledger-2025-10-09.json").write_text(
        json.dumps({"version": VERSION, "data": {"gpus": gpus, "hours": by_hour}})
    )
    state = State(str(folder))
    assert all(value > 0 for bucket in hours.buckets(state, 0, NOON * 2) for value in bucket.seconds.values())
    assert hours.last_booked(state) is None


def test_the_page_says_who_lost_what_and_what_it_cost(tmp_path, clock, capsys):
    book(tmp_path, NOON - 3600, "checkpoint", 2460.0)
    book(tmp_path, NOON - 3600, "compute", 1140.0)
    state = book(tmp_path, NOON - 3600, "compute", 3600.0, index=4)
    assert report(state, clock, 86400, as_json=False) == 0
    page = capsys.readouterr().out
    assert "GPU 3 lost 41 min to checkpoint, $2.05" in page
    assert "GPU 4 lost" not in page


def test_the_document_has_every_account_in_seconds_and_dollars(tmp_path, clock, capsys):
    book(tmp_path, NOON, "checkpoint", 600.0)
    state = book(tmp_path, NOON, "compute", 1200.0, price=6.0)
    assert report(state, clock, 3600, as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    (spent,) = document["gpus"]
    assert (spent["gpu"], spent["uuid"]) == ("3", "GPU-3")
    assert spent["seconds"] == {"checkpoint": 600, "compute": 1200}
    assert spent["dollars"] == {"checkpoint": 1.0, "compute": 2.0}, "at the price that was last set in that hour"
    assert (spent["lost_seconds"], spent["lost_dollars"]) == (600, 1.0)
    assert document["all"]["seconds"] == spent["seconds"]


def test_the_time_that_is_told_begins_with_the_hour_that_is_counted(tmp_path, clock, capsys):
    state = book(tmp_path, NOON - 3599, "compute", 3600.0)
    assert report(state, clock, 3600, as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["since"], document["until"]) == (NOON - 3600, NOON + 1800)
    assert document["all"]["booked_seconds"] == 3600


def dollars(state):
    return together(per_gpu(hours.buckets(state, 0, NOON * 2))).dollars


def test_a_new_price_is_none_of_the_hours_before(tmp_path):
    book(tmp_path, NOON - 3600, "checkpoint", 3600.0)
    state = book(tmp_path, NOON, "data", 3600.0, price=4.0)
    assert dollars(state) == {"checkpoint": 3.0, "data": 4.0}


def test_a_file_with_one_price_for_its_day_is_read_and_added_to(tmp_path):
    data = {
        "gpus": {"GPU-3": {"index": 3, "name": "NVIDIA H100", "price": 2.0}},
        "hours": {"11": {"GPU-3": {"checkpoint": 3600.0}}},
    }
    (tmp_path / "ledger-2025-10-09.json").write_text(json.dumps({"version": VERSION, "data": data}))
    assert dollars(State(str(tmp_path))) == {"checkpoint": 2.0}
    assert dollars(book(tmp_path, NOON, "data", 3600.0)) == {"checkpoint": 2.0, "data": 3.0}


def test_a_gpu_that_has_gone_is_booked_with_what_was_known_of_it(tmp_path):
    state = State(str(tmp_path))
    collected = hours.Hours(state)
    collected.save(NOON, (gpu(3),), {"GPU-3": 3.0})
    collected.add(NOON + 86400, "GPU-3", "lost", 3600.0)
    collected.save(NOON + 86400, (), {})
    assert dollars(state) == {"lost": 3.0}


@pytest.mark.parametrize("asked", ["listdir", "open"], ids=["the folder", "a file"])
@pytest.mark.parametrize("as_json", [False, True], ids=["page", "document"])
def test_what_may_not_be_read_is_not_called_nothing(tmp_path, clock, capsys, monkeypatch, asked, as_json):
    book(tmp_path, NOON, "data", 1.0)
    real = getattr(os, asked)

    def deny(path, *more):
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *more)

    monkeypatch.setattr(os, asked, deny)
    with pytest.raises(ConfigError, match=rf"^--storage.path: {tmp_path}.*: Permission denied$"):
        report(State(str(tmp_path)), clock, 86400, as_json=as_json)
    assert capsys.readouterr().out == ""


def test_nothing_booked_is_said_and_is_a_failure(tmp_path, clock, capsys):
    assert report(State(str(tmp_path)), clock, 86400, as_json=False) == 1
    assert "nothing was booked" in capsys.readouterr().out


def test_work_and_an_empty_gpu_are_no_losses(tmp_path):
    for account in ("compute", "busy", "communication", "unallocated"):
        state = book(tmp_path, NOON, account, 100.0)
    state = book(tmp_path, NOON, "data", 50.0)
    spent = together(per_gpu(hours.buckets(state, 0, NOON * 2)))
    assert spent.booked == 450
    assert spent.losses == ("data",)
    assert spent.lost == 50
