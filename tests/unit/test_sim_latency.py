"""What a simulated host's probes find, where no prober runs."""

from __future__ import annotations

from gpuhost_exporter.averages import median
from gpuhost_exporter.latency.settings import LatencySettings, Rdma
from gpuhost_exporter.sim import control
from gpuhost_exporter.sim.latency import Prober
from gpuhost_exporter.sources.latency.results import RDMA, TCP, Results
from gpuhost_exporter.targets import Targets

HOSTS = {name: ("127.0.0.1", number) for number, name in enumerate("abc", 1)}


class Clock:
    at = 0.0

    def now(self):
        return 5000.0 + self.at

    def wall(self):
        return 1.7e9 + self.at


def found(folder, scenario, seconds, rdma=None):
    """Rounds by transport, so long after the scenario began."""
    path, clock, results = str(folder / "control.json"), Clock(), Results()
    control.create(path, "h100x8", scenario, clock)
    settings = LatencySettings("a", HOSTS["a"], "", HOSTS, rdma=rdma)
    prober = Prober(settings, results, clock, path)
    clock.at = seconds
    prober.look()
    rounds = results.take()
    assert {each.peer for each in rounds} == {"b"}
    assert {each.at for each in rounds} == {1.7e9 + seconds}
    assert results.state()[0] == "ok"
    return {each.transport: each for each in rounds}


def test_messages_are_as_quick_as_the_fabric_lets_them(tmp_path):
    target = Targets.load({}).guide.collective_latency_seconds
    quiet, congested = (found(tmp_path, name, 60, Rdma("mlx5_0")) for name in ("steady", "roce-congested"))
    assert median(quiet[RDMA].seconds) < target < median(congested[RDMA].seconds)
    assert target < median(quiet[TCP].seconds) < median(congested[TCP].seconds)
    assert (quiet[TCP].sent, quiet[TCP].lost, len(quiet[TCP].seconds)) == (45, 0, 40)
    assert (quiet[RDMA].sent, len(quiet[RDMA].seconds)) == (0, 40)


def test_without_perftest_configured_there_is_no_rdma(tmp_path):
    assert set(found(tmp_path, "steady", 60)) == {TCP}


def test_a_switch_of_scenario_is_seen(tmp_path):
    path, clock, results = str(tmp_path / "control.json"), Clock(), Results()
    control.create(path, "h100x8", "steady", clock)
    prober = Prober(LatencySettings("a", HOSTS["a"], "", HOSTS), results, clock, path)
    clock.at = 100.0
    control.switch(path, "roce-congested", clock)
    clock.at = 200.0
    prober.look()
    assert median(results.take()[0].seconds) > median(found(tmp_path, "steady", 60)[TCP].seconds)


def test_it_ends_where_the_simulation_has_gone(tmp_path):
    path, results = tmp_path / "control.json", Results()
    control.create(str(path), "h100x8", "steady", Clock())
    prober = Prober(LatencySettings("a", HOSTS["a"], "", HOSTS, interval=0.01), results, Clock(), str(path))
    path.unlink()
    prober.start()
    prober._thread.join(10)
    assert not prober._thread.is_alive()
    kind, why = results.state()
    assert kind == "gone"
    assert "No such file" in why
