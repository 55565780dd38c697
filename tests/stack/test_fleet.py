"""Hosts, an agent and a store that is not Prometheus: all arrives, and an outage of the store loses nothing."""

from __future__ import annotations

import pytest
from support.fleet import SERIAL, Fleet, missing

HOSTS = 20
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    if why := missing():
        pytest.skip(f"the fleet is NOT tried: {why}")
    with Fleet(tmp_path_factory.mktemp("fleet"), HOSTS, seconds=2) as running:
        running.wait_for(lambda: len(running.stored(SERIAL)) == HOSTS, 90)
        yield running


def test_every_series_of_every_host_arrives_under_its_name(fleet):
    fleet.wait_for(lambda: fleet.ask("count(gpuhost_gpu_up)"), 30)
    # VictoriaMetrics leaves `instance` as discovery gave it, and the site's name on each series.
    told = fleet.ask('count by (instance, cluster, job) ({__name__=~"gpuhost_.*"})')
    assert {each["metric"]["instance"] for each in told} == set(fleet.replay.names)
    assert {(each["metric"]["cluster"], each["metric"]["job"]) for each in told} == {("site-1", "gpuhost")}
    assert {int(each["value"][1]) for each in told} == {fleet.replay.samples}


def test_an_outage_of_the_store_loses_no_scrape(fleet):
    fleet.store.stop()
    before = min(fleet.replay.served.values())
    fleet.wait_for(lambda: min(fleet.replay.served.values()) >= before + 10, 90)
    assert fleet.agent_says("prometheus_remote_storage_samples_pending") > 0
    fleet.store.start()
    until = max(fleet.replay.served.values())
    fleet.wait_for(lambda: min((max(each) for each in fleet.stored(SERIAL).values()), default=0) >= until, 120)
    for name, values in fleet.stored(SERIAL).items():
        serials = sorted(int(value) for value in values)
        first = serials[0]
        assert serials == list(range(first, first + len(serials))), name
        assert first <= before
    assert fleet.agent_says("prometheus_remote_storage_samples_dropped_total") == 0
    assert fleet.agent_says("prometheus_remote_storage_samples_failed_total") == 0


def test_a_host_that_was_added_to_discovery_is_scraped(fleet):
    fleet.replay.names.append("gpu-new")
    fleet.wait_for(lambda: "gpu-new" in fleet.stored(SERIAL), 60)
