"""The gpu_health collector: what is told becomes a series, what is not stays absent."""

from __future__ import annotations

import pytest
from support.gpus import NOW, FakeNvml, gpu, host_of, lost, of, poll, reading, uuids

from gpuhost_exporter.collectors.gpu_health import RECOVERY_ACTIONS, GpuHealthCollector
from gpuhost_exporter.sources.nvml.readings import Batch, Health


def health(index=0, **told):
    return reading(Health, uuid=f"GPU-{index}", at=NOW, **told)


def samples(*readings):
    return poll(GpuHealthCollector(host_of(FakeNvml(gpu(0), gpu(1), health=readings))))


@pytest.mark.parametrize(
    ("field", "told", "name"),
    [
        ("ecc_enabled", True, "gpu_ecc_enabled"),
        ("ecc_pending", False, "gpu_ecc_enabled_after_reset"),
        ("sram_threshold_exceeded", True, "gpu_sram_threshold_exceeded"),
        ("remap_pending", True, "gpu_row_remap_pending"),
        ("remap_failed", False, "gpu_row_remap_failed"),
        ("persistence", False, "gpu_persistence_enabled"),
        ("mig_enabled", False, "gpu_mig_enabled"),
        ("mig_pending", True, "gpu_mig_enabled_after_reset"),
        ("power_limit_watts", 650.0, "gpu_power_limit_watts"),
        ("power_limit_default_watts", 700.0, "gpu_power_limit_default_watts"),
        ("power_limit_max_watts", 700.0, "gpu_power_limit_max_watts"),
        ("sm_clock_limit_hertz", 1.2e9, "gpu_sm_clock_limit_hertz"),
        ("clocks_locked", True, "gpu_clocks_locked"),
        ("encoder_ratio", 0.25, "gpu_encoder_utilization_ratio"),
        ("decoder_ratio", 0.5, "gpu_decoder_utilization_ratio"),
    ],
    ids=lambda value: value if isinstance(value, str) and not value.startswith("gpu_") else "",
)
def test_each_field_becomes_its_series_and_only_where_it_is_told(field, told, name):
    assert samples(health(**{field: told})) == {name: {("0", "GPU-0"): float(told)}}


def test_a_gpu_that_tells_nothing_has_no_series():
    assert samples(health()) == {}


@pytest.mark.parametrize(
    ("limit", "default", "lowered"),
    [(650.0, 700.0, 1), (700.0, 700.0, 0), (720.0, 700.0, 0), (700.0, None, None), (None, 700.0, None)],
)
def test_a_power_limit_is_lowered_when_it_is_below_the_default(limit, default, lowered):
    found = samples(health(power_limit_watts=limit, power_limit_default_watts=default))
    assert of(found, "gpu_power_limit_lowered") == lowered


def test_errors_of_this_boot_and_of_the_gpus_life_are_two_names():
    told = (("corrected", "volatile", 3), ("corrected", "aggregate", 90), ("uncorrected", "volatile", 0))
    assert samples(health(ecc_errors=told)) == {
        "gpu_ecc_errors_total": {("0", "GPU-0", "corrected"): 3, ("0", "GPU-0", "uncorrected"): 0},
        "gpu_ecc_lifetime_errors_total": {("0", "GPU-0", "corrected"): 90},
    }


def test_remapping_is_told_by_cause_and_by_what_banks_have_left():
    found = samples(health(remapped_rows=(("uncorrected", 2),), remap_banks=(("max", 638), ("none", 2))))
    assert found == {
        "gpu_remapped_rows_total": {("0", "GPU-0", "uncorrected"): 2},
        "gpu_row_remap_banks": {("0", "GPU-0", "max"): 638, ("0", "GPU-0", "none"): 2},
    }


@pytest.mark.parametrize("action", ["none", "drain_and_reset", "other"])
def test_one_recovery_action_is_current_and_an_unknown_one_is_not_hidden(action):
    found = samples(health(recovery_action=action))["gpu_recovery_action"]
    assert {labels[2] for labels, value in found.items() if value} == {action}
    assert {labels[2] for labels in found} == {*RECOVERY_ACTIONS, action}


def test_a_lost_gpus_health_is_absent_and_its_siblings_stays():
    batch = Batch(NOW, (health(1, ecc_enabled=True),), (lost("GPU-0"),))
    collector = GpuHealthCollector(host_of(FakeNvml(gpu(0), gpu(1), health=batch)))
    assert uuids(poll(collector)) == {"GPU-1"}
    assert collector.errors == {"lost": 1}


def test_the_readings_are_posted_for_the_pcie_and_nvlink_collectors():
    told = health(mig_enabled=True)
    collector = GpuHealthCollector(host_of(FakeNvml(gpu(), health=[told])))
    poll(collector)
    assert collector.host.board.last("health", tuple, collector.host.clock.now()) == (told,)
