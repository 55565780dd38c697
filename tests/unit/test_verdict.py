"""Which findings drain, and what nobody vouches for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpuhost_exporter import findings, kinds, network_findings, xids
from gpuhost_exporter.collectors import driver, gpu_health, inventory
from gpuhost_exporter.exposition import SIMULATED
from gpuhost_exporter.runner import AGE, ERRORS, UP
from gpuhost_exporter.status import build
from gpuhost_exporter.verdict import verdict

GPU = ("3", "GPU-3")
READ = tuple(UP(name) for name in ("driver", "gpu_health", "nvlink", "fabric"))
WELL = (
    SIMULATED("", value=0),
    driver.NVML_STATE("ok"),
    driver.GPU_UP(*GPU),
    driver.GPU_STATE(*GPU, "ok"),
    *READ,
    UP("nvme", value=0),
    ERRORS("nvme", "absent"),
)


def told(*samples, sampling=True):
    return verdict(build(samples, now=1795361000.0), sampling=sampling)


def test_a_host_that_is_well_is_fit():
    assert told(*WELL) == ("fit", "The GPU delivers")


def test_a_warning_is_said_and_does_not_drain():
    assert told(*WELL, gpu_health.ECC_ENABLED(*GPU, value=0)) == ("fit", "GPU 3: ECC is off: memory errors stay unseen")


def test_what_drains_makes_it_unfit_and_leads():
    samples = (*WELL, gpu_health.REMAP_FAILED(*GPU), gpu_health.SRAM_THRESHOLD(*GPU))
    assert told(*samples) == ("unfit", "GPU 3: a broken memory row could not be replaced, and 1 more")


def test_what_drains_counts_though_something_else_cannot_be_read():
    samples = (*WELL, UP("nvlink", value=0), gpu_health.REMAP_FAILED(*GPU))
    assert told(*samples, sampling=False)[0] == "unfit"


@pytest.mark.parametrize(
    ("samples", "sampling", "reason"),
    [
        pytest.param(
            [*WELL, SIMULATED("vm:idle")], True, "the exporter serves a simulated host, vm:idle", id="simulated"
        ),
        pytest.param(
            [*WELL, SIMULATED("vm"), gpu_health.REMAP_FAILED(*GPU)],
            True,
            "serves a simulated host, vm",
            id="simulated fault",
        ),
        pytest.param(WELL, False, "no collector of the exporter has finished a poll for long", id="sampler dead"),
        pytest.param([*WELL, UP("gpu_health", value=0)], True, "not read: gpu_health", id="not read yet"),
        pytest.param(
            [*WELL, UP("fabric", value=0), ERRORS("fabric", "malformed")], True, "not read: fabric", id="failing"
        ),
        pytest.param([driver.NVML_STATE("starting"), *READ], True, "Nothing is known of the GPUs yet", id="starting"),
        pytest.param(
            [driver.NVML_STATE("released"), *(UP(name, value=0) for name in ("driver", "nvlink"))],
            True,
            "not read: driver, nvlink (Driver: NVML is released by request)",
            id="released",
        ),
    ],
)
def test_nobody_vouches_for_what_is_not_known(samples, sampling, reason):
    word, said = told(*samples, sampling=sampling)
    assert (word, reason in said) == ("unknown", True), said


def test_a_host_without_gpus_is_fit_for_what_it_is():
    samples = [driver.NVML_STATE("no_library"), inventory.GPUS_EXPECTED(value=0), AGE("driver", value=1), UP("driver")]
    assert told(*samples) == ("fit", "No GPU is expected on this host")


def test_every_finding_has_a_kind_in_the_table_and_every_kind_is_found_somewhere():
    source = "".join(Path(module.__file__).read_text() for module in (findings, network_findings))
    named = set(re.findall(r'"([a-z][a-z0-9_]+)"', source)) | set(findings._DRIVER)
    named |= {f"gpu_{state}" for state in findings._GPU} | {f"fabric_{word}" for word in ("unhealthy", "limited")}
    named |= {f"xid_{severity}" for severity in xids.SEVERITIES}
    assert set(kinds.KINDS) <= named


def test_only_what_is_critical_drains():
    assert {kind.severity for kind in kinds.KINDS.values() if kind.drains} == {"critical"}


def test_the_table_says_of_each_kind_whether_it_drains():
    page = kinds.drains_page()
    assert (Path(__file__).parents[2] / "exporter" / "DRAINS.md").read_text() == page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(kinds.KINDS)
    assert "| `gpu_lost` | critical | yes | a GPU fell off the bus |" in rows
    assert rows[0].split(" | ")[1:3] == ["critical", "yes"]
    assert rows[-1].split(" | ")[1:3] == ["info", "no"]
