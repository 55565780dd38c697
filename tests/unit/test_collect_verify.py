"""What the last verify found, as series; none where there was none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gpuhost_exporter.collectors import verify
from gpuhost_exporter.collectors.verify import VerifyCollector
from gpuhost_exporter.verify.result import Result, Run, keep

NOW = 1795361000.0
RUN = Run(
    NOW,
    "full",
    (
        Result("storage write", "md0", "warn", value=18e9, unit="bytes_per_second", target=20e9, baseline=21e9),
        Result("NCCL all-reduce", "", "pass", value=470e9, unit="bytes_per_second"),
        Result("MPI all-reduce", "", "pass", value=2.3e-6, unit="seconds", target=5e-6),
        Result("PCIe", "GPU 3", "fail", "5 x8", "5 x16"),
        Result("NUMA", "", "skipped", why="the host does not tell"),
    ),
)


def series(data):
    collector = VerifyCollector(
        SimpleNamespace(state=SimpleNamespace(load=lambda name: data if name == "verify" else {}))
    )
    return {(spec, labels): value for spec, labels, value in collector.poll(0.0)}


def test_figures_targets_and_baselines_carry_check_and_device():
    found = series(keep({}, RUN))
    assert found[verify.TIMESTAMP, ("full",)] == NOW
    assert found[verify.ACCEPTED, ()] == 0
    write = ("storage write", "md0")
    assert [found[spec, write] for spec in (verify.RATE, verify.RATE_TARGET, verify.RATE_BASELINE)] == [
        18e9,
        20e9,
        21e9,
    ]
    assert found[verify.LATENCY, ("MPI all-reduce", "")] == 2.3e-6
    assert {labels for spec, labels in found if spec is verify.RATE} == {write, ("NCCL all-reduce", "")}
    assert {labels for spec, labels in found if spec is verify.RATE_TARGET} == {write}


def test_what_warns_or_fails_has_a_series_and_what_passes_has_none():
    found = series(keep({}, RUN))
    assert {labels for spec, labels in found if spec is verify.PROBLEM} == {
        ("storage write", "md0", "warn"),
        ("PCIe", "GPU 3", "fail"),
    }
    assert {labels: value for (spec, labels), value in found.items() if spec is verify.CHECKS} == {
        ("pass",): 2,
        ("warn",): 1,
        ("fail",): 1,
        ("skipped",): 1,
    }


@pytest.mark.parametrize("data", [{}, {"last": None}, {"last": {"at": "noon"}}, {"format": 7, "runs": []}])
def test_a_host_that_was_not_verified_has_no_series(data):
    assert series(data) == {}
