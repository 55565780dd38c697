"""The targets collector: the guide's figures, and each GPU's by its product."""

from __future__ import annotations

from support.gpus import FakeNvml, gpu, host_of, of, poll

from gpuhost_exporter.collectors.targets import TargetsCollector


def collected(*gpus, **targets):
    return poll(TargetsCollector(host_of(FakeNvml(*gpus), targets=targets)))


def test_each_gpu_is_measured_by_its_own_product():
    found = collected(gpu(0), gpu(1, "NVIDIA H200"))
    assert of(found, "gpu_product_known") == 1
    assert of(found, "target_nvlink_bandwidth_bytes_per_second") == 900e9
    assert of(found, "target_memory_bandwidth_bytes_per_second") == 3.35e12
    assert of(found, "target_memory_bandwidth_bytes_per_second", index=1) == 4.8e12
    assert of(found, "target_power_watts") == 700
    assert of(found, "target_tensor_clock_hertz") == 1.83e9


def test_an_unknown_product_is_said_to_be_unknown_and_has_no_target():
    found = collected(gpu(0, "NVIDIA H100"))
    assert of(found, "gpu_product_known") == 0
    assert not {name for name, series in found.items() if ("0", "GPU-0") in series} - {"gpu_product_known"}


def test_a_product_without_nvlink_has_no_nvlink_target():
    found = collected(gpu(0, "NVIDIA L40S"))
    assert of(found, "target_memory_bandwidth_bytes_per_second") == 864e9
    assert "target_nvlink_bandwidth_bytes_per_second" not in found
    assert "target_tensor_clock_hertz" not in found, "no figure is known for it"


def test_the_guides_figures_are_there_on_a_host_without_gpus():
    assert collected() == {
        "target_storage_bytes_per_second": {("good",): 20e9, ("poor",): 10e9, ("raid",): 30e9},
        "target_pcie_fallback_factor": {("low",): 10, ("high",): 14},
        "target_roce_port_bytes_per_second": {(): 12.5e9},
        "target_collective_latency_seconds": {(): 5e-6},
        "target_utilization_ratio": {
            ("metal", "low"): 0.9,
            ("metal", "high"): 0.97,
            ("vm", "low"): 0.65,
            ("vm", "high"): 0.85,
        },
        "target_dedicated_utilization_ratio": {(): 0.6},
        "target_dedicated_gpu_seconds": {(): 4 * 3600},
        "target_dedicated_requests_per_second": {(): 10},
        "target_checkpoint_share_ratio": {(): 1 / 6},
        "target_checkpoint_bytes": {(): 140e9},
    }


def test_the_sites_figures_take_their_place():
    found = collected(gpu(0, "something new"), storage_good_bytes_per_second=14e9, tdp_watts=500)
    assert found["target_storage_bytes_per_second"]["good",] == 14e9
    assert of(found, "target_power_watts") == 500
    assert of(found, "gpu_product_known") == 0
