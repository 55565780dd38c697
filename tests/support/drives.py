"""Health logs as controllers hand them out, an ioctl that does so, and a host with many drives.

Offsets are those of the NVMe specification's table, put down once more and not taken from the code under test.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading

ADMIN_COMMAND = "<BBHIIIQQIIIIIIIIII"
_WIDE = {
    "data_units_read": 32,
    "data_units_written": 48,
    "power_cycles": 112,
    "power_on_hours": 128,
    "unsafe_shutdowns": 144,
    "media_errors": 160,
}
_WORDS = {
    "warning_minutes": 192,
    "critical_minutes": 196,
    "light_transitions": 216,
    "heavy_transitions": 220,
    "light_seconds": 224,
    "heavy_seconds": 228,
}


def page(*, warning=0, kelvin=310, spare=100, threshold=10, used=3, sensors=(), **counts) -> bytes:
    whole = bytearray(512)
    whole[0] = warning
    whole[1:3] = kelvin.to_bytes(2, "little")
    whole[3:6] = bytes((spare, threshold, used))
    for name, count in counts.items():
        offset, width = (_WIDE[name], 16) if name in _WIDE else (_WORDS[name], 4)
        whole[offset : offset + width] = count.to_bytes(width, "little")
    for place, sensor in enumerate(sensors):
        whole[200 + 2 * place : 202 + 2 * place] = sensor.to_bytes(2, "little")
    return bytes(whole)


class Controllers:
    """An ioctl: `answers` by device name, a page, an NVMe status or an OSError. A name in `hanging` waits for it."""

    def __init__(self, **answers) -> None:
        self.answers = answers
        self.hanging: dict[str, threading.Event] = {}
        self.asked: list[str] = []

    def __call__(self, descriptor, request, argument):
        assert request == 0xC0484E41
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        self.asked.append(name)
        if name in self.hanging:
            self.hanging[name].wait(120)
        answer = self.answers.get(name, page())
        if isinstance(answer, OSError):
            raise answer
        if isinstance(answer, int):
            return answer
        fields = struct.unpack(ADMIN_COMMAND, argument)
        ctypes.memmove(fields[7], answer, fields[9])
        return 0


def many_drives(drives: int = 24, arrays: int = 3) -> dict[str, str]:
    """Text files of a host whose drives are the members of so many RAID0 arrays, as `plant` takes them."""
    files: dict[str, str] = {}
    stats = []
    for number in range(drives):
        name, bdf = f"nvme{number}", f"0000:{number + 32:02x}:00.0"
        folder = f"sys/class/nvme/{name}"
        files |= {
            f"dev/{name}": "",
            f"{folder}/state": "live\n",
            f"{folder}/model": "SAMSUNG MZQL23T8HCLS-00A07              \n",
            f"{folder}/serial": f"S64HNE0R5{number:05d}      \n",
            f"{folder}/firmware_rev": "GDC5902Q\n",
            f"{folder}/transport": "pcie\n",
            f"{folder}/address": f"{bdf}\n",
            f"{folder}/numa_node": f"{number * 2 // drives}\n",
            f"{folder}/{name}n1/nsid": "1\n",
            f"{folder}/hwmon{number}/name": "nvme\n",
            **{f"{folder}/hwmon{number}/temp{place}_input": f"{38850 + 100 * number}\n" for place in (1, 2, 3)},
            f"sys/bus/pci/devices/{bdf}/current_link_speed": "16.0 GT/s PCIe\n",
            f"sys/bus/pci/devices/{bdf}/current_link_width": "4\n",
            f"sys/bus/pci/devices/{bdf}/max_link_speed": "16.0 GT/s PCIe\n",
            f"sys/bus/pci/devices/{bdf}/max_link_width": "4\n",
            f"sys/block/{name}n1/size": "7501476528\n",
            f"sys/block/{name}n1/queue/scheduler": "[none] mq-deadline\n",
            f"sys/block/{name}n1/queue/rotational": "0\n",
            f"sys/block/{name}n1/inflight": "       0        0\n",
        }
        stats.append(f" 259 {number:7d} {name}n1 {' '.join(['1234567'] * 17)}")
    for number in range(arrays):
        folder = f"sys/block/md{number}"
        members = [f"nvme{drive}n1" for drive in range(number, drives, arrays)]
        files |= {
            f"{folder}/size": "60011812224\n",
            f"{folder}/inflight": "       0        0\n",
            f"{folder}/md/level": "raid0\n",
            f"{folder}/md/array_state": "clean\n",
            f"{folder}/md/raid_disks": f"{len(members)}\n",
            f"{folder}/md/metadata_version": "1.2\n",
        }
        for slot, member in enumerate(members):
            files |= {
                f"{folder}/md/dev-{member}/state": "in_sync\n",
                f"{folder}/md/dev-{member}/slot": f"{slot}\n",
                f"{folder}/md/dev-{member}/block/size": "7501476528\n",
                f"{folder}/slaves/{member}/size": "7501476528\n",
            }
        stats.append(f"   9 {number:7d} md{number} {' '.join(['1234567'] * 17)}")
    return files | {"proc/diskstats": "\n".join(stats) + "\n"}
