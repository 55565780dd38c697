"""What is shown and said of storage that is asked for more than it gives."""

from __future__ import annotations

import pytest

from gpuhost_exporter.collectors import raid, storage
from gpuhost_exporter.demand import Demand, demand
from gpuhost_exporter.findings import find
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.saturation import LIMITS
from gpuhost_exporter.status import build
from gpuhost_exporter.table import demanded, render
from gpuhost_exporter.web.page import render as render_page

PUBLISHED = [
    raid.UP("md0"),
    *(storage.LIMITED("md0", by, value=900.0) for by in LIMITS),
    storage.TARGET("md0", "read", "good", value=20e9),
    storage.TARGET("md0", "read", "poor", value=10e9),
]


def moved(**shares):
    """Rates as a page takes them: shares of time, 3 GB/s while saturated unless told otherwise."""
    rate = shares.pop("rate", 3e9)
    saturated = shares.get("array", 0.0) + shares.get("member", 0.0)
    samples = [storage.LIMITED("md0", by, value=shares.get(by, 0.0)) for by in LIMITS]
    samples += [
        storage.SATURATED_SECONDS("md0", "read", value=saturated),
        storage.SATURATED_BYTES("md0", "read", value=rate * saturated),
        storage.SATURATED_SECONDS("md0", "write", value=0.0),
        storage.SATURATED_BYTES("md0", "write", value=0.0),
        storage.LIMITING("md0", "nvme1n1", value=0.01 if "member" in shares else 0.0),
        storage.LIMITING("md0", "nvme2n1", value=shares.get("member", 0.0)),
    ]
    return samples


CASES = {
    "one member": (
        {"member": 0.9},
        [("warning", "md0: waits for nvme2n1: reads 3.00 / 20.0 GB/s")],
        "3.00 / 20.0 GB/s (nvme2n1)",
    ),
    "slow as a whole": (
        {"array": 0.5},
        [("warning", "md0: too slow: reads 3.00 / 20.0 GB/s though asked for more")],
        "3.00 / 20.0 GB/s",
    ),
    "at its limit, which is good": ({"array": 1.0, "rate": 22e9}, [], "22.0 / 20.0 GB/s"),
    "at its limit, between the bands": ({"array": 1.0, "rate": 12e9}, [], "12.0 / 20.0 GB/s"),
    "buffered writes": (
        {"submitter": 0.6},
        [("info", "md0: tasks wait for buffered writes, though the drives could take more")],
        "submitter",
    ),
    "too short to judge": ({"array": 0.1}, [], "\N{EN DASH}"),
    "idle": ({}, [], "\N{EN DASH}"),
}


@pytest.mark.parametrize(("shares", "findings", "cell"), CASES.values(), ids=CASES)
def test_what_is_said_and_shown(shares, findings, cell):
    rates = {(spec, labels): value for spec, labels, value in moved(**shares)}
    status = build(PUBLISHED, rates)
    assert [(finding.severity, str(finding)) for finding in status.findings] == findings
    assert demanded(status.arrays[0].demand) == cell
    assert cell in render(status)
    assert cell in render_page(status, "n").decode()


def test_the_member_that_held_it_back_longest_is_named():
    found = demand(Latest(PUBLISHED), Latest(moved(member=0.9)), "md0")
    assert found == Demand("member", "nvme2n1", "read", pytest.approx(3e9), 20e9, 10e9)


def test_what_has_no_target_is_never_too_slow():
    published = [sample for sample in PUBLISHED if sample.spec is not storage.TARGET]
    assert find(Latest(published), Latest(moved(array=1.0)), 0.0) == ()
    found = demand(Latest(published), Latest(moved(array=1.0)), "md0")
    assert found is not None
    assert demanded(found) == "3.00 GB/s"


def test_counters_without_a_rate_say_nothing_however_much_they_hold():
    assert find(Latest(PUBLISHED), Latest(()), 0.0) == ()
