"""What RDMA adapters of each kind show, whole: a small /sys for each, and the exposition of the two collectors on it.

rdma/NAME.host has a line a file, "path: text" or "link -> target", ethtool/INTERFACE its statistics. Written by hand
after the drivers' own names, not recorded. `pytest tests/golden --update-golden` writes rdma/NAME.prom anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import Link, host_at

from gpuhost_exporter.collectors.rdma import RdmaCollector
from gpuhost_exporter.collectors.rdma_ethernet import RdmaEthernetCollector
from gpuhost_exporter.sim.ioctl import Interfaces
from gpuhost_exporter.sources.ethtool import Network

HERE = Path(__file__).parent / "rdma"
KINDS = ("mlx5-roce", "mlx5-infiniband", "bnxt_re", "efa", "none")


def files(kind):
    found = {}
    for line in (HERE / f"{kind}.host").read_text().splitlines():
        path, link, target = line.partition(" -> ")
        if link:
            found[path] = Link(target)
            continue
        path, _, text = line.partition(": ")
        found[path] = f"{text.replace('; ', chr(10))}\n" if path.startswith("ethtool/") else f"{text}\n"
    return found


def exposition(folder, kind):
    host = host_at(folder, files(kind))
    host.network = Network(Interfaces(str(folder)))
    collectors = (RdmaCollector(host), RdmaEthernetCollector(host))
    text = "".join(f"{line(sample)}\n" for collector in collectors for sample in collector.poll(0.0))
    return text, [dict(collector.errors) for collector in collectors]


def line(sample):
    labels = ",".join(f'{name}="{value}"' for name, value in zip(sample.spec.labels, sample.labels, strict=True))
    return f"{sample.spec.name}{{{labels}}} {sample.value:.12g}"


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_shows_what_it_has_and_nothing_else(tmp_path, request, kind):
    text, errors = exposition(tmp_path, kind)
    file = HERE / f"{kind}.prom"
    if request.config.getoption("--update-golden"):
        file.write_text(text)
    assert text == file.read_text()
    # The interface of the bond is in another network namespace.
    assert errors == [{}, {"absent": 1} if kind == "mlx5-roce" else {}]


def test_a_host_without_rdma_shows_nothing(tmp_path):
    assert exposition(tmp_path, "none") == ("", [{}, {}])
