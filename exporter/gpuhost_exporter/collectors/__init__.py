"""Every collector, in the order in which a page shows them."""

from __future__ import annotations

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.collectors.block import BlockCollector
from gpuhost_exporter.collectors.contention import ContentionCollector
from gpuhost_exporter.collectors.driver import DriverCollector
from gpuhost_exporter.collectors.fabric import FabricCollector
from gpuhost_exporter.collectors.filesystem import FilesystemCollector
from gpuhost_exporter.collectors.gpu import GpuCollector
from gpuhost_exporter.collectors.gpu_health import GpuHealthCollector
from gpuhost_exporter.collectors.inventory import InventoryCollector
from gpuhost_exporter.collectors.latency import LatencyCollector
from gpuhost_exporter.collectors.ledger import LedgerCollector
from gpuhost_exporter.collectors.machine import MachineCollector
from gpuhost_exporter.collectors.mig import MigCollector
from gpuhost_exporter.collectors.nfs import NfsCollector
from gpuhost_exporter.collectors.nvlink import NvlinkCollector
from gpuhost_exporter.collectors.nvme import NvmeCollector
from gpuhost_exporter.collectors.nvme_health import NvmeHealthCollector
from gpuhost_exporter.collectors.pagecache import PageCacheCollector
from gpuhost_exporter.collectors.pcie import PcieCollector
from gpuhost_exporter.collectors.platform import PlatformCollector
from gpuhost_exporter.collectors.pressure import PressureCollector
from gpuhost_exporter.collectors.raid import RaidCollector
from gpuhost_exporter.collectors.rdma import RdmaCollector
from gpuhost_exporter.collectors.rdma_ethernet import RdmaEthernetCollector
from gpuhost_exporter.collectors.storage import StorageCollector
from gpuhost_exporter.collectors.targets import TargetsCollector
from gpuhost_exporter.collectors.verify import VerifyCollector
from gpuhost_exporter.collectors.xid import XidCollector

ALL: tuple[type[Collector], ...] = (
    DriverCollector,
    GpuCollector,
    GpuHealthCollector,
    MigCollector,
    PcieCollector,
    NvlinkCollector,
    FabricCollector,
    XidCollector,
    LedgerCollector,
    BlockCollector,
    NvmeCollector,
    NvmeHealthCollector,
    RaidCollector,
    StorageCollector,
    FilesystemCollector,
    PageCacheCollector,
    NfsCollector,
    RdmaCollector,
    LatencyCollector,
    RdmaEthernetCollector,
    PressureCollector,
    ContentionCollector,
    MachineCollector,
    PlatformCollector,
    InventoryCollector,
    TargetsCollector,
    VerifyCollector,
)
