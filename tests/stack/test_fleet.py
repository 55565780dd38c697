"""200 recorded hosts, an agent and a store other than Prometheus: all arrives, an outage of the store loses nothing.

One process replays the hosts, at the interval that the agent's configuration ships with: a third of two processors.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from support.fleet import REPOSITORY, SERIAL, Fleet, Program, free_port, missing

HOSTS, SECONDS = 200, 15
README = Path(__file__).parents[2] / "deploy" / "fleet" / "README.md"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    if why := missing():
        pytest.skip(f"the fleet is NOT tried: {why}")
    with Fleet(tmp_path_factory.mktemp("fleet"), HOSTS, SECONDS) as running:
        running.wait_for(lambda: len(running.stored(SERIAL)) == HOSTS, 600)
        yield running


def test_every_series_of_every_host_arrives_under_its_name(fleet):
    # A question about half a million series is more than the store takes: every tenth host is counted, and the sum.
    def counted(name):
        (told,) = fleet.ask(f'count({{instance="{name}", __name__=~"gpuhost_.*"}})') or [None]
        return told and int(told["value"][1])

    for name in fleet.replay.names[::10]:  # a scrape is written in pieces, over several connections
        fleet.wait_for(lambda name=name: counted(name) == fleet.replay.samples, 300)
    fleet.wait_for(lambda: fleet.series() >= HOSTS * fleet.replay.samples, 300)
    # VictoriaMetrics leaves `instance` as discovery gave it, and the site's name on each series.
    told = [each["metric"] for each in fleet.ask("count by (instance, cluster, job) (gpuhost_gpu_up)")]
    assert sorted(each["instance"] for each in told) == sorted(fleet.replay.names)
    assert {(each["cluster"], each["job"]) for each in told} == {("site-1", "gpuhost")}


def test_an_outage_of_the_store_loses_no_scrape(fleet):
    fleet.store.stop()
    before = min(fleet.replay.served.values())
    fleet.wait_for(lambda: min(fleet.replay.served.values()) >= before + 10, 600)
    assert fleet.agent_says("prometheus_remote_storage_samples_pending") > 0
    fleet.store.start()
    until = max(fleet.replay.served.values())
    fleet.wait_for(lambda: min((max(each) for each in fleet.stored(SERIAL).values()), default=0) >= until, 600)
    for name, values in fleet.stored(SERIAL).items():
        serials = sorted(int(value) for value in values)
        first = serials[0]
        assert serials == list(range(first, first + len(serials))), name
        assert first <= before
    assert fleet.agent_says("prometheus_remote_storage_samples_dropped_total") == 0
    assert fleet.agent_says("prometheus_remote_storage_samples_failed_total") == 0


def test_a_host_that_was_added_to_discovery_is_scraped(fleet):
    fleet.replay.names.append("gpu-new")
    fleet.wait_for(lambda: "gpu-new" in fleet.stored(SERIAL), 300)


def test_vmalert_evaluates_the_rules_as_the_readme_starts_it(fleet):
    if shutil.which("vmalert") is None:
        pytest.skip("the rules are NOT evaluated by vmalert: apt-get install victoria-metrics")
    (block,) = re.findall(r"(?m)^    (vmalert (?:.*\\\n)*.*)$", README.read_text())
    command = shlex.split(block.replace("\\\n", " ").replace("127.0.0.1:8428", f"127.0.0.1:{fleet.store.port}"))
    command = [each.replace("alerts/rules", f"{REPOSITORY}/alerts/rules") for each in command]
    port = free_port()
    rules = Program(fleet.folder / "vmalert.log", [*command, f"-httpListenAddr=127.0.0.1:{port}"], port, "/health")
    rules.start()
    try:
        hosts = len(fleet.replay.names)
        fleet.wait_for(lambda: len(fleet.ask("host:gpuhost_nvlink_usable:min_ratio")) == hosts, 600)

        def counted():
            return [int(each["value"][1]) for each in fleet.ask("fleet:gpuhost_gpus_up:sum")]

        fleet.wait_for(lambda: counted() == [8 * hosts], 600)
    finally:
        rules.stop()
    assert "error when evaluating" not in rules.log()
