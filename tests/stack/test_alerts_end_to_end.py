"""From the simulated hardware to the message: each scenario delivers what it should, once, and that it is over.

The exporter, Prometheus and Alertmanager are the real ones, the rules and the routing too, with every duration divided
by SCALE. Larger would be quicker, and wrong: what the exporter itself waits for cannot be scaled. A checkpoint of 40 s
would be one of ten minutes, and a cause that is looked at every few seconds would come after what it leads to.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass

import pytest
from support.delivery import Delivery

from gpuhost_exporter.sim import scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
SCALE = 12
EVERY = 3  # seconds: a range of five minutes has eight samples
AT_ONCE = 12  # hosts: about half of two processors
BASELINE = 10.0  # seconds of health before, so that counters have something to rise from
# From the switch until nothing more can come: faults begin after 20 s, and the longest `for` of a page or of a ticket
# that scenarios lead to is half an hour.
LOOK = 20 + 30 * 60 / SCALE + 20
LATE = 240.0  # seconds more for a busy machine
TRIES = 2
OVER = 900.0  # the longest range is an hour


@dataclass(frozen=True, slots=True)
class Expected:
    pages: frozenset[str] = frozenset()
    tickets: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()  # told of only after the cause is gone
    perhaps: frozenset[str] = frozenset()  # also then, for the seconds that the exporter takes to see it gone
    first: str = "steady"  # what the host does before
    then: str = "steady"  # and after


def expected(pages="", tickets="", after="", perhaps="", first="steady", then="steady"):
    def split(text):
        return frozenset(each.strip() for each in text.split(",") if each.strip())

    return Expected(split(pages), split(tickets), split(after), split(perhaps), first, then)


_PORTS = ", ".join(f"GpuhostRDMATimeouts mlx5_{number}" for number in range(8))
SCENARIOS = {
    "steady": expected(),
    "idle": expected(first="idle", then="idle"),
    "checkpoint-sync": expected(then="idle"),
    "checkpoint-async": expected(then="idle"),
    "checkpoint-stall": expected(pages="GpuhostStoragePoor md0", perhaps="GpuhostCheckpointSlow", then="idle"),
    "checkpoint-one-writer": expected(
        pages="GpuhostCheckpointStalled", perhaps="GpuhostCheckpointShareHigh, GpuhostCheckpointSlow", then="idle"
    ),
    "data-starved": expected(pages="GpuhostStoragePoor md0"),
    "straggler": expected(tickets="GpuhostStraggler 5"),
    "thermal": expected(tickets="GpuhostGPUThermalThrottled 2"),
    "clocks-locked": expected(
        tickets="GpuhostGPUClocksLocked 5, GpuhostGPUPowerLimitLowered 6", perhaps="GpuhostStraggler 5"
    ),
    "nccl-hang": expected(pages="GpuhostJobHung"),
    "nvlink-down": expected(pages="GpuhostNVLinkBelowTarget 3", after="GpuhostNVLinkRecovering 3"),
    "fabric-broken": expected(pages="GpuhostFabricManagerDown", first="fabric-broken"),
    "roce-congested": expected(pages=_PORTS),
    "array-slow": expected(pages="GpuhostStoragePoor md0", tickets="GpuhostDriveMediaErrors nvme2"),
    "array-degraded": expected(tickets="GpuhostArrayDegraded md127"),
    "drive-pulled": expected(pages="GpuhostArrayBroken md0"),
    "drive-hung": expected(pages="GpuhostDriveNotAnswering nvme1"),
    "gpu-lost": expected(pages="GpuhostGPULost 3", perhaps="GpuhostDeviceCountLow"),
    "gpu-reset": expected(pages="GpuhostGPULost 3", perhaps="GpuhostDeviceCountLow"),
    "xid-79": expected(pages="GpuhostGPUNeedsReset 6", perhaps="GpuhostDeviceCountLow"),
    "driver-hung": expected(pages="GpuhostGPUHung 3"),
    "driver-crash": expected(),
    "network-collective": expected(),
}


@dataclass(frozen=True, slots=True)
class Delivered:
    pages: list[set[str]]  # what is new in each message
    tickets: set[str]
    after: set[str]
    left: set[str]  # told to fire and never to be over


def wrong(wanted, found):
    """What is not as it should be."""
    # A second message may tell of more devices: what the exporter takes to look at all of them is not scaled.
    causes = {frozenset(name.split()[0] for name in message) for message in found.pages}
    checks = {
        "pages": set().union(*found.pages) == wanted.pages,
        "one cause is one page": len(causes) <= 1,
        "tickets": found.tickets == wanted.tickets,
        "after": found.after - wanted.perhaps == wanted.after,
        "over": not found.left,
    }
    return [f"{what}: {found}" for what, holds in checks.items() if not holds]


def deliver(folder, names):
    """What was delivered, and which hosts did not answer each scrape: it may be a busy machine that was seen."""
    with Delivery(folder, SCALE, EVERY, {name: SCENARIOS[name].first for name in names}) as delivery:
        time.sleep(BASELINE)
        for name in names:
            if SCENARIOS[name].first != name:
                delivery.switch(name, name)
        begun = time.monotonic()

        def told(name):
            pages, tickets = (delivery.messages(name, receiver) for receiver in ("page", "ticket"))
            return pages, set().union(*tickets)

        def all_came():
            wanted = all(
                SCENARIOS[name].pages <= set().union(*told(name)[0]) and SCENARIOS[name].tickets <= told(name)[1]
                for name in names
            )
            return wanted and time.monotonic() - begun >= LOOK

        delivery.wait_for(all_came, LOOK + LATE)
        before = {name: told(name) for name in names}
        for name in names:
            delivery.switch(name, SCENARIOS[name].then)
        delivery.wait_for(
            lambda: all(
                SCENARIOS[name].after <= _news(told(name), before[name]) and not delivery.firing(name) for name in names
            ),
            OVER,
        )
        found = {
            name: Delivered(*before[name], _news(told(name), before[name]), delivery.firing(name)) for name in names
        }
        return found, delivery.silent()


def _news(now, before):
    return (set().union(*now[0]) | now[1]) - (set().union(*before[0]) | before[1])


@pytest.fixture(scope="module")
def delivered(tmp_path_factory):
    for program in ("prometheus", "prometheus-alertmanager"):
        if not (shutil.which(program) or shutil.which(program.removeprefix("prometheus-"))):
            pytest.skip(f"delivery is NOT tried: apt-get install {program}")
    names = list(SCENARIOS)
    found = {}
    for start in range(0, len(names), AT_ONCE):
        for _ in range(TRIES):
            some, silent = deliver(tmp_path_factory.mktemp("delivery"), names[start : start + AT_ONCE])
            if not (silent and any(wrong(SCENARIOS[name], told) for name, told in some.items())):
                break
            print(f"The machine was too busy for {', '.join(silent)} to answer each scrape")
        found |= some
    return found


def test_every_scenario_has_a_row():
    assert SCENARIOS.keys() == {name for name in scenario.names() if not scenario.load(name).stops}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_delivers_what_it_should_and_that_it_is_over(delivered, name):
    assert wrong(SCENARIOS[name], delivered[name]) == []


def test_the_table(delivered, capsys):
    """For people: scenario x alert, as delivered."""
    with capsys.disabled():
        print(f"\n{'scenario':18} {'pages':42} tickets")
        for name, found in delivered.items():
            later = [f"{each} (after)" for each in sorted(found.after)]
            pages = ", ".join(_shorter(set().union(*found.pages)))
            print(f"{name:18} {pages or '-':42} {', '.join([*_shorter(found.tickets), *later]) or '-'}")
    assert delivered.keys() == SCENARIOS.keys()


def _shorter(names):
    """`Alert subject`; of one alert about many subjects their number."""
    alerts = {}
    for name in sorted(names):
        alert, _, subject = name.partition(" ")
        alerts.setdefault(alert, []).append(subject)
    return [
        f"{alert} {' '.join(found) if len(found) < 3 else f'x {len(found)}'}".strip() for alert, found in alerts.items()
    ]
