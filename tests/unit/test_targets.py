"""Products and the guide's figures: exact names, the site's overrides, and tables that hang together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.targets import Targets, read_data

H100 = "NVIDIA H100 80GB HBM3"
TARGETS = Targets.load({})


@pytest.mark.parametrize(
    ("name", "memory", "nvlink", "watts"),
    [
        (H100, 3.35e12, 900e9, 700),
        ("NVIDIA H200", 4.8e12, 900e9, 700),
        ("NVIDIA A100-SXM4-80GB", 2.039e12, 600e9, 400),
        ("A100-SXM4-40GB", 1.555e12, 600e9, 400),
        ("NVIDIA B200", 7.7e12, 1800e9, 1000),
        ("NVIDIA GB200", 8e12, 1800e9, 1200),
        ("NVIDIA L40S", 864e9, None, 350),
        ("NVIDIA GeForce RTX 5090", 1.792e12, None, 575),
        ("NVIDIA H100 PCIe", 2e12, None, 350),
        ("NVIDIA H100 NVL", 3.9e12, None, 400),
    ],
)
def test_each_product_has_its_own_figures(name, memory, nvlink, watts):
    assert TARGETS.memory_bandwidth(name) == memory
    assert TARGETS.nvlink_bandwidth(name) == nvlink
    assert TARGETS.power(name) == watts


@pytest.mark.parametrize("name", ["NVIDIA H100", "H100", f"{H100} ", H100.lower(), "", "NVIDIA H100 80GB HBM3e"])
def test_a_name_that_is_only_similar_is_unknown(name):
    assert TARGETS.product(name) is None
    assert TARGETS.memory_bandwidth(name) is None
    assert TARGETS.nvlink_bandwidth(name) is None
    assert TARGETS.power(name) is None


def test_a_bridged_card_has_links_but_no_target_until_the_site_sets_one():
    product = TARGETS.product("NVIDIA H100 NVL")
    assert (product.nvlink_links, product.nvlink_bandwidth_bytes_per_second) == (12, 600e9)
    site = Targets.load({"nvlink_bandwidth_bytes_per_second": 600e9})
    assert site.nvlink_bandwidth("NVIDIA H100 NVL") == 600e9


def test_products_hang_together():
    names = [name for entry in read_data("products.toml")["product"] for name in entry["names"]]
    assert sorted(set(names)) == sorted(names) == sorted(TARGETS.products)
    for product in TARGETS.products.values():
        assert product.source
        assert 0.5e12 < product.memory_bandwidth_bytes_per_second < 10e12
        if product.nvlink_links:
            assert product.nvlink_link_bytes_per_second == (50e9 if product.nvlink_generation == 5 else 25e9)
        # FP8 is twice BF16 where both are dense: a figure with sparsity would stand out.
        if product.fp8_operations_per_second:
            assert product.fp8_operations_per_second / product.bf16_operations_per_second == pytest.approx(2, rel=0.03)
        # Operations per clock are a whole number of multiprocessors times a power of two.
        if product.tensor_clock_hertz:
            per_clock = 2048 if "A100" in product.name else 4096
            processors = product.bf16_operations_per_second / product.tensor_clock_hertz / per_clock
            assert round(processors) in (108, 114, 132)
            assert processors == pytest.approx(round(processors), rel=0.001)


def test_every_figure_of_the_guide_has_its_source_and_the_bands_are_in_order():
    assert all(set(entry) == {"value", "source"} and entry["source"] for entry in read_data("guide.toml").values())
    guide = TARGETS.guide
    assert (
        guide.storage_poor_bytes_per_second < guide.storage_good_bytes_per_second < guide.storage_raid_bytes_per_second
    )
    assert guide.checkpoint_share_ratio == pytest.approx(10 / 60)
    assert guide.checkpoint_bytes / guide.storage_raid_bytes_per_second == pytest.approx(4.7, abs=0.05)


def test_the_site_overrides_the_guide_and_every_gpu():
    site = Targets.load({"storage_good_bytes_per_second": 14e9, "tdp_watts": 650})
    assert site.guide.storage_good_bytes_per_second == 14e9
    assert site.guide.storage_poor_bytes_per_second == TARGETS.guide.storage_poor_bytes_per_second
    assert site.power(H100) == site.power("something else") == 650
    assert site.memory_bandwidth(H100) == 3.35e12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"storage_god": 1.0}, "unknown key target.storage_god; known here: storage_good_bytes_per_second,"),
        ({"tdp_watts": 0.0}, "target.tdp_watts: expected a number above 0, got 0.0"),
        ({"checkpoint_bytes": float("inf")}, "target.checkpoint_bytes: expected a number above 0, got inf"),
        ({"checkpoint_bytes": float("nan")}, "target.checkpoint_bytes: expected a number above 0, got nan"),
    ],
)
def test_a_wrong_override_is_an_error_that_names_its_key(overrides, message):
    with pytest.raises(ConfigError) as error:
        Targets.load(overrides)
    assert str(error.value).startswith(message)


@given(st.text())
def test_no_other_name_is_a_product(name):
    assert (TARGETS.product(name) is not None) == (name in TARGETS.products)
