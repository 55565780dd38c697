"""What the exporter makes of the kernel's announcements."""

from __future__ import annotations

import threading

import pytest
from support.gpus import FakeNvml, gpu, host_of

from gpuhost_exporter.app import App

GPU, CARD = "0000:11:00.0", "0000:12:00.0"


@pytest.fixture
def app(tmp_path):
    """No more of it than takes announcements; its collectors are just being hurried."""
    for bdf, identity, kind in [(GPU, "0x10de", "0x030200"), (CARD, "0x15b3", "0x020700")]:
        device = tmp_path / "sys/bus/pci/devices" / bdf
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{identity}\n")
        (device / "class").write_text(f"{kind}\n")
    app = object.__new__(App)
    app.host = host_of(FakeNvml(gpu(0)), tmp_path)
    app._changing, app._changed = threading.Lock(), {"pci"}
    return app


@pytest.mark.parametrize(
    ("action", "subsystem", "device", "looked_for"),
    [
        ("add", "pci", GPU, [GPU]),
        ("bind", "pci", GPU, [GPU]),
        ("remove", "pci", GPU, [""]),
        ("add", "pci", CARD, [""]),
        ("add", "pci", "0000:13:00.0", [""]),
        ("add", "block", "nvme1n1", []),
        ("change", "pci", GPU, []),
    ],
    ids=["GPU", "its driver", "GPU gone", "another device", "gone again", "a drive", "no news"],
)
def test_a_gpu_that_comes_to_the_bus_is_looked_for_by_its_address(app, action, subsystem, device, looked_for):
    app._hardware_changed(action, subsystem, device)
    assert app.host.nvml.arrived == looked_for
