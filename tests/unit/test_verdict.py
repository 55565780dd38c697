"""Which findings drain, and what nobody vouches for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.rules import alerts

from gpuhost_exporter import findings, gpu_findings, kinds, network_findings, xids
from gpuhost_exporter.collectors import driver, gpu_health, inventory, rdma
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
    source = "".join(Path(module.__file__).read_text() for module in (findings, gpu_findings, network_findings))
    named = set(re.findall(r'"([a-z][a-z0-9_]+)"', source)) | set(findings._DRIVER)
    named |= {f"gpu_{state}" for state in gpu_findings._GPU} | {f"fabric_{word}" for word in ("unhealthy", "limited")}
    named |= {f"xid_{severity}" for severity in xids.SEVERITIES}
    assert set(kinds.KINDS) <= named


def test_a_finding_is_as_grave_as_the_alert_of_the_same_condition():
    grave = {"page": "critical", "ticket": "warning", "info": "info"}
    rules = {rule.name: grave[rule.body["labels"]["severity"]] for rule in alerts()}
    named = {name: kind for name, kind in kinds.KINDS.items() if kind.alert}
    assert {kind.alert for kind in named.values()} <= set(rules)
    assert {name: kind.severity for name, kind in named.items()} == {
        name: rules[kind.alert] for name, kind in named.items()
    }


# Alerts of the same subject judge something else: growth, an hour, or nothing at all.
WITHOUT_ALERT = {
    "no_library", "no_driver", "no_gpus", "released", "driver_slow", "gpus_left_out", "gpus_gone", "no_gpu_expected",
    "xid_past", "ecc_errors", "persistence_off", "mig", "several_users", "latency_drift", "port_mtu", "port_unused",
    "port_without_roce_v2", "gpudirect_off", "iommu_translates", "acs_enabled", "array_sync", "array_slow",
    "submitter_slow", "drive_warns", "drive_slot", "media_errors",
}  # fmt: skip


def test_a_finding_without_an_alert_is_so_on_purpose():
    assert {name for name, kind in kinds.KINDS.items() if not kind.alert} == WITHOUT_ALERT


def test_the_alert_of_a_state_fires_in_that_state():
    rules = {rule.name: rule.expr for rule in alerts()}
    of_driver = set(findings._DRIVER) - WITHOUT_ALERT - {"stuck"}
    assert of_driver == {"permission", "hung", "crashed", "error", "mismatch"}
    for kind in of_driver:
        assert re.search(rf'gpuhost_nvml_state{{state=~?"[^"]*\b{kind}\b', rules[kinds.KINDS[kind].alert])
    for state in gpu_findings._GPU:
        assert re.search(rf'gpuhost_gpu_state{{state=~?"[^"]*\b{state}\b', rules[kinds.KINDS[f"gpu_{state}"].alert])


# A ticket that a job runs into nonetheless, and pages that it does not or that are not this host's.
DRAINS_AS_WARNING = {"remap_failed", "sram_threshold", "fabric_unhealthy"}
PAGES_AND_STAYS = {
    "permission", "crashed", "error", "xid_critical", "fabric_manager_down", "hardware_slows", "port_loses",
    "port_paused", "drive_backup", "drive_silent",
}  # fmt: skip


def test_what_drains_is_critical_but_for_what_is_named_here():
    drains = {name for name, kind in kinds.KINDS.items() if kind.drains}
    critical = {name for name, kind in kinds.KINDS.items() if kind.severity == "critical"}
    assert (drains - critical, critical - drains) == (DRAINS_AS_WARNING, PAGES_AND_STAYS)
    assert {kinds.KINDS[name].severity for name in DRAINS_AS_WARNING} == {"warning"}


@pytest.mark.parametrize(
    ("samples", "word"),
    [
        ([rdma.UP("mlx5_0", "1", value=0), rdma.BYTES("mlx5_0", "1", "tx", value=1e9)], "unfit"),
        ([rdma.UP("mlx5_0", "1", value=0), rdma.BYTES("mlx5_0", "1", "tx", value=0)], "fit"),
        ([inventory.MISSING("ports", "mlx5_0/1")], "unfit"),
        ([UP("rdma", value=0), ERRORS("rdma", "malformed")], "unknown"),
    ],
)
def test_a_port_that_has_been_up_and_is_gone_drains(samples, word):
    assert told(*WELL, *samples)[0] == word


def test_what_cannot_be_read_pages_and_leaves_the_verdict_open():
    unread = (UP(name, value=0) for name in ("gpu_health", "nvlink", "fabric"))
    word, said = told(driver.NVML_STATE("permission"), UP("driver"), *unread)
    assert (word, said) == (
        "unknown",
        "not read: gpu_health, nvlink, fabric (Driver: the device files cannot be opened)",
    )


def test_the_table_says_of_each_kind_whether_it_drains():
    page = kinds.drains_page()
    assert (Path(__file__).parents[2] / "exporter" / "DRAINS.md").read_text() == page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(kinds.KINDS)
    assert "| `gpu_lost` | critical | yes | GpuhostGPULost | a GPU fell off the bus |" in rows
    assert rows[0].split(" | ")[1:3] == ["critical", "yes"]
    assert rows[-1].split(" | ")[1:3] == ["info", "no"]
