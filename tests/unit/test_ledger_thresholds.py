"""What the ledger decides by, and what a site may set."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.gpus import FakeNvml, gpu, host_of

from gpuhost_exporter import config
from gpuhost_exporter.collectors.ledger import LedgerCollector
from gpuhost_exporter.config import Price
from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.ledger.thresholds import Thresholds, check_intervals


def test_the_configuration_sets_thresholds_and_prices():
    settings = config.parse(
        {"ledger": {"gap_ratio": 0.2}, "price": {"gpu-hour": 2, "product": {"NVIDIA H200": 3.5}}}, "x.toml", ()
    )
    limits = Thresholds.load(settings.ledger)
    assert (limits.gap_ratio, limits.checkpoint_bytes) == (0.2, 256e6)
    assert settings.price == Price(2.0, {"NVIDIA H200": 3.5})
    assert (settings.price.of("NVIDIA H200"), settings.price.of("NVIDIA L40S")) == (3.5, 2.0)


def test_an_hour_costs_three_dollars_where_nothing_is_set():
    assert config.parse({}, "x.toml", ()).price.of("NVIDIA H100 80GB HBM3") == 3.0


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"gap": 0.2}, "unknown key ledger.gap; known here: gap_ratio"),
        ({"gap_ratio": 0.0}, "ledger.gap_ratio: expected"),
    ],
)
def test_what_makes_no_sense_is_refused(chosen, message):
    with pytest.raises(ConfigError, match=message):
        Thresholds.load(chosen)


@pytest.mark.parametrize("name", ["gpu", "ledger"])
def test_a_ledger_whose_gpus_are_read_too_seldom_is_refused(name):
    def check(chosen):
        settings = config.parse({"collector": chosen}, "x.toml", ("gpu", "ledger", "nvme"))
        check_intervals(settings.collectors)

    check({name: {"interval": 2}, "nvme": {"interval": 60}})
    check({name: {"interval": 5}, "ledger": {"interval": 5, "enabled": False}})
    with pytest.raises(
        ConfigError, match=rf"collector\.{name}\.interval: expected at most 2 seconds, got 5; longer only"
    ):
        check({name: {"interval": 5}})


def test_serve_refuses_it_too():
    settings = config.parse({"collector": {"gpu": {"interval": 5}}}, "x.toml", ("gpu",))
    host = replace(host_of(FakeNvml(gpu(0))), settings=settings)
    with pytest.raises(ConfigError, match=r"collector\.gpu\.interval"):
        LedgerCollector(host)
