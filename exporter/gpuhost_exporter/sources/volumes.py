"""What storage is measured as: each md array with the members that serve it, and each drive in no array.

    /sys/block/md0/md/dev-nvme4n1p2/block -> ../../../../pci.../nvme4n1/nvme4n1p2
    /sys/block/md0/md/chunk_size           524288   bytes that go to one member before the next has its turn; 0: mirror
    /sys/block/nvme0n1/queue/max_sectors_kb   256   no request is larger

What a drive could deliver is not told by the drive. Its PCIe link bounds it: what both of its ends can do, for a link
that came up slower is a fault and no smaller target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.sources import block, layers, nvme, pci, raid
from gpuhost_exporter.sources.files import Root, followed, link_target, optional_number

# Packet headers and flow control leave this much of a link's raw rate: drives are sold with 7 GB/s on PCIe 4 x4.
_PAYLOAD = 0.88


@dataclass(frozen=True, slots=True)
class Volume:
    """`members` are named as md names them, partitions included; `drives` are the disks that they are on.

    `width` is the number of members that it should have, `parity` of those whose worth of space holds no data,
    `copies` how often data are written.
    """

    name: str
    level: str  # "" for a drive
    members: tuple[str, ...]
    drives: tuple[str, ...]
    largest_request: int | None
    synchronizing: bool
    width: int = 1
    parity: int = 0
    copies: int = 1

    @property
    def striped(self) -> bool:
        """Whether its members move no more bytes than it does."""
        return self.level in ("", "raid0", "linear")


def read(root: Root) -> tuple[tuple[Volume, ...], dict[str, tuple[str, ...]], dict[str, SourceError]]:
    """The volumes, the multipath devices of each disk, and the error of each array that could not be read."""
    found: list[Volume] = []
    faults: dict[str, SourceError] = {}
    taken: set[str] = set()
    for name in raid.arrays(root):
        taken.update(layers.stack_at(link_target(f"{root.sys}/block/{name}")).drives)
        try:
            found.append(_array(root, raid.read(root, name)))
        except SourceError as error:
            faults[name] = error
    drives = block.drives(root)
    for name in drives:
        if name not in taken and optional_number(f"{root.sys}/block/{name}/size"):
            largest = optional_number(f"{root.sys}/block/{name}/queue/max_sectors_kb")
            found.append(Volume(name, "", (name,), (name,), largest * 1024 if largest else None, False))
    return tuple(found), drives, faults


def link_rates(root: Root) -> dict[str, float]:
    """Bytes a second in one direction that each NVMe namespace's link lets through, of those that tell."""
    rates: dict[str, float] = {}
    for name in nvme.controllers(root):
        try:
            drive = nvme.read(root, name)
            if drive.transport == "pcie" and drive.address:
                rate = link_rate(pci.read_device(root, drive.address))
                if rate is not None:
                    # Two controllers of one drive share its flash; the first one's link is told.
                    for namespace in drive.namespaces:
                        rates.setdefault(namespace, rate)
        except SourceError:
            continue  # the nvme collector counts it
    return rates


def link_rate(device: pci.PciDevice) -> float | None:
    """Payload that a device's link lets through in one direction once it runs as fast as both ends can."""
    ends = [device.link] if device.slot is None else [device.link, device.slot]
    generation = min((end.generation_max for end in ends if end.generation_max is not None), default=None)
    width = min((end.width_max for end in ends if end.width_max is not None), default=None)
    if generation is None or width is None:
        return None
    raw = pci.bytes_per_second(generation, width)
    return None if raw is None else raw * _PAYLOAD


def deliverable(volume: Volume, rates: Mapping[str, float]) -> tuple[float, float] | None:
    """(reading, writing) bytes a second that the volume could do whole; None where one of its drives does not tell.

    A member that is gone is a fault and no smaller target.
    """
    told = [rates[drive] for drive in volume.drives if drive in rates]
    if not told or len(told) != len(volume.drives):
        return None
    slowest = min(told)
    return volume.width * slowest, (volume.width - volume.parity) / volume.copies * slowest


def _array(root: Root, array: raid.Array) -> Volume:
    folder = f"{link_target(f'{root.sys}/block/{array.name}')}/md"
    members = tuple(member.name for member in array.members if member.state == "active" and member.slot is not None)
    disks = {name: layers.drive_folder(followed(f"{folder}/dev-{name}", "block")) for name in members}
    limits = [optional_number(f"{disk}/queue/max_sectors_kb") for disk in disks.values()]
    sizes = [limit * 1024 for limit in limits if limit]
    chunk = optional_number(f"{folder}/chunk_size")
    if chunk:
        sizes.append(chunk)
    drives = dict.fromkeys(disk.rpartition("/")[2] for disk in disks.values())
    layout = array.layout or 0
    return Volume(
        array.name,
        array.level,
        members,
        tuple(drives),
        min(sizes, default=None),
        array.sync is not None and array.sync.action not in ("idle", "frozen"),
        width=array.raid_disks,
        parity={"raid4": 1, "raid5": 1, "raid6": 2}.get(array.level, 0),
        copies=len(members)
        if array.level == "raid1"
        else max(1, (layout & 255) * (layout >> 8 & 255))
        if array.level == "raid10"
        else 1,
    )
