"""Is this metal? Twelve machines, each also seen from within a container, and what makes the verdict waver."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import plant

from gpuhost_exporter.sources import virtualization
from gpuhost_exporter.sources.virtualization import DECISIVE, HINT, PROOF, Evidence, Verdict, judge, look

FLAGS = "flags\t\t: fpu vme de sse2 ht syscall nx lm avx512f"
DMI = "sys/class/dmi/id"


def machine(flag, product, vendor, board="", bios="", **more):
    """/proc and /sys of an x86 machine; `more` names further files by their last part."""
    places = {
        "hypervisor_type": "sys/hypervisor/type",
        "xen_capabilities": "proc/xen/capabilities",
        "mshv": "sys/class/misc/mshv/dev",
        "clocks": "sys/devices/system/clocksource/clocksource0/available_clocksource",
    }
    files = {
        "proc/cpuinfo": f"processor\t: 0\nmodel name\t: a CPU\n{FLAGS}{' hypervisor' if flag else ''}\n\n",
        f"{DMI}/product_name": product,
        f"{DMI}/sys_vendor": vendor,
        f"{DMI}/board_vendor": board or vendor,
        f"{DMI}/bios_vendor": bios or vendor,
    }
    return files | {places[name]: text for name, text in more.items()}


MACHINES = {
    "metal": (machine(False, "SYS-821GE-TNHR", "Supermicro"), False, "none"),
    "KVM": (
        machine(True, "Standard PC (Q35 + ICH9, 2009)", "QEMU", bios="SeaBIOS", clocks="kvm-clock tsc acpi_pm"),
        True,
        "kvm",
    ),
    "VMware": (machine(True, "VMware7,1", "VMware, Inc.", "Intel Corporation"), True, "vmware"),
    "Hyper-V guest": (
        machine(True, "Virtual Machine", "Microsoft Corporation", clocks="hyperv_clocksource_tsc_page acpi_pm"),
        True,
        "hyperv",
    ),
    "Hyper-V root": (
        machine(True, "PowerEdge R760", "Dell Inc.", mshv="10:127", clocks="hyperv_clocksource_tsc_page"),
        False,
        "hyperv",
    ),
    "Xen dom0": (
        machine(True, "ProLiant DL380 Gen11", "HPE", hypervisor_type="xen", xen_capabilities="control_d\n"),
        False,
        "xen",
    ),
    "Xen domU": (machine(True, "HVM domU", "Xen", hypervisor_type="xen", xen_capabilities=""), True, "xen"),
    "EC2": (machine(True, "p5.48xlarge", "Amazon EC2"), True, "nitro"),
    "EC2 .metal": (machine(False, "i3en.metal", "Amazon EC2"), False, "none"),
    "GCE": (machine(True, "Google Compute Engine", "Google"), True, "google"),
    "Azure": (machine(True, "Virtual Machine", "Microsoft Corporation", bios="Microsoft Corporation"), True, "hyperv"),
    "OCI metal": (machine(False, "ORACLE SERVER X9-2c", "Oracle Corporation"), False, "none"),
}
CONTAINERS = {
    "on the host": ({"proc/self/mountinfo": "29 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw"}, None),
    "in docker": ({".dockerenv": ""}, "docker"),
    "in podman": ({"run/.containerenv": 'engine="podman-5.2.0"'}, "podman"),
    "in nspawn": ({"run/host/container-manager": "systemd-nspawn"}, "systemd-nspawn"),
    "in a pod": (
        {
            "proc/self/mountinfo": "611 590 0:71 / / rw,relatime - overlay overlay rw,lowerdir=/var/lib/containerd/"
            "io.containerd.snapshotter.v1.overlayfs/snapshots/71/fs,upperdir=/var/lib/containerd/x"
        },
        "containerd",
    ),
}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("place", CONTAINERS)
def test_a_machine_is_what_it_is_in_a_container_too(tmp_path, name, place):
    files, virtual, hypervisor = MACHINES[name]
    inside, runtime = CONTAINERS[place]
    root = plant(tmp_path, files | inside)
    assert judge(look(root)) == Verdict(virtual, hypervisor)
    assert virtualization.container(root) == runtime


@pytest.mark.parametrize(
    ("files", "verdict"),
    [
        (machine(False, "Standard PC (i440FX + PIIX, 1996)", "QEMU"), Verdict(True, "qemu")),
        (machine(False, "Google Compute Engine", "Google"), Verdict(False, "none")),
        (machine(True, "a4-highgpu-8g.metal", "Amazon EC2"), Verdict(False, "none")),
        (machine(True, "PowerEdge R760", "Dell Inc."), Verdict(True, "unknown")),
        (machine(False, "XENON NITRO G8", "Xenon Systems"), Verdict(False, "none")),
        ({"sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc kvm-clock"}, Verdict(True, "kvm")),
        ({"proc/device-tree/hypervisor/compatible": "linux,kvm\0"}, Verdict(True, "kvm")),
        ({f"{DMI}/product_name": "Virtual Machine"}, Verdict(True, "hyperv")),
        ({f"{DMI}/product_name": "m7g.metal", f"{DMI}/sys_vendor": "Amazon EC2"}, Verdict(False, "none")),
        ({f"{DMI}/product_name": "m7g.large", f"{DMI}/sys_vendor": "Amazon EC2"}, Verdict(True, "nitro")),
        ({f"{DMI}/product_name": "GRACE-HOPPER"}, Verdict(False, "none")),
        ({}, None),
    ],
    ids=[
        "a guest whose CPU hides the hypervisor",
        "a cloud's metal",
        "a name that ends in .metal",
        "a hypervisor that nobody names",
        "a vendor called like a hypervisor",
        "a guest without DMI",
        "an ARM guest",
        "an ARM guest by DMI",
        "ARM .metal",
        "an ARM guest of a cloud",
        "ARM metal",
        "a machine that tells nothing",
    ],
)
def test_the_verdict_follows_the_heaviest_evidence(tmp_path, files, verdict):
    assert judge(look(plant(tmp_path, files))) == verdict


def test_evidence_against_the_verdict_stays_visible(tmp_path):
    """A cloud's metal: its DMI speaks for a guest, its CPU does not."""
    evidence = look(plant(tmp_path, machine(False, "Google Compute Engine", "Google")))
    assert {each.source: (each.virtual, each.weight) for each in evidence} == {
        "cpuid": (False, PROOF),
        "dmi": (True, HINT),
    }


@given(
    st.lists(
        st.builds(
            Evidence,
            st.text(max_size=3),
            st.text(max_size=3),
            st.booleans(),
            st.sampled_from((HINT, PROOF)),
            st.sampled_from((None, "kvm", "xen")),
        )
    )
)
def test_a_name_that_ends_in_metal_settles_it_whatever_else_is_found(evidence):
    metal = Evidence("product", "p5.metal", False, DECISIVE)
    assert judge((*evidence, metal)) == Verdict(False, "none")


@given(st.text())
def test_any_text_has_a_root_mount_and_flags_or_has_none(text):
    assert virtualization.parse_root_mount(text) in (None, "containerd", "docker", "podman")
    assert virtualization.has_hypervisor_bit(text) in (None, True, False)
