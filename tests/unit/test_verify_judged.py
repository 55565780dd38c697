"""Nobody is accepted whose GPUs were not judged: each state of the driver, with GPUs, without, and uncounted."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from gpuhost_exporter.collectors import driver, gpu, inventory, xid
from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.runner import AGE, ERRORS, UP
from gpuhost_exporter.sources.nvml.client import STATES
from gpuhost_exporter.verify import command
from gpuhost_exporter.verify.measurement import Asked

RESTS = ("gpu_health", "nvlink", "fabric")


class Nvml:
    """In these states one after another, and in the last for ever."""

    def __init__(self, *states):
        self.states = list(states)
        self.asked = 0

    def state(self):
        self.asked += 1
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


class App:
    """A host that tells these samples once NVML has left the state `starting`."""

    def __init__(self, samples, nvml):
        task = SimpleNamespace(collector=object.__new__(gpu.GpuCollector))
        self.runner = SimpleNamespace(samples=lambda: list(samples), tasks=(task,))
        self.host = SimpleNamespace(nvml=nvml, state=None, simulated="")
        self.host.state = SimpleNamespace(load=lambda _: {})
        self.clock = SimpleNamespace(wall=lambda: 1795361000.0)
        self.closed = False

    def start(self):
        pass

    def own_samples(self):
        return []

    def close(self):
        self.closed = True


@pytest.fixture
def verify(monkeypatch, capsys):
    """Exit code, verdicts by check and device, and what is said where nothing is judged."""
    monkeypatch.setattr(command, "_DRIVER_PATIENCE", 0.0)

    def call(*samples, nvml=None):
        app = App(samples, nvml or Nvml("ok"))
        monkeypatch.setattr(command, "App", lambda *_, **__: app)
        monkeypatch.setattr(command, "look_twice", lambda *_: {})
        options = command.Options("passive", Asked(), while_busy=False, new_baseline=False, as_json=True, junit=None)
        code, said = 2, ""
        try:
            code = command.verify(SimpleNamespace(), SimpleNamespace(), options)
        except ConfigError as error:
            said = str(error)
        assert app.closed
        told = capsys.readouterr().out
        results = json.loads(told)["results"] if told else []
        return code, {(each["check"], each.get("device", "")): each["verdict"] for each in results}, said

    return call


def in_state(state, *samples):
    """`driver` reads in every state; what asks NVML only in the state ok."""
    reads = (UP("driver"), AGE("driver", value=1), *(UP(name, value=state == "ok") for name in RESTS))
    return (driver.NVML_STATE(state), *reads, xid.KERNEL_LOG_UP(), *samples)


EIGHT = driver.GPUS_ON_BUS(value=8)
NONE = driver.GPUS_ON_BUS(value=0)
UNCOUNTED = ERRORS("driver", "malformed", value=1)
LEARNED = inventory.GPUS_EXPECTED(value=8)
NOT_OK = [state for state in STATES if state != "ok"]
ACCUSES = {"permission", "mismatch", "hung", "stuck", "crashed", "error"}
WITHOUT = {"no_library", "no_driver", "no_gpus"}


@pytest.mark.parametrize("state", NOT_OK)
def test_gpus_on_the_bus_and_a_driver_that_tells_nothing_of_them_are_not_accepted(verify, state):
    code, found, said = verify(*in_state(state, EIGHT))
    if state in ACCUSES | WITHOUT:
        assert (code, said) == (1, "")
        assert "fail" in (found["driver", ""], found.get(("GPUs", "")))
    else:
        told = f"nothing is judged: the driver's state is {state}, and there are GPUs; gpuhost-exporter doctor says why"
        assert (code, found, said) == (2, {}, told)


@pytest.mark.parametrize("state", NOT_OK)
def test_gpus_that_were_here_count_where_the_bus_cannot_be_read(verify, state):
    assert verify(*in_state(state, LEARNED))[0] == (1 if state in ACCUSES | WITHOUT else 2)


@pytest.mark.parametrize("state", NOT_OK)
def test_what_cannot_be_counted_is_not_taken_for_a_host_without_gpus(verify, state):
    code, found, said = verify(*in_state(state, UNCOUNTED))
    if state in ACCUSES or state == "no_driver":
        assert (code, found["driver", ""]) == (1, "fail")
    else:
        assert (code, found) == (2, {})
        assert said.startswith(f"nothing is judged: the driver's state is {state.replace('_', ' ')}, and GPUs cannot")


@pytest.mark.parametrize("state", sorted(WITHOUT))
def test_a_host_without_gpus_is_judged_by_what_it_has(verify, state):
    code, found, said = verify(*in_state(state, NONE))
    assert (code, said) == (0, "")
    assert found["driver", ""] == "pass"


def test_a_driver_of_which_nothing_tells_is_not_judged(verify):
    assert verify(xid.KERNEL_LOG_UP(), UP("gpu"))[2].startswith("nothing is judged: nothing tells the state")


def of_eight():
    for index in range(8):
        yield driver.GPU_UP(str(index), f"GPU-{index}")
        yield driver.GPU_STATE(str(index), f"GPU-{index}", "ok")


def test_a_host_that_answers_is_accepted_unless_a_part_of_what_it_rests_on_is_not_read(verify):
    assert verify(*in_state("ok", EIGHT, *of_eight()))[0] == 0
    code, found, said = verify(*in_state("ok", EIGHT, *of_eight(), UP("nvlink", value=0)))
    assert (code, found) == (2, {})
    assert said.startswith("nothing is judged: not read: nvlink; ")


def test_what_speaks_against_the_host_rejects_it_though_the_rest_is_not_known(verify):
    lost = (
        driver.GPU_UP("3", "GPU-3", value=0),
        driver.GPU_STATE("3", "GPU-3", "ok", value=0),
        driver.GPU_STATE("3", "GPU-3", "lost"),
    )
    code, found, _ = verify(*in_state("ok", EIGHT, *of_eight(), *lost, UP("nvlink", value=0)))
    assert (code, found["GPUs", "GPU 3"]) == (1, "fail")


def test_a_driver_that_is_starting_is_waited_for_before_anything_is_looked_at(verify, monkeypatch, capsys):
    monkeypatch.setattr(command, "_DRIVER_PATIENCE", 60.0)
    monkeypatch.setattr(command, "_LOOK_SECONDS", 0.001)
    nvml = Nvml(*["starting"] * 40, "ok")
    assert verify(*in_state("ok", EIGHT, *of_eight()), nvml=nvml)[0] == 0
    assert nvml.states == ["ok"]
    assert nvml.asked == 41


def test_a_driver_that_never_starts_is_waited_for_no_longer_than_its_time(verify, monkeypatch, capsys):
    monkeypatch.setattr(command, "_DRIVER_PATIENCE", 0.2)
    monkeypatch.setattr(command, "_QUIET_SECONDS", 0.0)
    app = App((), Nvml("starting"))
    command._await_driver(app)
    assert capsys.readouterr().err == "waiting for the driver, for 0 s at most\n"
