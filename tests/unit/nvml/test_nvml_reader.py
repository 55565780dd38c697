"""All GPUs together: opening, siblings of a lost GPU, quarantine, a driver that goes away, events."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pynvml
import pytest

from gpuhost_exporter.sources.nvml.book import Book
from gpuhost_exporter.sources.nvml.calls import DriverDown
from gpuhost_exporter.sources.nvml.reader import DOWN_SECONDS, Reader

SUBJECTS = ["activity", "links", "health", "fabric", "mig"]
EVERYTHING = frozenset({"GPU-0", "GPU-1"})


@pytest.fixture
def closed(nv, clock, marks):
    return Reader(nv, clock, lambda uuid, call: marks.append((uuid, call)))


def of(batch, uuid):
    return [reading for reading in batch.readings if reading.uuid == uuid]


# Opening


def test_the_inventory_tells_driver_and_identity(closed):
    inventory = closed.open()
    assert inventory.faults == ()
    assert (inventory.driver.driver_version, inventory.driver.cuda_version) == ("570.86.15", "12.8")
    gpu = inventory.gpus[0]
    assert (gpu.index, gpu.uuid, gpu.bdf) == (0, "GPU-0", "0000:1a:00.0")
    assert (gpu.architecture, gpu.compute_capability, gpu.virtualization_mode) == ("hopper", "9.0", "none")
    assert (gpu.memory_bus_bits, gpu.memory_clock_max_hertz, gpu.sm_clock_max_hertz) == (5120, 2.619e9, 1.98e9)
    assert gpu.link_count == 18


def test_what_a_gpu_does_not_tell_is_none(nv, closed):
    for name in ("Serial", "VbiosVersion", "Architecture", "MemoryBusWidth", "VirtualizationMode", "NvLinkState"):
        nv.gpus[0].answers[f"nvmlDeviceGet{name}"] = pynvml.NVMLError(3)
    del nv.gpus[0].fields[91, 0]
    gpu = closed.open().gpus[0]
    assert [gpu.serial, gpu.vbios, gpu.architecture, gpu.memory_bus_bits, gpu.virtualization_mode] == [None] * 5
    assert gpu.link_count == 0


@pytest.mark.parametrize(
    ("code", "state"),
    [(4, "permission"), (9, "no_driver"), (12, "no_library"), (18, "mismatch"), (17, "error"), (999, "error")],
)
def test_a_library_that_does_not_start_is_a_state_of_the_driver(nv, closed, code, state):
    nv.system["nvmlInit"] = pynvml.NVMLError(code)
    with pytest.raises(DriverDown) as caught:
        closed.open()
    assert caught.value.state == state


def test_a_driver_without_gpus_gives_an_empty_inventory(nv, closed):
    nv.gpus.clear()
    assert closed.open().gpus == ()
    assert closed.read("activity", frozenset()).readings == ()


@pytest.mark.parametrize("code", [15, 16, 28, 4, 999])
def test_an_index_whose_handle_fails_is_a_fault_and_its_siblings_are_there(nv, closed, code):
    nv.gpus[0].answers["handle"] = pynvml.NVMLError(code)
    inventory = closed.open()
    assert [gpu.uuid for gpu in inventory.gpus] == ["GPU-1"]
    assert [(fault.uuid, fault.code) for fault in inventory.faults] == [("index:0", code)]
    assert {reading.uuid for reading in closed.read("activity", frozenset()).readings} == {"GPU-1"}


@pytest.mark.parametrize("known", [False, True])
def test_a_gpu_that_is_left_out_is_hung_whether_it_was_known_before_or_not(closed, known):
    book = Book(60.0)
    if known:
        book.opened(closed.open(), 0.0)
    book.hung("GPU-1", "open", 1.0)
    book.opened(closed.open(frozenset({"GPU-1"})), 2.0)
    assert book.states() == {"GPU-0": "ok", **({"GPU-1": "hung"} if known else {})}
    assert book.unopened() == ({} if known else {1: "hung"})


@pytest.mark.parametrize("bus_id", ["", "garbage", "FFFFFFFF:FF:FF.0"])
def test_a_gpu_without_an_identity_is_a_fault(nv, closed, bus_id):
    nv.gpus[0].answers["nvmlDeviceGetPciInfo"] = SimpleNamespace(busId=bus_id)
    inventory = closed.open()
    assert [(fault.uuid, fault.kind) for fault in inventory.faults] == [("index:0", "malformed")]
    assert {reading.uuid for reading in closed.read("health", frozenset()).readings} == {"GPU-1"}


def test_an_address_that_is_no_text_is_a_fault_of_its_gpu(nv, closed, undecodable):
    nv.gpus[0].answers["nvmlDeviceGetPciInfo"] = undecodable
    inventory = closed.open()
    assert [(fault.uuid, fault.kind) for fault in inventory.faults] == [("index:0", "malformed")]
    assert [gpu.uuid for gpu in inventory.gpus] == ["GPU-1"]


def test_what_nobody_foresaw_is_a_fault_of_its_gpu_when_it_is_opened(nv, closed):
    nv.gpus[0].answers["nvmlDeviceGetPciInfo"] = RuntimeError("what nobody foresaw")
    inventory = closed.open()
    assert [(fault.uuid, fault.call, fault.kind) for fault in inventory.faults] == [("index:0", "open", "malformed")]
    assert inventory.faults[0].message == "RuntimeError: what nobody foresaw"
    assert [gpu.uuid for gpu in inventory.gpus] == ["GPU-1"]


@pytest.mark.parametrize(
    ("subject", "call"),
    [
        ("activity", "nvmlDeviceGetPowerUsage"),
        ("links", "nvmlDeviceGetNvLinkState"),
        ("health", "nvmlDeviceGetRemappedRows"),
        ("fabric", "nvmlDeviceGetGpuFabricInfoV"),
        ("mig", "nvmlDeviceGetMigMode"),
    ],
)
def test_what_nobody_foresaw_costs_one_gpu_one_subject(nv, reader, clock, subject, call):
    honest = nv.gpus[0].answers.get(call)
    nv.gpus[0].answers[call] = RuntimeError("what nobody foresaw")
    batch = reader.read(subject, frozenset())
    assert [(fault.uuid, fault.call, fault.kind) for fault in batch.faults] == [("GPU-0", subject, "malformed")]
    own = [reading for reading in of(batch, "GPU-0") if not hasattr(reading, "peer_uuid")]
    assert own == []
    assert subject == "mig" or of(batch, "GPU-1")
    if honest is not None:
        nv.gpus[0].answers[call] = honest
        clock.seconds += 1
        batch = reader.read(subject, frozenset())
        assert batch.faults == ()
        assert subject == "mig" or of(batch, "GPU-0")


def test_two_gpus_with_one_uuid_are_not_mixed_up(nv, closed):
    nv.gpus[1].uuid = "GPU-0"
    inventory = closed.open()
    assert [gpu.index for gpu in inventory.gpus] == [0]
    assert [(fault.uuid, fault.kind) for fault in inventory.faults] == [("index:1", "malformed")]


def test_an_undecodable_name_is_a_fault_not_a_crash(nv, closed):
    nv.gpus[0].answers["nvmlDeviceGetSerial"] = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    inventory = closed.open()
    assert inventory.gpus[0].serial is None
    assert [(fault.uuid, fault.kind) for fault in inventory.faults] == [("GPU-0", "malformed")]


# Quarantine


def test_a_gpu_left_out_is_not_touched(nv, reader, clock, marks):
    marks.clear()
    for subject in SUBJECTS:
        batch = reader.read(subject, frozenset({"GPU-0"}))
        assert of(batch, "GPU-0") == []
        assert all(getattr(reading, "peer_uuid", "") != "GPU-0" for reading in batch.readings)
    assert {uuid for uuid, _ in marks} == {"GPU-1"}
    assert nv.gpus[0] not in [argument for _, arguments in nv.log for argument in arguments]


def test_a_gpu_left_out_at_the_opening_can_be_read_later(nv, closed, marks):
    assert [gpu.uuid for gpu in closed.open(frozenset({"GPU-0"})).gpus] == ["GPU-1"]
    assert {call for uuid, call in marks if uuid in ("index:0", "GPU-0")} == {
        "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetUUID",
    }
    assert len(of(closed.read("activity", frozenset()), "GPU-0")) == 1


def test_an_index_left_out_is_not_even_opened(nv, closed):
    inventory = closed.open(frozenset({"index:0"}))
    assert ([gpu.uuid for gpu in inventory.gpus], inventory.faults) == (["GPU-1"], ())
    assert ("nvmlDeviceGetHandleByIndex", (0,)) not in nv.log


# Lost GPUs


LOSING = {
    "activity": "nvmlDeviceGetPowerUsage",
    "links": "nvmlDeviceGetNvLinkState",
    "health": "nvmlDeviceGetEccMode",
    "fabric": "nvmlDeviceGetGpuFabricInfoV",
    "mig": "nvmlDeviceGetMigMode",
}


@pytest.mark.parametrize(("code", "kind"), [(15, "lost"), (16, "needs_reset"), (28, "gone")])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_lost_gpu_gives_a_fault_and_leaves_its_siblings(nv, reader, subject, code, kind):
    nv.gpus[0].answers[LOSING[subject]] = pynvml.NVMLError(code)
    batch = reader.read(subject, frozenset())
    assert [(fault.uuid, fault.call, fault.kind, fault.code) for fault in batch.faults] == [
        ("GPU-0", LOSING[subject], kind, code)
    ]
    assert of(batch, "GPU-0") == []
    assert of(batch, "GPU-1") or subject == "mig"


def test_a_lost_gpu_is_left_alone_for_a_while_and_its_fault_stays(nv, reader, clock):
    nv.gpus[0].answers["nvmlDeviceGetPowerUsage"] = pynvml.NVMLError(15)
    reader.read("activity", frozenset())
    nv.log.clear()
    for subject in SUBJECTS:
        clock.seconds += 1
        assert [fault.kind for fault in reader.read(subject, frozenset()).faults] == ["lost"]
    assert not any(arguments and arguments[0] is nv.gpus[0] for _, arguments in nv.log)


def test_a_gpu_is_back_when_the_subject_that_lost_it_reads_again(nv, reader, clock):
    nv.gpus[0].answers["nvmlDeviceGetPowerUsage"] = pynvml.NVMLError(15)
    reader.read("activity", frozenset())
    clock.seconds += DOWN_SECONDS
    # Some calls of a lost GPU still answer: that proves nothing.
    assert [fault.kind for fault in reader.read("health", frozenset()).faults] == ["lost"]
    nv.gpus[0].answers["nvmlDeviceGetPowerUsage"] = 1
    batch = reader.read("activity", frozenset())
    assert batch.faults == ()
    # What was sampled before the loss is no window to average over.
    assert (of(batch, "GPU-0")[0].gpm, of(batch, "GPU-0")[0].since) == ("warming_up", clock.seconds)
    assert reader.read("health", frozenset()).faults == ()


@pytest.mark.parametrize(("code", "state"), [(1, "error"), (9, "no_driver"), (18, "mismatch")])
def test_a_driver_that_goes_away_is_not_the_fault_of_one_gpu(nv, reader, code, state):
    nv.gpus[1].answers["nvmlDeviceGetPowerUsage"] = pynvml.NVMLError(code)
    with pytest.raises(DriverDown) as caught:
        reader.read("activity", frozenset())
    assert caught.value.state == state


@pytest.mark.parametrize("code", [1, 15, 18, 999])
def test_closing_never_fails(nv, reader, clock, code):
    reader.read("activity", frozenset())
    nv._nvmlGpmSampleFree = lambda sample: (_ for _ in ()).throw(pynvml.NVMLError(code))
    nv.system["nvmlShutdown"] = pynvml.NVMLError(code)
    reader.close()
    assert reader.read("activity", frozenset()).readings == ()


# Events


def xid(gpu, code, kind=8):
    return SimpleNamespace(device=gpu, eventType=kind, eventData=code)


def test_xids_are_told_with_gpu_place_and_time(nv, reader, clock):
    nv.events += [xid(nv.gpus[1], 79), xid(nv.gpus[0], 31), xid(nv.gpus[0], 1, kind=4)]
    found = reader.wait_events(1.0)
    assert [(event.uuid, event.bdf, event.code) for event in found] == [
        ("GPU-1", "0000:1a:00", 79),
        ("GPU-0", "0000:1a:00", 31),
    ]
    assert {(event.source, event.wall) for event in found} == {("nvml", clock.wall())}


def test_a_timeout_is_the_normal_answer_and_the_set_is_kept(nv, reader):
    assert [reader.wait_events(0.01) for _ in range(5)] == [()] * 5
    assert (nv.called["nvmlEventSetCreate"], nv.called["nvmlDeviceRegisterEvents"]) == (1, 2)
    waits = [arguments[1] for name, arguments in nv.log if name == "nvmlEventSetWait_v2"]
    assert waits == [10] * 5


def test_only_supported_events_are_registered(nv, reader):
    nv.gpus[0].answers["nvmlDeviceGetSupportedEventTypes"] = 0x7
    reader.wait_events(0.01)
    registered = [arguments[:2] for name, arguments in nv.log if name == "nvmlDeviceRegisterEvents"]
    assert registered == [(nv.gpus[1], 8)]


def test_a_gpu_that_cannot_be_registered_costs_no_other(nv, reader):
    nv.gpus[0].answers["nvmlDeviceRegisterEvents"] = pynvml.NVMLError(3)
    nv.events.append(xid(nv.gpus[1], 63))
    assert [event.code for event in reader.wait_events(0.01)] == [63]


@pytest.mark.parametrize("code", [15, 999, 1, 18], ids=["lost", "unknown", "uninitialized", "mismatch"])
def test_a_wait_that_fails_at_once_does_not_spin(nv, reader, clock, code):
    broken = pynvml.NVMLError(code)
    nv._nvmlEventSetWait_v2 = lambda used, milliseconds: (_ for _ in ()).throw(broken)
    for _ in range(100):
        reader.wait_events(0.0)
    assert nv.called["nvmlEventSetWait_v2"] == nv.called["nvmlEventSetFree"] == 1
    waits = []
    for second in range(1, 140):
        clock.seconds += 1
        reader.wait_events(0.0)
        waits += [second] * (nv.called["nvmlEventSetWait_v2"] - 1 - len(waits))
    assert waits == [1, 3, 7, 15, 31, 63, 123]


def test_the_pause_starts_small_again_once_a_wait_went_well(nv, reader, clock):
    for _ in range(4):
        nv.events.append(pynvml.NVMLError(15))
        reader.wait_events(0.0)
        clock.seconds += 60
    assert reader.wait_events(0.0) == ()
    nv.events.append(pynvml.NVMLError(15))
    reader.wait_events(0.0)
    clock.seconds += 1
    nv.events.append(xid(nv.gpus[0], 48))
    assert [event.code for event in reader.wait_events(0.0)] == [48]


def test_after_a_loss_the_set_is_made_anew_without_that_gpu(nv, reader, clock):
    reader.wait_events(0.01)
    nv.events.append(pynvml.NVMLError(15))
    nv.gpus[0].answers["nvmlDeviceGetSupportedEventTypes"] = pynvml.NVMLError(15)
    assert reader.wait_events(0.01) == ()
    clock.seconds += 1
    nv.events.append(xid(nv.gpus[1], 48))
    assert [event.code for event in reader.wait_events(0.01)] == [48]


def test_a_gpu_found_lost_while_reading_leaves_the_set(nv, reader):
    reader.wait_events(0.01)
    nv.gpus[0].answers["nvmlDeviceGetPowerUsage"] = pynvml.NVMLError(15)
    reader.read("activity", frozenset())
    nv.log.clear()
    reader.wait_events(0.01)
    assert [arguments[0] for name, arguments in nv.log if name == "nvmlDeviceRegisterEvents"] == [nv.gpus[1]]


def test_closing_ends_the_wait_of_the_other_thread(nv, clock):
    nv.gpus.clear()
    reader = Reader(nv, clock, lambda uuid, call: None)
    reader.open()
    waiter = threading.Thread(target=reader.wait_events, args=(60.0,))
    waiter.start()
    reader.close()
    waiter.join(5)
    assert not waiter.is_alive()
    assert reader.wait_events(60.0) == ()
