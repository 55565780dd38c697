"""Whether the machine is virtual, by what it tells an ordinary user; and whether this is a container, which is another
question.

    /proc/cpuinfo                          flags : ... hypervisor ...     (CPUID.1:ECX.31; x86 only)
    /sys/class/dmi/id/product_name, ...    Standard PC (Q35 + ICH9, 2009); on clouds the same on metal and in guests
    /sys/hypervisor/type                   xen
    /proc/xen/capabilities                 control_d       (dom0: Linux on metal, above Xen)
    /sys/class/misc/mshv                   Hyper-V's root partition: Linux on metal, above Hyper-V
    /sys/devices/system/clocksource/clocksource0/available_clocksource      tsc kvm-clock
    /proc/device-tree/hypervisor/compatible   linux,kvm    (ARM)
    /.dockerenv, /run/.containerenv        who runs this container; /proc/self/mountinfo says it of containerd
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.sources.files import Root, optional_text, read_start

_FLAGS = re.compile(r"^flags\s*:(.*)$", re.MULTILINE)
_DMI = ("product_name", "sys_vendor", "board_vendor", "bios_vendor", "product_version")
METAL_SUFFIX = ".metal"  # how EC2 calls its instances without a hypervisor

# What a hypervisor writes into DMI; no board's maker does. QEMU does so with KVM and without.
_HYPERVISORS = (
    ("KVM", "kvm"),
    ("OpenStack", "kvm"),
    ("KubeVirt", "kvm"),
    ("QEMU", "qemu"),
    ("Standard PC (", "qemu"),
    ("VMware", "vmware"),
    ("VMW", "vmware"),
    ("innotek GmbH", "virtualbox"),
    ("VirtualBox", "virtualbox"),
    ("Xen", "xen"),
    ("HVM domU", "xen"),
    ("Bochs", "bochs"),
    ("Parallels", "parallels"),
    ("BHYVE", "bhyve"),
    ("Hyper-V", "hyperv"),
    ("Virtual Machine", "hyperv"),
    ("Apple Virtualization", "apple"),
)
# What clouds write on metal as well as in guests, and whose guests these would be.
_CLOUDS = (("Amazon EC2", "nitro"), ("Google Compute Engine", "google"), ("Oracle Corporation", "oracle"))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one source says. Weights: DECISIVE settles it, PROOF of a guest outweighs any doubt, HINT is also found on
    the other kind of machine.
    """

    source: str
    finding: str
    virtual: bool
    weight: int
    hypervisor: str | None = None


HINT, PROOF, DECISIVE = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """`hypervisor` is none on metal, or whose own host the metal is; unknown where nothing names a guest's."""

    virtual: bool
    hypervisor: str


def look(root: Root) -> tuple[Evidence, ...]:
    """The evidence in /proc and /sys."""
    found = (_metal_name(root), _host_of_guests(root), _cpuid(root), _hypervisor_folder(root), _clock(root))
    return tuple(evidence for evidence in (*found, _device_tree(root), _dmi(root)) if evidence)


def of_smbios(virtual: bool) -> Evidence:
    """What the firmware calls its machine. Not every hypervisor's does so: that it does not proves nothing."""
    if virtual:
        return Evidence("smbios", "virtual machine", True, PROOF)
    return Evidence("smbios", "not marked as a virtual machine", False, HINT)


def judge(evidence: tuple[Evidence, ...]) -> Verdict | None:
    """The heaviest evidence counts, and of equals that for a guest: a hypervisor may hide its bit from the CPU, a
    cloud's name is on its metal, too. None where nothing tells.
    """
    if not evidence:
        return None
    heaviest = max(evidence, key=lambda each: (each.weight, each.virtual))
    if not heaviest.virtual:
        return Verdict(False, heaviest.hypervisor or "none")
    return Verdict(True, next((each.hypervisor for each in evidence if each.virtual and each.hypervisor), "unknown"))


def has_hypervisor_bit(cpuinfo: str) -> bool | None:
    """Of /proc/cpuinfo's text; None where the architecture lists no flags."""
    match = _FLAGS.search(cpuinfo)
    return None if match is None else "hypervisor" in match[1].split()


def container(root: Root) -> str | None:
    """The kind of container that this process runs in; None for none that shows."""
    for file in ("run/systemd/container", "run/host/container-manager"):
        if text := optional_text(f"{root.top}/{file}"):
            return text[:32]
    for file, runtime in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if os.path.exists(f"{root.top}/{file}"):
            return runtime
    return parse_root_mount(optional_text(f"{root.proc}/self/mountinfo") or "")


def parse_root_mount(mountinfo: str) -> str | None:
    """Whose image is mounted as /, in /proc/self/mountinfo."""
    for line in mountinfo.splitlines():
        place, separator, kind = line.partition(" - ")
        fields = place.split()
        if separator and len(fields) > 4 and fields[4] == "/" and kind.startswith("overlay "):
            for part, runtime in (
                ("containerd", "containerd"),
                ("/docker/", "docker"),
                ("/containers/storage/", "podman"),
            ):
                if part in kind:
                    return runtime
    return None


def _metal_name(root: Root) -> Evidence | None:
    name = optional_text(f"{root.sys}/class/dmi/id/product_name") or ""
    return Evidence("product", name, False, DECISIVE) if name.endswith(METAL_SUFFIX) else None


def _host_of_guests(root: Root) -> Evidence | None:
    if _is_dom0(root):
        return Evidence("hypervisor_host", "dom0 of Xen", False, DECISIVE, "xen")
    if os.path.exists(f"{root.sys}/class/misc/mshv"):
        return Evidence("hypervisor_host", "root partition of Hyper-V", False, DECISIVE, "hyperv")
    return None


def _is_dom0(root: Root) -> bool:
    return "control_d" in (optional_text(f"{root.proc}/xen/capabilities") or "")


def _cpuid(root: Root) -> Evidence | None:
    try:
        found = has_hypervisor_bit(read_start(f"{root.proc}/cpuinfo"))
    except SourceError:
        return None
    if found is None:
        return None
    return Evidence("cpuid", "hypervisor bit set" if found else "hypervisor bit not set", found, PROOF)


def _hypervisor_folder(root: Root) -> Evidence | None:
    kind = optional_text(f"{root.sys}/hypervisor/type")
    return None if kind is None or _is_dom0(root) else Evidence("hypervisor_folder", kind, True, PROOF, kind)


def _clock(root: Root) -> Evidence | None:
    """A hypervisor's clock: some guests have no DMI at all."""
    folder = f"{root.sys}/devices/system/clocksource/clocksource0"
    for name in (optional_text(f"{folder}/available_clocksource") or "").split():
        for prefix, hypervisor in (("kvm-clock", "kvm"), ("hyperv_clocksource", "hyperv")):
            if name.startswith(prefix):
                return Evidence("clock", name, True, PROOF, hypervisor)
    return None


def _device_tree(root: Root) -> Evidence | None:
    kind = (optional_text(f"{root.proc}/device-tree/hypervisor/compatible") or "").strip("\0")
    return Evidence("device_tree", kind, True, PROOF, "xen" if "xen" in kind else "kvm") if kind else None


def _dmi(root: Root) -> Evidence | None:
    texts = [text for name in _DMI if (text := optional_text(f"{root.sys}/class/dmi/id/{name}"))]
    if texts and texts[0].endswith(METAL_SUFFIX):
        return None
    for table, weight in ((_HYPERVISORS, PROOF), (_CLOUDS, HINT)):
        for text in texts:
            for name, hypervisor in table:
                if text.startswith(name) and not text[len(name) : len(name) + 1].islower():
                    return Evidence("dmi", text, True, weight, hypervisor)
    return Evidence("dmi", texts[0], False, HINT) if texts else None
