"""dcgm-exporter's names, made of ours by data/dcgm.toml."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from support.daemon import parse

from gpuhost_exporter import catalogue, compat

# Active lines of dcgm-exporter's etc/default-counters.csv, the driver's version (a label) aside.
DEFAULT_SET = {
    "SM_CLOCK": "gauge", "MEM_CLOCK": "gauge", "MEMORY_TEMP": "gauge", "GPU_TEMP": "gauge", "POWER_USAGE": "gauge",
    "TOTAL_ENERGY_CONSUMPTION": "counter", "PCIE_REPLAY_COUNTER": "counter", "GPU_UTIL": "gauge",
    "MEM_COPY_UTIL": "gauge", "ENC_UTIL": "gauge", "DEC_UTIL": "gauge", "XID_ERRORS": "gauge", "FB_FREE": "gauge",
    "FB_USED": "gauge", "FB_RESERVED": "gauge", "NVLINK_BANDWIDTH_TOTAL": "counter", "VGPU_LICENSE_STATUS": "gauge",
    "UNCORRECTABLE_REMAPPED_ROWS": "counter", "CORRECTABLE_REMAPPED_ROWS": "counter", "ROW_REMAP_FAILURE": "gauge",
}  # fmt: skip
PROFILING = ("GR_ENGINE_ACTIVE", "PIPE_TENSOR_ACTIVE", "DRAM_ACTIVE", "PCIE_TX_BYTES", "PCIE_RX_BYTES")
TYPES = {f"DCGM_FI_DEV_{name}": kind for name, kind in DEFAULT_SET.items()}
TYPES |= {f"DCGM_FI_PROF_{name}": "gauge" for name in PROFILING}
# What the panels of NVIDIA's own dashboard for it ask for.
DASHBOARD = (
    "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_SM_CLOCK", "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_FB_USED", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
)  # fmt: skip
UUID = "GPU-1"
SPECS = catalogue.specs()
LABELS = {
    "gpu": "3", "uuid": UUID, "name": 'H100 "SXM"', "bdf": "0000:1b:00.0", "driver_version": "580.65.06",
    "source": "gpm",
}  # fmt: skip


def sample(name, value, **labels):
    spec = SPECS[name]
    return spec(*({**LABELS, **labels}.get(label, "") for label in spec.labels), value=value)


def identity():
    return [sample("gpuhost_gpu_info", 1), sample("gpuhost_driver_info", 1)]


def rendered(dcgm, *samples, at=10.0):
    text, count = dcgm.block([(at, (*identity(), *samples))], openmetrics=False)
    # The library's parser puts _total to a counter that has none.
    series = {name.removesuffix("_total"): value for (name, _), value in parse(text.decode()).items()}
    assert count == text.decode().count("{")
    return series


@pytest.fixture
def dcgm():
    return compat.Dcgm("dcgm", "node7")


def test_the_default_set_is_given_or_listed_as_not_given_with_its_types():
    fields, not_given = compat.load()
    given = {field.name: field.type for field in fields}
    assert not given.keys() & not_given.keys()
    assert given == {name: kind for name, kind in TYPES.items() if name not in not_given}
    assert set(not_given) == set(TYPES) - set(given)
    assert set(DASHBOARD) <= set(given)


def test_the_table_names_metrics_and_labels_that_there_are():
    for field in compat.load()[0]:
        assert set(field.where) <= set(SPECS[field.made_of].labels), field.name
        assert "uuid" in SPECS[field.made_of].labels, field.name
        assert not field.of_instance or "gpu_instance" in SPECS[field.of_instance].labels, field.name


@pytest.mark.parametrize(
    ("ours", "value", "labels", "theirs", "shown"),
    [
        ("gpuhost_gpu_sm_clock_hertz", 1.98e9, {}, "DCGM_FI_DEV_SM_CLOCK", 1980),
        ("gpuhost_gpu_temperature_celsius", 71.0, {"sensor": "memory"}, "DCGM_FI_DEV_MEMORY_TEMP", 71),
        ("gpuhost_gpu_temperature_celsius", 64.0, {"sensor": "core"}, "DCGM_FI_DEV_GPU_TEMP", 64),
        ("gpuhost_gpu_power_watts", 640.25, {}, "DCGM_FI_DEV_POWER_USAGE", 640.25),
        ("gpuhost_gpu_energy_joules_total", 12.5, {}, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 12500),
        ("gpuhost_gpu_utilization_ratio", 0.97, {}, "DCGM_FI_DEV_GPU_UTIL", 97),
        ("gpuhost_gpu_encoder_utilization_ratio", 0.25, {}, "DCGM_FI_DEV_ENC_UTIL", 25),
        ("gpuhost_gpu_decoder_utilization_ratio", 0.5, {}, "DCGM_FI_DEV_DEC_UTIL", 50),
        ("gpuhost_gpu_memory_used_bytes", 70 * 2**30, {}, "DCGM_FI_DEV_FB_USED", 71680),
        ("gpuhost_gpu_tensor_active_ratio", 0.45, {}, "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 0.45),
        ("gpuhost_gpu_pcie_bytes_per_second", 2.6e9, {"direction": "tx"}, "DCGM_FI_PROF_PCIE_TX_BYTES", 2_600_000_000),
        (
            "gpuhost_gpu_remapped_rows_total",
            2,
            {"type": "uncorrected"},
            "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
            2,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_is_in_dcgms_unit_and_nothing_else_comes_of_it(dcgm, ours, value, labels, theirs, shown):
    found = rendered(dcgm, sample(ours, value, **labels))
    assert found.pop(theirs) == shown
    assert not found


def test_labels_are_dcgm_exporters():
    text, _ = compat.Dcgm("dcgm", "node7").block(
        [(1.0, (*identity(), sample("gpuhost_gpu_power_watts", 1)))], openmetrics=False
    )
    ((_, labels),) = parse(text.decode())
    assert dict(labels) == {
        "gpu": "3",
        "UUID": UUID,
        "pci_bus_id": "00000000:1B:00.0",
        "device": "nvidia3",
        "modelName": 'H100 "SXM"',
        "hostname": "node7",
        "Hostname": "node7",
        "DCGM_FI_DRIVER_VERSION": "580.65.06",
    }


def test_profiling_names_are_not_filled_with_nvmls_utilization(dcgm):
    by_nvml = sample("gpuhost_gpu_utilization_source_info", 1, source="nvml")
    by_gpm = sample("gpuhost_gpu_utilization_source_info", 1, source="gpm")
    busy = sample("gpuhost_gpu_utilization_ratio", 0.5)
    assert set(rendered(dcgm, busy, by_nvml)) == {"DCGM_FI_DEV_GPU_UTIL"}
    assert rendered(dcgm, busy, by_gpm)["DCGM_FI_PROF_GR_ENGINE_ACTIVE"] == 0.5


def test_nvlink_bandwidth_is_a_rate_of_both_directions_and_not_there_before_it_is_known(dcgm):
    def scraped(at, each):
        moved = [sample("gpuhost_gpu_nvlink_bytes_total", each, direction=way) for way in ("rx", "tx")]
        return rendered(dcgm, *moved, at=at).get("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL")

    assert scraped(10.0, 0) is None
    assert scraped(12.0, 900e9) == round(900e9 / 1024 / 1000)  # 450 GB/s each way
    assert scraped(12.0, 900e9) == round(900e9 / 1024 / 1000), "the same snapshot scraped again"
    assert scraped(13.0, 0) is None, "the driver was loaded anew"


def test_the_last_xid_is_0_before_there_was_one_and_then_the_newest(dcgm):
    watched = sample("gpuhost_xid_events_total", 0, severity="critical")
    old = sample("gpuhost_xid_last_timestamp_seconds", 100, xid="79")
    new = sample("gpuhost_xid_last_timestamp_seconds", 200, xid="31")
    assert rendered(dcgm) == {}
    assert rendered(dcgm, watched) == {"DCGM_FI_DEV_XID_ERRORS": 0}
    assert rendered(dcgm, watched, new, old) == {"DCGM_FI_DEV_XID_ERRORS": 31}


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (None, {"err_code": "0", "err_msg": "No Error"}),
        ("31", {"err_code": "31", "err_msg": "GPU memory page fault"}),
        ("999", {"err_code": "999", "err_msg": "Unknown Error"}),
        ("other", {"err_code": "0", "err_msg": "No Error"}),
    ],
)
def test_an_xid_has_its_code_and_meaning_as_labels(dcgm, last, told):
    samples = [sample("gpuhost_xid_events_total", 0, severity="critical")]
    samples += [sample("gpuhost_xid_info", 1, xid="31", meaning="GPU memory page fault")]
    samples += [sample("gpuhost_xid_last_timestamp_seconds", 100, xid=last)] if last else []
    text, _ = dcgm.block([(1.0, (*identity(), *samples))], openmetrics=False)
    ((_, labels),) = parse(text.decode())
    assert {name: text for name, text in labels if name.startswith("err_")} == told


def test_instances_take_the_place_of_their_gpu_and_each_is_one_row(dcgm):
    def instance(number, compute, profile, used):
        place = {"gpu_instance": str(number), "compute_instance": str(compute)}
        yield sample("gpuhost_mig_instance_info", 1, **place, instance_uuid=f"MIG-{number}-{compute}", profile=profile)
        yield sample("gpuhost_mig_instance_memory_used_bytes", used * 2**20, **place)

    told = [*instance(7, 0, "1g.10gb", 100), *instance(2, 0, "1c.3g.40gb", 300), *instance(2, 1, "1c.3g.40gb", 300)]
    whole = [sample("gpuhost_gpu_memory_used_bytes", 400 * 2**20), sample("gpuhost_gpu_memory_free_bytes", 2**30)]
    text, count = dcgm.block([(1.0, (*identity(), *told, *whole))], openmetrics=False)
    rows = {
        (name, dict(labels).get("GPU_I_PROFILE"), dict(labels).get("GPU_I_ID")): value
        for (name, labels), value in parse(text.decode()).items()
    }
    assert rows == {
        ("DCGM_FI_DEV_FB_USED", "1g.10gb", "7"): 100,
        ("DCGM_FI_DEV_FB_USED", "3g.40gb", "2"): 300,
        ("DCGM_FI_DEV_FB_FREE", None, None): 1024,
    }
    assert count == 3


def test_a_gpu_without_an_identity_has_no_series(dcgm):
    text, count = dcgm.block([(1.0, (sample("gpuhost_gpu_power_watts", 1),))], openmetrics=False)
    assert (text, count) == (b"", 0)


def test_openmetrics_takes_the_counters_that_do_not_end_in_total(dcgm):
    counted = sample("gpuhost_gpu_energy_joules_total", 1)
    text, _ = dcgm.block([(1.0, (*identity(), counted))], openmetrics=True)
    (family,) = parse_openmetrics(text.decode() + "# EOF\n")
    assert (family.name, family.type) == ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "unknown")
