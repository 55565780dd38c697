"""What the ledger decides by, and what a site may set."""

from __future__ import annotations

import pytest

from gpuhost_exporter import config
from gpuhost_exporter.config import Price
from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.ledger.thresholds import Thresholds


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
