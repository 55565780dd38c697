"""The guest's disk image and the exporter's wheel, each built once per content and kept below build/vm.

build/vm/image-3f2a…/kernel, initrd, root.img      one for each recipe: this folder's script, packages, dependencies
build/vm/wheel-91bc…/gpuhost_exporter-….whl        one for each state of the exporter's sources
build/vm/package-07de…/gpuhost-exporter_….deb      the same, and of deploy/
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / "build" / "vm"
SUITE, PYTHON = "bookworm", "3.11"
PACKAGES = (
    "linux-image-amd64,initramfs-tools,busybox,zstd,systemd-sysv,udev,dbus,kmod,procps,iproute2,qemu-guest-agent,"
    "python3,python3-venv,libudev1,curl,nvme-cli,mdadm,dmsetup,fio,e2fsprogs,nfs-kernel-server,"
    "rdma-core,ibverbs-utils,perftest,openssh-server,python3-apt"
)
_PROGRAMS = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs")
INSTALL = "apt-get install --no-install-recommends qemu-system-x86 qemu-utils mmdebstrap e2fsprogs"
_SCRIPT = Path(__file__).with_name("build-image.sh")


@dataclass(frozen=True, slots=True)
class Image:
    """`root` is never written to: each machine has a layer of its own above it."""

    kernel: Path
    initrd: Path
    root: Path


def missing() -> str | None:
    """Why no machine can be built here, with what helps; None when it can."""
    lacking = [name for name in _PROGRAMS if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]
    if lacking:
        return f"{', '.join(lacking)} not found; install: {INSTALL}"
    if os.geteuid() != 0 and not _place(_recipe()).exists():
        return "the guest's image is built as root, once: sudo make test-vm"
    return None


def built() -> Image:
    """The image of this recipe; about a minute where it has to be built, and then it needs a network."""
    recipe = _recipe()
    place = _place(recipe)
    if not place.exists():
        with _Making(place) as folder:
            wheels = folder / "wheels"
            _pip(
                "download",
                "--quiet",
                "--dest",
                wheels,
                "--only-binary=:all:",
                "--python-version",
                PYTHON,
                *_dependencies(),
            )
            command = [_SCRIPT, folder, SUITE, PACKAGES, wheels]
            _run(command)
    return Image(place / "kernel", place / "initrd", place / "root.img")


def wheel() -> Path:
    """The exporter as a wheel, built from the working tree."""
    place = CACHE / f"wheel-{_digest(*_sources())}"
    if not place.exists():
        with _Making(place) as folder:
            # From a copy: setuptools would leave build/ and egg-info beside the sources.
            copy = folder / "source"
            shutil.copytree(REPOSITORY / "exporter", copy / "exporter", ignore=shutil.ignore_patterns("*.egg-info"))
            for name in ("pyproject.toml", "README.md"):
                shutil.copy(REPOSITORY / name, copy / name)
            _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, copy)
            shutil.rmtree(copy)
    return next(place.glob("*.whl"))


def package() -> Path:
    """The .deb, built from the working tree as for a release; from the network where its lock names something new."""
    deploy = sorted(path for folder in ("packages", "systemd") for path in (REPOSITORY / "deploy" / folder).rglob("*"))
    place = CACHE / f"package-{_digest(*_sources(), *(path.read_bytes() for path in deploy if path.is_file()))}"
    if not place.exists():
        with _Making(place) as folder:
            _run([REPOSITORY / "deploy" / "packages" / "build.sh", folder])
    return next(place.glob("*.deb"))


def _sources() -> Iterator[str | bytes]:
    sources = [REPOSITORY / "pyproject.toml", REPOSITORY / "README.md"]
    sources += [path for path in (REPOSITORY / "exporter").rglob("*") if path.suffix not in (".pyc", ".md", ".png")]
    for path in sorted(path for path in sources if path.is_file() and "egg-info" not in str(path)):
        yield from (str(path), path.read_bytes())


class _Making:
    """A folder that has its final name once it is whole."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._unfinished = place.with_name(f"{place.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        self._unfinished.mkdir(parents=True)
        return self._unfinished

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._unfinished.rename(self._place)
        else:
            shutil.rmtree(self._unfinished)


def _recipe() -> str:
    return _digest(_SCRIPT.read_bytes(), SUITE, PACKAGES, *_dependencies())


def _place(recipe: str) -> Path:
    return CACHE / f"image-{recipe}"


def _dependencies() -> list[str]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _pip(*arguments: object) -> None:
    _run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments])


def _run(command: list[object]) -> None:
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise AssertionError(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-4000:]}")
