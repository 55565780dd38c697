"""NFS mounts: bytes, operations, latency and retransmissions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.errors import Denied
from gpuhost_exporter.sources import nfs
from gpuhost_exporter.specs import Sample, Spec, counter, info

INFO = info("gpuhost_nfs_info", "Which server's export is mounted where.", "mountpoint", "source")
BYTES = counter(
    "gpuhost_nfs_bytes_total",
    "Bytes that the mount moved over the network, by direction (read or write).",
    "mountpoint",
    "direction",
)
OPERATIONS = counter(
    "gpuhost_nfs_operations_total",
    "Operations that the mount asked its server for. other is everything but READ, WRITE and COMMIT.",
    "mountpoint",
    "operation",
)
SECONDS = counter(
    "gpuhost_nfs_operation_seconds_total",
    "Seconds that operations took from request to answer, added up over operations. Its rate divided by that of "
    "gpuhost_nfs_operations_total is the mean latency.",
    "mountpoint",
    "operation",
)
RETRANSMISSIONS = counter(
    "gpuhost_nfs_retransmissions_total",
    "Requests sent again because no answer came. A rate of 0 is good.",
    "mountpoint",
)
ERRORS = counter(
    "gpuhost_nfs_errors_total",
    "Operations that ended with an error; looking for a file that is not there counts too.",
    "mountpoint",
)

MOST = 32  # home folders may be mounted one by one


class NfsCollector(Collector):
    name: ClassVar[str] = "nfs"
    help: ClassVar[str] = "NFS mounts: bytes, operations, latency, retransmissions"
    source: ClassVar[str] = "/proc/1/mountstats"
    privilege: ClassVar[str] = "in a container: the host's process namespace (pid: host) and uid 0, no capability"
    interval: ClassVar[float] = 5.0
    specs: ClassVar[tuple[Spec, ...]] = (INFO, BYTES, OPERATIONS, SECONDS, RETRANSMISSIONS, ERRORS)

    def poll(self, now: float) -> Iterator[Sample]:
        found = nfs.read(self.host.root)
        for point in found.unread[:MOST]:
            self.fault(point, Denied(f"{point}: in a container only root may read what the host's mounts count"))
        mounted = sorted(found.mounts, key=lambda mount: mount.point)
        for mount in mounted[:MOST]:
            point, operations = mount.point, mount.operations
            self.recovered(point)
            yield INFO(point, mount.source)
            yield BYTES(point, "read", value=mount.read_bytes)
            yield BYTES(point, "write", value=mount.written_bytes)
            for name, operation in operations.items():
                yield OPERATIONS(point, name, value=operation.count)
                yield SECONDS(point, name, value=operation.seconds)
            yield RETRANSMISSIONS(point, value=sum(each.retransmissions for each in operations.values()))
            errors = [each.errors for each in operations.values() if each.errors is not None]
            if errors:
                yield ERRORS(point, value=sum(errors))
