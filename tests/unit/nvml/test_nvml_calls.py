"""Errors typed, refusals remembered, calls marked: what stands between pynvml and everything else."""

from __future__ import annotations

import pickle

import pynvml
import pytest

from gpuhost_exporter.errors import Absent, Denied, Gone, Lost, Malformed, NeedsReset, Transient, Unsupported
from gpuhost_exporter.sources.nvml.calls import REMEMBERED_SECONDS, Calls, Device, DriverDown, code_of

NAME = "nvmlDeviceGetPowerUsage"


@pytest.fixture
def calls(nv, clock, marks):
    return Calls(nv, clock, lambda uuid, call: marks.append((uuid, call)))


@pytest.fixture
def device(nv):
    return Device(0, "GPU-0", "GPU-0", nv.gpus[0])


def fail_with(nv, code):
    nv.gpus[0].answers[NAME] = pynvml.NVMLError(code)


KINDS = {
    2: Unsupported, 3: Unsupported, 4: Denied, 6: Absent, 7: Transient, 10: Transient, 13: Unsupported, 14: Transient,
    15: Lost, 16: NeedsReset, 17: Transient, 19: Transient, 20: Transient, 21: Absent, 25: Unsupported,
    26: Unsupported, 27: Transient, 28: Gone, 29: Transient, 999: Transient, 12345: Transient,
}  # fmt: skip


@pytest.mark.parametrize(("code", "kind"), KINDS.items(), ids=str)
def test_each_code_has_its_type_and_keeps_its_number(nv, calls, device, code, kind):
    fail_with(nv, code)
    with pytest.raises(kind) as caught:
        calls.ask(device, NAME)
    assert type(caught.value) is kind
    assert code_of(caught.value) == code
    assert str(caught.value).startswith(NAME)


STATES = {1: "error", 9: "no_driver", 12: "no_library", 18: "mismatch"}


@pytest.mark.parametrize(("code", "state"), STATES.items(), ids=str)
def test_what_concerns_the_whole_driver_is_no_error_of_one_gpu(nv, calls, device, code, state):
    fail_with(nv, code)
    with pytest.raises(DriverDown) as caught:
        calls.ask(device, NAME)
    assert caught.value.state == state


def test_driver_down_crosses_the_pipe():
    down = pickle.loads(pickle.dumps(DriverDown("mismatch", "nvmlInit: differs")))
    assert (down.state, str(down)) == ("mismatch", "nvmlInit: differs")


@pytest.mark.parametrize("code", [2, 3, 4, 13, 25, 26])
def test_a_refusal_is_asked_once_in_ten_minutes(nv, calls, device, clock, code):
    fail_with(nv, code)
    for _ in range(50):
        clock.seconds += 10
        with pytest.raises(KINDS[code]):
            calls.ask(device, NAME)
    assert nv.called[NAME] == 1
    clock.seconds += REMEMBERED_SECONDS
    nv.gpus[0].answers[NAME] = 1000
    assert calls.ask(device, NAME) == 1000


@pytest.mark.parametrize("code", [6, 10, 15, 16, 17, 28, 999])
def test_what_may_pass_is_asked_again_at_once(nv, calls, device, code):
    fail_with(nv, code)
    for _ in range(3):
        with pytest.raises(KINDS[code]):
            calls.ask(device, NAME)
    assert nv.called[NAME] == 3


def test_a_refusal_concerns_one_gpu_and_these_numbers(nv, calls, device):
    nv.gpus[0].answers["nvmlDeviceGetClockInfo"] = lambda clock: pynvml.NVMLError(3) if clock == 1 else 900
    with pytest.raises(Unsupported):
        calls.ask(device, "nvmlDeviceGetClockInfo", 1)
    assert calls.ask(device, "nvmlDeviceGetClockInfo", 2) == 900
    assert calls.ask(Device(1, "GPU-1", "GPU-1", nv.gpus[1]), "nvmlDeviceGetClockInfo", 1) == 1755


def test_a_remembered_refusal_keeps_its_number(nv, calls, device):
    fail_with(nv, 4)
    codes = []
    for _ in range(2):
        with pytest.raises(Denied) as caught:
            calls.ask(device, NAME)
        codes.append(code_of(caught.value))
    assert codes == [4, 4]


def test_a_changed_device_is_asked_anew(nv, calls, device):
    fail_with(nv, 3)
    with pytest.raises(Unsupported):
        calls.ask(device, NAME)
    nv.gpus[0].answers[NAME] = 7
    calls.forget(device)
    assert calls.ask(device, NAME) == 7


def test_an_old_binding_without_the_function_is_no_failure(nv, calls, device):
    nv.absent.add("nvmlDeviceGetMarginTemperature")
    with pytest.raises(Unsupported):
        calls.ask(device, "nvmlDeviceGetMarginTemperature")


def test_the_bindings_own_mismatch_exception_means_an_old_driver(nv, calls, device):
    nv.gpus[0].answers[NAME] = pynvml.NVMLLibraryMismatchError("too old")
    with pytest.raises(Unsupported):
        calls.ask(device, NAME)


@pytest.mark.parametrize(
    "raised", [TypeError("N/A"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")], ids=["type", "text"]
)
def test_where_the_binding_trips_the_answer_was_malformed(nv, calls, device, raised):
    nv.gpus[0].answers[NAME] = raised
    with pytest.raises(Malformed) as caught:
        calls.ask(device, NAME)
    assert code_of(caught.value) == 0


def test_the_call_is_marked_before_it_is_made(nv, calls, device, marks):
    seen = []
    nv.gpus[0].answers[NAME] = lambda: seen.append(list(marks)) or 1
    calls.ask(device, NAME)
    assert seen == [[("GPU-0", NAME)]]
