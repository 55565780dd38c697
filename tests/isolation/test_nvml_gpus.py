"""Which GPUs the NVML client knows: new ones are taken up, forgotten ones dropped. Readers are real processes."""

from __future__ import annotations

from itertools import pairwise


def uuids(batch):
    return [reading.uuid for reading in batch.readings]


def test_a_gpu_that_was_never_known_is_taken_up_when_it_comes_to_the_bus(make_nvml):
    client, clock, _ = make_nvml(gpus=2)
    client.read("links")
    client.recheck("0000:01:00.0")
    assert uuids(client.read("links")) == ["GPU-0", "GPU-1"]
    assert client.restarts()["recheck"] == 0, "that one is known and well"
    client._arguments["gpus"] = 3
    client.recheck("0000:02:00.0")
    assert uuids(client.read("links")) == ["GPU-0", "GPU-1", "GPU-2"]
    assert client.gpu_states() == dict.fromkeys(["GPU-0", "GPU-1", "GPU-2"], "ok")
    for _ in range(20):
        clock.ahead += 61
        client.read("links")
    assert client.restarts()["recheck"] == 1


def test_only_a_gpu_that_is_missing_is_forgotten(make_nvml):
    client, clock, _ = make_nvml()
    client.read("links")
    client.forget("GPU-2")
    client.read("links")
    assert client.gpu_states()["GPU-2"] == "ok"
    client._arguments["gpus"] = 2
    client.release(1)
    client.resume()
    client.read("links")
    assert client.gpu_states() == {"GPU-0": "ok", "GPU-1": "ok", "GPU-2": "missing"}
    client.forget("GPU-2")
    client.forget("GPU-unheard-of")
    client.read("links")
    assert client.gpu_states() == {"GPU-0": "ok", "GPU-1": "ok"}
    assert [gpu.uuid for gpu in client.gpus()] == ["GPU-0", "GPU-1"]
    restarts = client.restarts()["recheck"]
    clock.ahead += 700
    client.read("links")
    assert client.restarts()["recheck"] == restarts, "it is looked for no more"
    client._arguments["gpus"] = 3
    client.release(1)
    client.resume()
    assert uuids(client.read("links")) == ["GPU-0", "GPU-1", "GPU-2"]
    assert client.gpu_states()["GPU-2"] == "ok", "back if it comes back"


def test_a_gpu_that_the_driver_does_not_take_is_looked_for_a_few_times_ever_later(make_nvml):
    client, clock, _ = make_nvml(gpus=2)
    client.read("links")
    client.recheck("0000:02:00.0")
    looked = []
    for minute in range(60):
        client.read("links")
        if client.restarts()["recheck"] > len(looked):
            looked.append(minute)
        clock.ahead += 61
    pauses = [after - before for before, after in pairwise(looked)]
    assert looked[0] == 0
    assert pauses == sorted(pauses)
    assert 2 <= len(looked) <= 5
    assert looked[-1] < 20, "then no more"
    client.recheck()
    client.read("links")
    assert client.restarts()["recheck"] == len(looked), "not for the sake of another device"
    client.recheck("0000:02:00.0")
    client.read("links")
    assert client.restarts()["recheck"] == len(looked) + 1, "its driver may have come"
    assert set(client.gpu_states().values()) == {"ok"}
