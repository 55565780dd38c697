"""The recorder of tests/hardware over simulated hosts: what it counts, what it hides, what it writes."""

from __future__ import annotations

import ctypes
import functools
import json
import re
import time
from types import SimpleNamespace

import pynvml
import pytest
from hardware import record
from hardware.tape import Pseudonyms, Tape, layout
from hypothesis import given
from hypothesis import strategies as st
from support.simulated import arguments

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sim import catalogue, control
from gpuhost_exporter.sim.nvml import SimNvml

TICKS = 2
PERIOD = 0.12  # seconds; GPM wants 0.1 between samples
GPUS = 8
PER_GPU = record.ROUNDS * GPUS
TIMED = {"first_microseconds", "microseconds"}


def recorded(folder, host, scenario="steady", elapsed=0.0):
    arguments(folder, host, scenario, elapsed=elapsed)
    nv = SimNvml(str(folder / "control.json"), SystemClock())
    return record.record(nv, TICKS, period=PERIOD, simulated=f"{host}:{scenario}")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("h100x8"), "h100x8")


@pytest.fixture(scope="module")
def document(text):
    return json.loads(text)


@pytest.fixture(scope="module")
def mig_text(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("mig"), "mig")


def numbers(entry):
    return entry["calls"], entry["answered"], entry["errors"]


def test_every_call_of_the_reader_is_counted_with_its_answers(document):
    calls = document["reader"]["calls"]
    assert numbers(calls["nvmlInit()"]) == (1, 1, {})
    power = calls["nvmlDeviceGetPowerUsage()"]
    assert numbers(power) == (TICKS * GPUS, TICKS * GPUS, {})
    assert power["min"] <= min(power["first"], power["last"]) <= max(power["first"], power["last"]) <= power["max"]
    assert calls["nvmlDeviceGetClockInfo(2)"]["last"] == 2619
    assert calls["nvmlDeviceGetGpuFabricInfoV(c_nvmlGpuFabricInfo_v3_t)"]["last"]["state"] == 3


def test_errors_are_counted_by_nvmls_number(document):
    questions = document["questions"]
    assert numbers(questions["calls"]["nvmlDeviceGetNvLinkState(17)"]) == (PER_GPU, PER_GPU, {})
    assert numbers(questions["calls"]["nvmlDeviceGetNvLinkState(18)"]) == (PER_GPU, 0, {"2": PER_GPU})
    refused = questions["fields"]["251/0"]
    assert numbers(refused) == (2 * PER_GPU, 0, {"3": 2 * PER_GPU})  # alone, and with all the others
    assert not {"first", "last", "min", "max"} & set(refused)
    assert numbers(questions["gpm"]["6"]) == (2 * GPUS, 0, {"3": 2 * GPUS})


def test_fields_and_metrics_are_told_apart_by_id_and_scope(document):
    fields = document["questions"]["fields"]
    assert set(fields) == {f"{field}/{scope}" for field, scope in record.FIELDS}
    assert fields[f"138/{record.ALL_LINKS}"]["last"] > 17 * fields["138/0"]["last"]
    assert set(document["questions"]["gpm"]) == {str(metric) for metric in record.GPM_METRICS}
    assert 0 < document["reader"]["gpm"]["5"]["min"] <= document["reader"]["gpm"]["5"]["max"] <= 100


def test_readings_are_timed_whole_by_subject(document):
    reads = document["reads"]
    assert set(reads) == {"open", "activity", *record.RARE_SUBJECTS}
    assert (reads["open"]["reads"], reads["activity"]["reads"]) == (1, TICKS)
    asked = reads["activity"]["calls"]
    assert asked[0] > 8 * GPUS, "each GPU is read in full each time"
    assert all(read["first_microseconds"] > 0 for read in reads.values())
    assert [gpu["gpm"] for gpu in document["gpus"]] == ["ok"] * GPUS


def test_a_lost_gpu_shows_as_error_and_fault_and_costs_no_sibling(tmp_path):
    document = json.loads(recorded(tmp_path, "h100x8", "gpu-lost", elapsed=30.0))
    calls = document["reader"]["calls"]
    assert numbers(calls["nvmlDeviceGetHandleByIndex(3)"]) == (1, 0, {"15": 1})
    assert document["faults"]["open: lost 15"] == 1
    assert numbers(calls["nvmlDeviceGetPowerUsage()"]) == (TICKS * (GPUS - 1), TICKS * (GPUS - 1), {})
    assert [gpu["index"] for gpu in document["gpus"]] == [0, 1, 2, 4, 5, 6, 7]


def test_what_the_binding_trips_over_is_counted_by_the_exceptions_name(tmp_path):
    calls = json.loads(recorded(tmp_path, "oldkernel"))["reader"]["calls"]
    assert numbers(calls["nvmlDeviceGetComputeRunningProcesses()"]) == (GPUS, 0, {"NVMLLibraryMismatchError": GPUS})
    assert numbers(calls["nvmlDeviceGetMarginTemperature()"]) == (GPUS, 0, {"13": GPUS})


@pytest.mark.parametrize(("host", "fixture"), [("h100x8", "text"), ("mig", "mig_text")])
def test_no_serial_number_and_no_uuid_is_in_a_recording(host, fixture, request):
    text = request.getfixturevalue(fixture)
    spec = catalogue.host(host)
    secrets = {secret for gpu in spec.gpus for secret in (gpu.uuid, gpu.serial, *(cut.uuid for cut in gpu.mig))}
    assert len(secrets) >= 2 * GPUS
    assert [secret for secret in secrets if (secret.partition("-")[2] or secret) in text] == []
    document = json.loads(text)
    assert document["gpus"][7]["uuid"] != document["gpus"][6]["uuid"]
    assert document["reader"]["calls"]["nvmlDeviceGetSerial()"]["last"] == document["gpus"][7]["serial"]
    assert document["gpus"][7]["serial"] == "0000000000008"


def test_the_instances_of_a_gpu_have_stand_ins_of_their_form(mig_text):
    uuids = json.loads(mig_text)["reader"]["calls"]["nvmlDeviceGetUUID()"]
    assert re.fullmatch(r"MIG-00000000-0000-0000-0000-[0-9a-f]{12}", uuids["last"])


def test_a_uuid_in_bytes_and_in_text_has_one_stand_in():
    names = Pseudonyms()
    raw = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
    block = pynvml.c_nvmlGpuFabricInfo_v3_t()
    block.clusterUuid = type(block.clusterUuid)(*bytes.fromhex(raw.replace("-", "")))
    assert names.plain(block, "fabric")["clusterUuid"] == [*[0] * 15, 1]
    assert names.plain(raw.upper(), "") == "00000000-0000-0000-0000-000000000001"
    assert names.plain(pynvml.c_nvmlGpuFabricInfo_v3_t(), "fabric")["clusterUuid"] == [0] * 16, "none stays none"


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        pytest.param("nvmlSystemGetProcessName", "/home/ada/secret.py", "process-1", id="process name"),
        pytest.param("nvmlDeviceGetSerial", "1650522000001", "0000000000001", id="serial number"),
        pytest.param("nvmlDeviceGetName", "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", id="product"),
        pytest.param("metric", float("nan"), "nan", id="not a number"),
        pytest.param("state", ctypes.c_uint(7), 7, id="number of the library's"),
        pytest.param("handle", ctypes.pointer(ctypes.c_int()), "LP_c_int", id="handle"),
        pytest.param(
            "rows", [SimpleNamespace(pid=9, usedGpuMemory=None)], [{"pid": 9, "usedGpuMemory": None}], id="rows"
        ),
        pytest.param("busId", b"\xff0", "\ufffd0", id="bytes that are no text"),
        pytest.param("clocks", list(range(40)), list(range(16)), id="long list"),
    ],
)
def test_answers_become_json(name, value, plain):
    assert Pseudonyms().plain(value, name) == plain


def untimed(value):
    if isinstance(value, dict):
        return {key: None if key in TIMED else untimed(item) for key, item in value.items()}
    return value


def test_a_host_at_rest_is_recorded_alike_twice(tmp_path):
    path = str(tmp_path / "control.json")
    control.create(path, "l40s", "steady", SystemClock(), frozen=600.0)
    first, second = (json.loads(record.record(SimNvml(path, SystemClock()), 2, period=PERIOD)) for _ in range(2))
    for part in ("host", "gpus", "faults", "questions"):
        assert json.dumps(untimed(first[part])) == json.dumps(untimed(second[part])), "in the same order too"
    assert list(first["reader"]["calls"]) == sorted(first["reader"]["calls"]) == list(second["reader"]["calls"])


def test_a_call_is_one_line_and_a_whole_host_small(text):
    lines = [line for line in text.splitlines() if '"nvmlDeviceGetNvLinkState(4)"' in line]
    assert len(lines) == 2  # the reader's and the question
    assert all(json.loads("{" + line.rstrip(",") + "}") for line in lines)
    assert len(text) < 200_000


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda item: st.lists(item) | st.dictionaries(st.text(), item))
)
def test_the_layout_is_json_whatever_it_lays_out(value):
    assert json.loads(layout(value)) == value


class Slow:
    """A binding that takes 20 ms the first time."""

    NVMLError = pynvml.NVMLError
    NVMLLibraryMismatchError = pynvml.NVMLLibraryMismatchError
    NVML_CONSTANT = 7
    asked = 0

    def nvmlDeviceGetPowerUsage(self, handle):
        self.asked += 1
        if self.asked == 1:
            time.sleep(0.02)
        if self.asked == 3:
            raise pynvml.NVMLError(999)
        return 1000 * self.asked


def test_the_first_call_is_timed_apart_and_failures_are_timed_too():
    tape = Tape(Slow(), Pseudonyms())
    answers = [tape.nvmlDeviceGetPowerUsage("handle") for _ in range(2)]
    with pytest.raises(pynvml.NVMLError) as raised:
        tape.nvmlDeviceGetPowerUsage("handle")
    entry = tape.document()["calls"]["nvmlDeviceGetPowerUsage()"]
    assert (answers, raised.value.value) == ([1000, 2000], 999), "the tape changes neither answers nor errors"
    assert entry["first_microseconds"] > 20_000 > entry["microseconds"]["max"]
    assert (numbers(entry), entry["min"], entry["max"]) == ((3, 2, {"999": 1}), 1000, 2000)
    assert (tape.NVML_CONSTANT, tape.asked) == (7, 3)
    assert 0 < tape.noting < 1e9
    assert not hasattr(tape, "nvmlDeviceGetSomethingNewer")


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        pytest.param("EnableMSI: 1\nRmProfilingAdminOnly: 1\nTCEBypassMode: 0\n", 1, id="administrators only"),
        pytest.param("RmProfilingAdminOnly: 0\n", 0, id="everybody"),
        pytest.param("RmProfilingAdminOnly: maybe\n", None, id="garbage"),
        pytest.param(None, None, id="no driver"),
    ],
)
def test_who_may_profile_is_read_from_the_drivers_parameters(parameters, told, tmp_path):
    file = tmp_path / "params"
    if parameters is not None:
        file.write_text(parameters)
    assert record.profiling_admin_only(file) == told


def test_a_copied_binding_has_no_version(monkeypatch):
    assert re.match(r"\d+\.", record.binding_version())
    monkeypatch.setattr("sys.path", [])
    assert record.binding_version() is None


def test_the_program_writes_a_simulated_host_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(record, "record", functools.partial(record.record, period=PERIOD))
    out = tmp_path / "out.json"
    assert record.main([str(out), "--seconds", "1", "--simulate", "l40s:idle"]) == 0
    host = json.loads(out.read_text())["host"]
    assert (host["simulated"], host["seconds"]) == ("l40s:idle", 1)
    assert {"driver", "nvml", "binding", "uid", "capabilities", "profiling_admin_only"} <= set(host)
    assert capsys.readouterr().out.startswith(str(out))


def test_without_a_driver_there_is_one_line_and_no_file(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert record.main([str(out), "--simulate", "nogpu:steady"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()
