"""The page: well-formed, escaped, without anything from elsewhere, and never a figure that nobody told."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from gpuhost_exporter.collectors import block, driver, gpu, mig, nvlink, nvme, nvme_health, raid, rdma, storage, targets
from gpuhost_exporter.exposition import BUILD, SIMULATED
from gpuhost_exporter.ledger.cost import Spent
from gpuhost_exporter.runner import UP
from gpuhost_exporter.status import build
from gpuhost_exporter.web.page import render

VOID = {"meta", "link", "br", "rect"}
GPU = ("0", "GPU-0")
ONE_GPU = (driver.GPU_UP(*GPU), driver.GPU_STATE(*GPU, "ok"))


class Page(HTMLParser):
    """Fails where tags do not pair; collects rows of text and all attributes."""

    def __init__(self, source):
        super().__init__()
        self.open, self.attributes, self.rows, self.text = [], [], [], ""
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1:] != ["script"] and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data

    def row(self, first):
        return next(row for row in self.rows if row[0] == first)


def page(*samples):
    return Page(render(build(samples), "the-nonce").decode())


def test_only_what_carries_the_nonce_runs_and_nothing_is_loaded():
    shown = page(*ONE_GPU)
    assert [(tag, value) for tag, name, value in shown.attributes if name == "nonce"] == [
        ("style", "the-nonce"),
        ("script", "the-nonce"),
    ]
    assert not [entry for entry in shown.attributes if entry[1] == "style" or entry[1].startswith("on")]
    links = [value for _, name, value in shown.attributes if name in ("src", "href")]
    assert links == ["data:,", "metrics", "healthz", "readyz"]
    assert "url(" not in shown.text
    assert "@import" not in shown.text


def test_without_script_it_still_refreshes():
    assert ("meta", "http-equiv", "refresh") in page().attributes


def test_what_is_not_told_is_a_dash():
    row = page(*ONE_GPU).row("0")
    assert row[1] == "ok"
    assert set(row[2:]) == {"\N{EN DASH}"}


def test_a_gpu_s_figures_stand_beside_their_targets():
    samples = [
        *ONE_GPU,
        gpu.UTILIZATION(*GPU, value=0.95),
        gpu.MEMORY_BANDWIDTH(*GPU, value=1.8e12),
        targets.MEMORY_BANDWIDTH(*GPU, value=3.35e12),
        nvlink.USABLE(*GPU, value=0),
        targets.NVLINK_BANDWIDTH(*GPU, value=900e9),
    ]
    row = page(*samples).row("0")
    assert row[2] == "95 %"
    assert row[4] == "1.80 / 3.35 TB/s"
    assert row[5] == "0 / 900 GB/s ✕"  # not by colour alone


def test_a_mig_instance_and_an_array_stand_beside_what_they_have_at_most():
    labels = (*GPU, "1", "0")
    samples = [
        *ONE_GPU,
        mig.MIG_INFO(*labels, "MIG-1", "3g.40gb"),
        mig.UTILIZATION(*labels, value=0.5),
        mig.MEMORY_USED(*labels, value=34e9),
        mig.MEMORY_TOTAL(*labels, value=40e9),
        raid.UP("md0"),
        storage.TARGET("md0", "read", "good", value=20e9),
    ]
    rates = {(block.READ_BYTES, ("md0",)): 2.5e9, (block.WRITTEN_BYTES, ("md0",)): 1e6}
    shown = Page(render(build(samples, rates), "n").decode())
    dash = "\N{EN DASH}"
    assert shown.row("0 / 1 / 0")[1:] == ["3g.40gb", "50 %", dash, dash, dash, "34.0 / 40.0 GB"]
    assert shown.row("md0")[3:5] == ["2.50 / 20.0 GB/s", "1.00 MB/s"]
    assert "After the slash" in shown.text
    assert "After the slash" not in page(raid.UP("md0")).text, "no slash"


def test_a_drive_shows_its_wear_and_spare_and_a_worn_one_is_marked():
    samples = [nvme.UP(name, value=1) for name in ("nvme0", "nvme1", "nvme2")]
    samples += [nvme_health.WEAR("nvme0", value=0.03), nvme_health.SPARE("nvme0", value=1)]
    samples += [nvme_health.WEAR("nvme1", value=1.04), nvme_health.SPARE("nvme1", value=0.9)]
    shown = page(*samples)
    assert shown.row("nvme0")[5:7] == ["3 %", "100 %"]
    assert shown.row("nvme1")[5:7] == ["104 % !", "90 %"], "not by colour alone"
    assert shown.row("nvme2")[5:7] == ["\N{EN DASH}"] * 2, "its health log cannot be read"
    assert sum(value == "warning" for tag, name, value in shown.attributes if (tag, name) == ("td", "class")) == 1


def test_the_day_s_largest_loss_stands_beside_its_gpu_where_there_is_a_ledger():
    spent = [
        Spent(
            "0",
            "GPU-0",
            "",
            {"compute": 80000.0, "checkpoint": 2460.0, "data": 90.0},
            {"checkpoint": 2.05, "data": 0.1},
        ),
        Spent("1", "GPU-1", "", {"compute": 80000.0, "host": 0.9}, {"host": 0.1}),
    ]
    shown = Page(render(build([*ONE_GPU, driver.GPU_UP("1", "GPU-1")], spent=spent), "n").decode())
    assert shown.row("0")[-1] == "41 min checkpoint, $2.05"
    assert shown.row("1")[-1] == "\N{EN DASH}"
    assert "Lost most to" in shown.text
    assert "Lost most to" not in page(*ONE_GPU).text


def test_a_collector_that_never_read_says_never():
    assert page(UP("gpu", value=0)).row("gpu")[2] == "never"


@pytest.mark.parametrize(("total", "bars"), [(0, 0), (80e9, 1)])
def test_a_share_of_nothing_has_no_bar(total, bars):
    source = render(build([*ONE_GPU, gpu.MEMORY_USED(*GPU, value=0), gpu.MEMORY_TOTAL(*GPU, value=total)]), "n")
    assert source.count(b"<rect") == bars


def test_links_are_shown_by_mark_and_word():
    other = ("1", "GPU-1")
    shown = page(
        *ONE_GPU, driver.GPU_UP(*other), nvlink.UP(*GPU, "0"), nvlink.UP(*GPU, "1", value=0), nvlink.UP(*other, "0")
    )
    titles = [value for tag, name, value in shown.attributes if tag == "i" and name == "title"]
    assert titles == ["GPU 0 link 0: up", "GPU 0 link 1: down", "GPU 1 link 0: up", "GPU 1 link 1: untold"]


def test_a_simulated_host_says_so_and_a_real_one_does_not():
    assert "SIMULATED host h100x8:steady" in page(SIMULATED("h100x8:steady")).text
    assert "SIMULATED" not in page(SIMULATED("", value=0)).text


def test_the_title_carries_the_verdict():
    source = render(build([driver.GPU_UP(*GPU, value=0), driver.GPU_STATE(*GPU, "lost")]), "n").decode()
    assert "<title>✕ GPU 0: lost: it fell off the bus</title>" in source


def test_what_the_headline_says_is_not_said_again():
    lost = page(driver.GPU_UP(*GPU, value=0), driver.GPU_STATE(*GPU, "lost"), rdma.UP("mlx5_0", "1", value=0))
    assert lost.text.count("it fell off the bus") == 2  # title and headline
    assert "Also found" in lost.text
    assert "mlx5_0 port 1: down" in lost.text


EVIL = "<script>alert(1)</script>\"'&"


def test_everything_from_the_host_is_escaped():
    shown = page(
        driver.GPU_UP(EVIL, EVIL, value=0),
        driver.GPU_STATE(EVIL, EVIL, EVIL),
        driver.GPU_INFO(EVIL, EVIL, EVIL, *[EVIL] * 6),
        nvlink.UP(EVIL, EVIL, "0"),
        mig.MIG_INFO(*[EVIL] * 6),
        raid.UP(EVIL, value=0),
        raid.INFO(EVIL, EVIL, "", ""),
        nvme.UP(EVIL),
        nvme.INFO(EVIL, EVIL, *[""] * 5),
        rdma.UP(EVIL, EVIL),
        rdma.INFO(EVIL, EVIL, *[EVIL] * 7),
        UP(EVIL),
        SIMULATED(EVIL),
        BUILD(EVIL, ""),
    )
    assert len([entry for entry in shown.attributes if entry[0] == "script"]) == 1
    assert shown.text.count(EVIL) >= 8
    assert not re.search(r"\balert\b", " ".join(name for _, name, _ in shown.attributes))


def test_sections_of_what_is_not_there_are_left_out():
    text = page().text
    assert not any(word in text for word in ("MIG instances", "NVLinks", "Storage", "RDMA ports", "Also found"))
    assert "Collectors" in text
