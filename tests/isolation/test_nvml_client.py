"""The NVML client outlives its reader: hung, crashed, lost, mismatched, released. Readers are real processes."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from gpuhost_exporter.errors import Hung, SourceError, Transient, Unavailable


def uuids(batch):
    return [reading.uuid for reading in batch.readings]


def test_a_well_driver_is_ok_and_every_gpu_is(make_nvml):
    client, _, _ = make_nvml()
    assert client.state() == "starting"
    assert uuids(client.read("links")) == ["GPU-0", "GPU-1", "GPU-2"]
    assert client.state() == "ok"
    assert client.gpu_states() == dict.fromkeys(["GPU-0", "GPU-1", "GPU-2"], "ok")
    assert client.driver().driver_version == "580.1"
    assert sum(client.restarts().values()) == 0


def test_a_lost_gpu_costs_that_gpu_only_and_is_looked_for_again(make_nvml):
    client, clock, steps = make_nvml("ok ok:GPU-0,GPU-2")
    assert uuids(client.read("links")) == ["GPU-0", "GPU-2"]
    assert client.gpu_states() == {"GPU-0": "ok", "GPU-1": "lost", "GPU-2": "ok"}
    assert [gpu.uuid for gpu in client.gpus()] == ["GPU-0", "GPU-1", "GPU-2"]
    steps.write_text("ok:GPU-0,GPU-2 ok:GPU-0,GPU-2")
    clock.ahead += 61
    client.read("links")
    assert client.restarts()["recheck"] == 1
    assert client.gpu_states()["GPU-1"] == "lost"
    clock.ahead += 61
    client.read("links")
    assert client.restarts()["recheck"] == 1, "pauses grow"
    clock.ahead += 61
    assert uuids(client.read("links")) == ["GPU-0", "GPU-1", "GPU-2"], "back after its reset"
    assert client.gpu_states()["GPU-1"] == "ok"


def test_a_gpu_that_was_lost_before_the_start_is_known_by_its_index_until_it_is_back(make_nvml):
    client, clock, _ = make_nvml("ok:GPU-0,GPU-2")
    opened = []
    client.on_open = lambda: opened.append(client.state())
    client.read("links")
    assert client.unopened() == {1: "lost"}
    assert "GPU-1" not in client.gpu_states()
    clock.ahead += 61
    client.read("links")
    assert client.unopened() == {}
    assert client.gpu_states()["GPU-1"] == "ok"
    assert opened == ["ok", "ok"]


def test_a_call_that_never_returns_costs_its_gpu_and_the_deadline(make_nvml):
    client, clock, steps = make_nvml("ok hang:GPU-1")
    begin = time.monotonic()
    with pytest.raises(Hung, match=r"nvmlDeviceGetPowerUsage on GPU 1 \(GPU-1\)"):
        client.read("links")
    assert time.monotonic() - begin < 2
    assert client.state() == "hung"
    assert client.gpu_states() == {"GPU-0": "ok", "GPU-1": "hung", "GPU-2": "ok"}, "its reader is being replaced"
    assert client.restarts()["hung"] == 1
    assert uuids(client.read("links")) == ["GPU-0", "GPU-2"]
    assert client.gpu_states() == {"GPU-0": "ok", "GPU-1": "hung", "GPU-2": "ok"}
    clock.ahead += 61
    steps.write_text("hang:GPU-1")
    with pytest.raises(Hung):
        client.read("links")
    clock.ahead += 61
    assert uuids(client.read("links")) == ["GPU-0", "GPU-2"], "the second pause is longer"
    clock.ahead += 61
    assert uuids(client.read("links")) == ["GPU-0", "GPU-1", "GPU-2"]
    assert client.gpu_states()["GPU-1"] == "ok"


def test_a_crash_gets_a_new_reader_and_a_second_one_leaves_the_gpu_out(make_nvml):
    client, _, steps = make_nvml("ok crash:GPU-2")
    with pytest.raises(Transient, match=r"SIGSEGV in nvmlDeviceGetPowerUsage on GPU 2 \(GPU-2\)"):
        client.read("links")
    assert client.restarts()["crashed"] == 1
    assert uuids(client.read("links")) == ["GPU-0", "GPU-1", "GPU-2"]
    steps.write_text("crash:GPU-2")
    with pytest.raises(Transient):
        client.read("links")
    deadline = time.monotonic() + 5
    while True:
        try:
            assert uuids(client.read("links")) == ["GPU-0", "GPU-1"]
            break
        except Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert client.gpu_states() == {"GPU-0": "ok", "GPU-1": "ok", "GPU-2": "hung"}


@pytest.mark.parametrize("state", ["no_library", "no_driver", "permission", "mismatch"])
def test_a_driver_that_is_not_there_is_a_state_and_is_tried_again_with_patience(make_nvml, state):
    client, clock, steps = make_nvml(f"down:{state}")
    with pytest.raises(Unavailable, match=f"the driver is {state}"):
        client.read("links")
    assert client.state() == state
    assert client.gpus() == ()
    with pytest.raises(Unavailable):
        client.read("links")
    assert steps.read_text() == "", "not tried at every tick"
    clock.ahead += 61
    assert uuids(client.read("links")) == ["GPU-0", "GPU-1", "GPU-2"]
    assert client.state() == "ok"


def test_an_absent_driver_is_logged_once_however_often_it_is_looked_for(make_nvml, caplog):
    client, clock, _ = make_nvml("down:no_library down:no_library down:no_library")
    for _ in range(3):
        with pytest.raises(Unavailable):
            client.read("links")
        clock.ahead += 61
    assert caplog.text.count("NVML: no_library") == 1
    client.read("links")
    assert client.state() == "ok"


def test_a_driver_upgraded_under_a_running_exporter_is_unknown_not_lost(make_nvml):
    client, clock, _ = make_nvml("ok ok down:mismatch")
    client.read("links")
    with pytest.raises(Unavailable):
        client.read("links")
    assert client.state() == "mismatch"
    assert set(client.gpu_states().values()) == {"unknown"}
    assert client.restarts()["mismatch"] == 1
    clock.ahead += 11
    client.read("links")
    assert client.state() == "ok"


def test_a_driver_without_gpus_is_said_so_and_looked_at_again(make_nvml):
    client, clock, _ = make_nvml(gpus=0)
    with pytest.raises(Unavailable, match="finds no GPU"):
        client.read("links")
    assert client.state() == "no_gpus"
    clock.ahead += 61
    with pytest.raises(Unavailable):
        client.read("links")


def exists(pid):
    return os.path.exists(f"/proc/{pid}/fd")


def test_release_ends_the_process_that_holds_the_driver_until_resume(make_nvml):
    client, clock, _ = make_nvml()
    client.read("links")
    (pid,) = client.pids()
    assert client.released_until() is None
    asked_at = clock.now()
    client.release(600)
    assert not exists(pid)
    assert client.state() == "released"
    assert 600 <= client.released_until() - asked_at < 610
    with pytest.raises(Unavailable, match="released"):
        client.read("links")
    assert set(client.gpu_states().values()) == {"unknown"}
    assert client.pids() == ()
    client.resume()
    assert len(uuids(client.read("links"))) == 3
    assert client.released_until() is None
    client.release(600)
    clock.ahead += 601
    assert len(uuids(client.read("links"))) == 3, "taken up again by itself"
    assert client.restarts()["released"] == 2


def test_release_does_not_wait_for_a_hung_call(make_nvml):
    client, _, _ = make_nvml("ok hang:GPU-0")
    client._timeout = 30.0
    errors = []

    def read():
        try:
            client.read("links")
        except SourceError as error:
            errors.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    while client.in_flight_seconds(client._clock.now()) == 0 or client.state() != "ok":
        time.sleep(0.01)
    begin = time.monotonic()
    client.release(600)
    reading.join(5)
    assert time.monotonic() - begin < 3
    assert client.state() == "released"
    assert "released" in str(errors[0])


def test_a_gpu_that_hangs_while_being_opened_shows_as_hung_and_is_tried_again(make_nvml):
    client, clock, steps = make_nvml("hang:index:1")
    with pytest.raises(Hung, match="index:1"):
        client.read("links")
    steps.write_text("ok:GPU-0,GPU-2")
    assert uuids(client.read("links")) == ["GPU-0", "GPU-2"]
    assert client.unopened() == {1: "hung"}
    clock.ahead += 61
    assert uuids(client.read("links")) == ["GPU-0", "GPU-1", "GPU-2"]
    assert client.unopened() == {}


def test_looking_for_a_lost_gpu_leaves_its_siblings_up_even_when_its_opening_hangs(make_nvml):
    client, clock, steps = make_nvml("ok ok:GPU-0,GPU-2")
    client.read("links")
    steps.write_text("hang:index:1 ok:GPU-0,GPU-2")
    clock.ahead += 61
    with pytest.raises(Hung):
        client.read("links")
    clock.ahead -= 61
    assert client.gpu_states() == {"GPU-0": "ok", "GPU-1": "lost", "GPU-2": "ok"}
    clock.ahead += 61
    assert uuids(client.read("links")) == ["GPU-0", "GPU-2"]
    assert client.gpu_states() == {"GPU-0": "ok", "GPU-1": "hung", "GPU-2": "ok"}


def test_only_the_subject_that_hung_proves_a_gpu_well_so_pauses_grow(make_nvml):
    client, clock, steps = make_nvml("ok hang:GPU-1")
    with pytest.raises(Hung):
        client.read("fabric")
    client.read("links")
    clock.ahead += 61
    assert uuids(client.read("links")) == ["GPU-0", "GPU-1", "GPU-2"]
    steps.write_text("hang:GPU-1")
    with pytest.raises(Hung):
        client.read("fabric")
    client.read("links")
    clock.ahead += 61
    assert uuids(client.read("links")) == ["GPU-0", "GPU-2"], "left out for twice as long"


def test_evidence_that_is_old_makes_no_gpu_ok(make_nvml):
    client, clock, _ = make_nvml()
    client.read("links")
    clock.ahead += 29
    assert set(client.gpu_states().values()) == {"ok"}
    clock.ahead += 2
    assert set(client.gpu_states().values()) == {"unknown"}


def test_a_reader_that_cannot_be_killed_after_a_recheck_is_not_multiplied_either(make_nvml, monkeypatch):
    client, clock, _ = make_nvml("ok ok:GPU-0,GPU-2")
    client.read("links")
    monkeypatch.setattr(client._launcher, "exit_status", lambda pid, wait=0.0: None)
    for _ in range(3):
        clock.ahead += 700
        with pytest.raises(Hung, match="cannot end"):
            client.read("links")
    assert client.stuck() == 1
    assert client.restarts()["recheck"] == 1


def test_without_a_launcher_nothing_is_ok_and_nothing_raises_but_read(make_nvml):
    client, _, _ = make_nvml()
    client.read("links")
    (pid,) = client.pids()
    os.kill(client._launcher.pid, signal.SIGKILL)
    while exists(pid):
        time.sleep(0.01)
    with pytest.raises(SourceError):
        client.read("links")
    with pytest.raises(SourceError):
        client.read("links")
    assert client.state() != "ok"
    client.release(1)


def test_a_reader_that_the_kernel_cannot_kill_is_reported_and_not_multiplied(make_nvml, monkeypatch):
    client, _, _ = make_nvml("ok hang:GPU-0")
    spawned = []
    spawn, exit_status = client._launcher.spawn, client._launcher.exit_status
    monkeypatch.setattr(client._launcher, "spawn", lambda *a: spawned.append(1) or spawn(*a))
    monkeypatch.setattr(client._launcher, "exit_status", lambda pid, wait=0.0: None)
    for _ in range(3):
        with pytest.raises(Hung):
            client.read("links")
    assert client.state() == "stuck"
    assert set(client.gpu_states().values()) == {"unknown"}
    assert client.stuck() == 1
    assert len(spawned) == 1
    monkeypatch.setattr(client._launcher, "exit_status", exit_status)
    assert client._launcher.exit_status(client._stuck, 5) == -signal.SIGKILL
    assert uuids(client.read("links")) == ["GPU-1", "GPU-2"], "the GPU that hung is left out"
    assert client.stuck() == 0


def test_events_arrive_without_being_asked_for_and_without_waiting(make_nvml):
    client, _, _ = make_nvml("ok event")
    assert client.take_events() == ()
    client.read("links")
    (event,) = client.take_events()
    assert (event.uuid, event.code) == ("GPU-0", 79)
    assert client.take_events() == ()
