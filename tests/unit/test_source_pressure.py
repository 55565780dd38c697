"""Pressure stall information as the kernel gives it."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import fail_opening, plant

from gpuhost_exporter.errors import Absent, Denied, Malformed, Unsupported
from gpuhost_exporter.sources import pressure
from gpuhost_exporter.sources.pressure import Stall

SOME = "some avg10=0.05 avg60=0.02 avg300=0.06 total=2571168\n"
FULL = "full avg10=0.05 avg60=0.02 avg300=0.05 total=2401826\n"


@pytest.mark.parametrize(
    ("resource", "text", "stalls"),
    [
        ("io", SOME + FULL, (Stall("io", "some", 2.571168), Stall("io", "full", 2.401826))),
        ("irq", FULL, (Stall("irq", "full", 2.401826),)),
        ("cpu", SOME, (Stall("cpu", "some", 2.571168),)),
        ("cpu", SOME + FULL, (Stall("cpu", "some", 2.571168),)),
    ],
    ids=["both", "irq has full only", "cpu before 5.13", "cpu's full is a constant and left out"],
)
def test_totals_are_seconds(resource, text, stalls):
    assert pressure.parse_pressure(resource, text) == stalls


@pytest.mark.parametrize(
    "text",
    ["", "garbage", SOME + "full avg10=0.05", "some avg10=1 avg60=1 avg300=1 total=-1", "some total=5"],
    ids=["empty", "garbage", "torn", "negative", "without averages"],
)
def test_what_is_not_pressure_is_malformed(text):
    with pytest.raises(Malformed, match="expected"):
        pressure.parse_pressure("io", text)


@given(st.sampled_from(pressure.RESOURCES), st.text() | st.just(SOME + FULL))
def test_any_text_is_stalls_or_malformed(resource, text):
    try:
        stalls = pressure.parse_pressure(resource, text)
    except Malformed:
        return
    assert all(stall.seconds >= 0 for stall in stalls)


def test_only_resources_that_the_kernel_accounts_for_are_listed(tmp_path):
    root = plant(tmp_path, {f"proc/pressure/{name}": SOME for name in ("io", "cpu", "something")})
    assert pressure.resources(root) == ("cpu", "io")


def test_a_kernel_without_pressure_is_unsupported_and_says_what_to_do(tmp_path):
    with pytest.raises(Unsupported, match="psi=1"):
        pressure.resources(plant(tmp_path, {"proc/stat": ""}))


def test_without_proc_it_is_the_tree_that_is_absent(tmp_path):
    with pytest.raises(Absent):
        pressure.resources(plant(tmp_path, {}))


@pytest.mark.parametrize(("number", "error"), [(errno.EOPNOTSUPP, Unsupported), (errno.EACCES, Denied)])
def test_a_file_that_cannot_be_opened_says_why(tmp_path, monkeypatch, number, error):
    root = plant(tmp_path, {"proc/pressure/io": SOME})
    fail_opening(monkeypatch, "/pressure/io", number)
    with pytest.raises(error):
        pressure.read(root, "io")


def test_the_malformed_file_is_named(tmp_path):
    with pytest.raises(Malformed, match="/proc/pressure/io: expected"):
        pressure.read(plant(tmp_path, {"proc/pressure/io": "?"}), "io")
