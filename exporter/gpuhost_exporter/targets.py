"""What a host is measured against: the guide's figures and what each GPU product can do, from data/*.toml.

A product is found by the exact name that NVML reports; one that is not listed is unknown, not guessed. The site's
`[target]` table overrides a figure of the guide, or a product figure for every GPU of the host.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.sources.files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PER_GPU = ("nvlink_bandwidth_bytes_per_second", "memory_bandwidth_bytes_per_second", "tdp_watts")


@dataclass(frozen=True, slots=True)
class Product:
    """One GPU product. None means that the product has no such thing or that its figure is not known.

    NVLink rates are payload: of one link in one direction, and of all links in both. Operations are dense, and
    tensor_clock_hertz is the clock that they are stated for.
    """

    name: str
    source: str
    memory_bandwidth_bytes_per_second: float | None
    nvlink_generation: int | None
    nvlink_links: int | None
    nvlink_link_bytes_per_second: float | None
    nvlink_needs_bridge: bool
    pcie_generation: int | None
    pcie_width: int | None
    bf16_operations_per_second: float | None
    fp8_operations_per_second: float | None
    tensor_clock_hertz: float | None
    tdp_watts: float | None

    @property
    def nvlink_bandwidth_bytes_per_second(self) -> float | None:
        """All links, both directions."""
        if self.nvlink_links is None or self.nvlink_link_bytes_per_second is None:
            return None
        return self.nvlink_links * self.nvlink_link_bytes_per_second * 2


@dataclass(frozen=True, slots=True)
class Guide:
    """The guide's figures; data/guide.toml says where each is from."""

    storage_good_bytes_per_second: float
    storage_poor_bytes_per_second: float
    storage_raid_bytes_per_second: float
    pcie_fallback_factor_low: float
    pcie_fallback_factor_high: float
    roce_port_bytes_per_second: float
    collective_latency_seconds: float
    utilization_metal_low_ratio: float
    utilization_metal_high_ratio: float
    utilization_vm_low_ratio: float
    utilization_vm_high_ratio: float
    dedicated_utilization_ratio: float
    dedicated_gpu_seconds: float
    dedicated_requests_per_second: float
    checkpoint_share_ratio: float
    checkpoint_bytes: float


@dataclass(frozen=True, slots=True)
class Targets:
    guide: Guide
    products: Mapping[str, Product] = field(repr=False)
    site: Mapping[str, float]  # figures that the site sets; a product's for every GPU of the host

    @classmethod
    def load(cls, overrides: Mapping[str, float]) -> Targets:
        """The shipped figures with the site's in their place. Raises ConfigError, naming the key."""
        figures = {key: entry["value"] for key, entry in read_data("guide.toml").items()}
        guide = Guide(**figures)
        known = tuple(item.name for item in fields(Guide)) + PER_GPU
        for key, value in overrides.items():
            if key not in known:
                raise ConfigError(f"unknown key target.{key}; known here: {', '.join(known)}")
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"target.{key}: expected a number above 0, got {value!r}")
        return cls(
            replace(guide, **{key: value for key, value in overrides.items() if key in figures}),
            {product.name: product for entry in read_data("products.toml")["product"] for product in _products(entry)},
            dict(overrides),
        )

    def product(self, name: str) -> Product | None:
        """The product that NVML calls exactly so."""
        return self.products.get(name)

    def memory_bandwidth(self, name: str) -> float | None:
        """Bytes/s that the GPU's memory should deliver."""
        return self._of_gpu("memory_bandwidth_bytes_per_second", name)

    def power(self, name: str) -> float | None:
        """Watts that the GPU is built to draw."""
        return self._of_gpu("tdp_watts", name)

    def tensor_clock(self, name: str) -> float | None:
        """Hertz of the multiprocessors at which the product's dense peak on the tensor cores is stated."""
        product = self.product(name)
        return product.tensor_clock_hertz if product else None

    def nvlink_bandwidth(self, name: str) -> float | None:
        """Bytes/s, all links and both directions. Whether a card has its bridge only the site can tell."""
        product = self.product(name)
        if product and product.nvlink_needs_bridge and "nvlink_bandwidth_bytes_per_second" not in self.site:
            return None
        return self._of_gpu("nvlink_bandwidth_bytes_per_second", name)

    def _of_gpu(self, figure: str, name: str) -> float | None:
        if figure in self.site:
            return self.site[figure]
        product = self.product(name)
        return getattr(product, figure) if product else None


def read_data(name: str) -> dict[str, Any]:
    """One of the package's own tables."""
    # Not importlib.resources: with it come tempfile, random and OpenSSL, 2 MiB in every process.
    data: dict[str, Any] = tomllib.loads(read_text(f"{os.path.dirname(__file__)}/data/{name}"))
    return data


def _products(entry: Mapping[str, Any]) -> tuple[Product, ...]:
    return tuple(
        Product(
            name=name,
            source=entry["source"],
            memory_bandwidth_bytes_per_second=entry.get("memory_bandwidth"),
            nvlink_generation=entry.get("nvlink_generation"),
            nvlink_links=entry.get("nvlink_links"),
            nvlink_link_bytes_per_second=entry.get("nvlink_link"),
            nvlink_needs_bridge=entry.get("nvlink_bridge", False),
            pcie_generation=entry.get("pcie_generation"),
            pcie_width=entry.get("pcie_width"),
            bf16_operations_per_second=entry.get("bf16"),
            fp8_operations_per_second=entry.get("fp8"),
            tensor_clock_hertz=entry.get("tensor_clock"),
            tdp_watts=entry.get("tdp_watts"),
        )
        for name in entry["names"]
    )
