"""What the status page says of ports and of how the machine is set up for them."""

from __future__ import annotations

import pytest

from gpuhost_exporter.collectors import latency, platform, rdma, rdma_ethernet, targets
from gpuhost_exporter.findings import find
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.status import RATED, build

WELL = [
    rdma.UP("mlx5_0", "1"),
    rdma.MTU("mlx5_0", "1", value=9000),
    rdma.ROCE_V2("mlx5_0", "1"),
    platform.FABRIC_MANAGER(),
    platform.FABRIC_MANAGER_MATCHES(),
    platform.GPUDIRECT("peer_memory", value=0),
    platform.GPUDIRECT("dma_buf"),
    platform.VIRTUALIZED("none", value=0),
    platform.IOMMU("passthrough"),
    platform.IOMMU("translated", value=0),
    platform.SWITCH_PORTS("enabled", value=0),
    targets.COLLECTIVE_LATENCY(value=5e-6),
    latency.MEDIAN("gpu-2", "rdma", value=4.9e-6),
    latency.MEDIAN("gpu-2", "tcp", value=40e-6),
    latency.DRIFT("gpu-2", "tcp", value=1.4),
    latency.LOSS("gpu-2", "tcp", value=0.005),
]
QUIET = [
    rdma_ethernet.PAUSE("mlx5_0", "3", value=0.0004),
    rdma.CONGESTION("mlx5_0", "1", "cnp_handled", value=48_000),
    rdma.CONGESTION("mlx5_0", "1", "out_of_sequence", value=240),
    rdma_ethernet.PHYSICAL_ERRORS("mlx5_0", "symbol", value=3),
]


def said(samples, rates=()):
    return [(each.severity, str(each)) for each in find(Latest(samples), Latest(rates), 0.0)]


def test_congestion_control_at_work_on_a_host_that_is_well_is_nothing_to_say():
    assert said(WELL, QUIET) == []


@pytest.mark.parametrize(
    ("samples", "rates", "finding"),
    [
        ([rdma.UP("mlx5_1", "1", value=0)], [], ("info", "mlx5_1 port 1: down")),
        (
            [rdma.UP("mlx5_1", "1", value=0), rdma.PHYSICAL_UP("mlx5_1", "1")],
            [],
            ("info", "mlx5_1 port 1: down, though its cable carries a link"),
        ),
        (
            [rdma.UP("mlx5_1", "1", value=0), *(rdma.BYTES("mlx5_1", "1", way, value=0) for way in ("rx", "tx"))],
            [],
            ("info", "mlx5_1 port 1: down"),
        ),
        (
            [rdma.UP("mlx5_1", "1", value=0), rdma.BYTES("mlx5_1", "1", "tx", value=9e9)],
            [],
            ("critical", "mlx5_1 port 1: down"),
        ),
        (
            [rdma.UP("mlx5_1", "1", value=0), rdma.ERRORS("mlx5_1", "1", "link_downed", value=1)],
            [],
            ("critical", "mlx5_1 port 1: down"),
        ),
        (
            [rdma.MTU("mlx5_0", "1", value=1500)],
            [],
            ("info", "mlx5_0 port 1: MTU 1500: RDMA packets are smaller than they could be"),
        ),
        ([rdma.ROCE_V2("mlx5_0", "1", value=0)], [], ("info", "mlx5_0 port 1: no address of RoCE version 2")),
        (
            [],
            [rdma_ethernet.PAUSE("mlx5_0", "3", value=0.11)],
            ("critical", "mlx5_0: the network makes it pause more than 5 % of the time"),
        ),
        (
            [],
            [rdma.CONGESTION("mlx5_0", "1", "ack_timeout", value=0.4)],
            ("critical", "mlx5_0 port 1: acknowledgements time out: the network loses packets"),
        ),
        (
            [],
            [rdma_ethernet.PHYSICAL_ERRORS("mlx5_0", "crc", value=0.1)],
            ("warning", "mlx5_0: packets arrive damaged"),
        ),
        ([platform.FABRIC_MANAGER(value=0)], [], ("critical", "Fabric manager: not running")),
        (
            [platform.FABRIC_MANAGER_MATCHES(value=0)],
            [],
            ("warning", "Fabric manager: of another version than the driver"),
        ),
        (
            [platform.GPUDIRECT("dma_buf", value=0)],
            [],
            ("info", "GPUDirect: RDMA adapters cannot reach GPU memory: all traffic is copied through the host's"),
        ),
        ([platform.IOMMU("translated")], [], ("info", "IOMMU: translates the GPUs' traffic")),
        (
            [latency.MEDIAN("gpu-3", "rdma", value=7.31e-6)],
            [],
            ("warning", "gpu-3 by rdma: small messages take 7.3 us, the target is 5.0 us"),
        ),
        (
            [latency.MEDIAN("all", "mpi", value=9e-6)],
            [],
            ("warning", "all by mpi: small messages take 9.0 us, the target is 5.0 us"),
        ),
        (
            [latency.DRIFT("gpu-3", "tcp", value=2.5)],
            [],
            ("info", "gpu-3 by tcp: small messages take 2.5 times as long as usual"),
        ),
        ([latency.LOSS("gpu-3", "tcp", value=1.0)], [], ("warning", "gpu-3 by tcp: answers no probe")),
        (
            [latency.LOSS("gpu-3", "tcp", value=0.02)],
            [],
            ("warning", "gpu-3 by tcp: 2 % of the probes get no answer"),
        ),
        (
            [platform.SWITCH_PORTS("enabled", value=4)],
            [],
            ("info", "ACS: sends traffic between GPUs through the CPU"),
        ),
    ],
)
def test_each_fault_is_said_and_nothing_else(samples, rates, finding):
    assert said([*WELL, *samples], [*QUIET, *rates]) == [finding]


def test_a_drift_of_what_has_a_target_is_not_said_twice_and_without_a_target_nothing_is_above_it():
    assert said([*WELL, latency.DRIFT("gpu-3", "rdma", value=3.0)]) == []
    assert said([latency.MEDIAN("gpu-3", "rdma", value=1.0)]) == []


def test_what_many_ports_share_is_said_once():
    ports = [sample for n in range(8) for sample in (rdma.UP(f"mlx5_{n}", "1"),)]
    rates = [rdma.CONGESTION(f"mlx5_{n}", "1", "ack_timeout", value=1) for n in range(8)]
    assert said(ports, rates) == [
        ("critical", "mlx5_0 port 1 and 7 more: acknowledgements time out: the network loses packets")
    ]


def test_a_virtual_machine_needs_its_iommu_and_acs():
    guest = [platform.VIRTUALIZED("kvm"), platform.IOMMU("translated"), platform.SWITCH_PORTS("enabled", value=4)]
    assert said(guest) == []


@pytest.mark.parametrize(
    ("sample", "fact"),
    [
        (platform.VIRTUALIZED("none", value=0), "bare metal"),
        (platform.VIRTUALIZED("xen", value=0), "bare metal"),
        (platform.VIRTUALIZED("kvm"), "virtual machine (kvm)"),
    ],
)
def test_the_page_says_whether_this_is_metal(sample, fact):
    assert fact in build([sample]).machine


def test_the_counters_that_findings_go_by_are_rated():
    assert {rdma.CONGESTION, rdma_ethernet.PAUSE, rdma_ethernet.PHYSICAL_ERRORS} <= set(RATED)
