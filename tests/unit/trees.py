"""A small /proc and /sys in a folder, and files that fail to open as a kernel's do."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

from support.fakes import FakeClock
from support.gpus import FakeNvml

from gpuhost_exporter.board import Board
from gpuhost_exporter.config import Settings
from gpuhost_exporter.sources.contention import Waits
from gpuhost_exporter.sources.ethtool import Network
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.kmsg import KernelLog
from gpuhost_exporter.sources.nvme_health import DriveHealth
from gpuhost_exporter.sources.placement import PrivilegedRegisters
from gpuhost_exporter.targets import Targets


class Link(str):
    """The target of a symbolic link instead of a file's text."""

    __slots__ = ()


def plant(folder: Path, files: Mapping[str, str]) -> Root:
    """Write each path's text, or link, below the folder."""
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, Link):
            file.symlink_to(text)
        else:
            file.write_text(text)
    return Root.below(str(folder))


def host_at(folder: Path, files: Mapping[str, str]) -> SimpleNamespace:
    """What these collectors use of a host."""
    return SimpleNamespace(
        root=plant(folder, files),
        clock=FakeClock(),
        board=Board(),
        network=Network(no_interface),
        waits=Waits(),
        registers=PrivilegedRegisters(),
        kernel_log=KernelLog(),
        nvml=FakeNvml(),
        targets=Targets.load({}),
        drive_health=DriveHealth(),
        settings=Settings(),
    )


def no_interface(_descriptor: int, _request: int, _argument: bytearray) -> int:
    """The ioctl of a host without network interfaces."""
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def fail_opening(monkeypatch, suffix: str, number: int) -> None:
    """Opening a file whose path ends so fails with this errno."""
    real = os.open

    def opening(path, *arguments, **keywords):
        if str(path).endswith(suffix):
            raise OSError(number, os.strerror(number))
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", opening)


def vanish_opening(monkeypatch, suffix: str, folder: Path) -> None:
    """The folder disappears just before a file whose path ends so is opened."""
    real = os.open

    def opening(path, *arguments, **keywords):
        if str(path).endswith(suffix) and folder.exists():
            folder.rename(folder.with_name("vanished"))
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", opening)


def values(samples) -> dict[tuple[str, ...], float]:
    """Samples by name without the prefix, and labels."""
    return {(sample.spec.name.removeprefix("gpuhost_"), *sample.labels): sample.value for sample in samples}
