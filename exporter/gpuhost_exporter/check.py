"""`check-config`: what serve would refuse, and what is in force."""

from __future__ import annotations

import os

from gpuhost_exporter.config import Settings, default_storage_path
from gpuhost_exporter.errors import ConfigError, SourceError
from gpuhost_exporter.latency.settings import LatencySettings
from gpuhost_exporter.ledger.thresholds import Thresholds, check_intervals
from gpuhost_exporter.sources.latency import keys
from gpuhost_exporter.web.listen import parse_address
from gpuhost_exporter.web.webconfig import WebConfig


def check(settings: Settings) -> None:
    """Print what is in force. Raises ConfigError for the first thing that is wrong."""
    Thresholds.load(settings.ledger)
    check_intervals(settings.collectors)
    if settings.web_config_file:
        WebConfig.load(settings.web_config_file)
    for address in settings.listen_addresses:
        parse_address(address)
    probed = _probed(settings.latency) if settings.latency else "none"
    print(f"listen addresses: {', '.join(settings.listen_addresses)}")
    print(f"web configuration file: {settings.web_config_file or 'none'}")
    print(f"procfs: {settings.procfs}")
    print(f"sysfs: {settings.sysfs}")
    print(f"storage path: {settings.storage_path or default_storage_path(os.environ)}")
    print(f"log level: {settings.log_level}")
    print(f"NVML call timeout: {settings.nvml_call_timeout:g} s")
    print(f"hosts whose latency is probed: {probed}")
    off = [name for name, chosen in settings.collectors.items() if chosen.enabled is False]
    print(f"collectors off: {', '.join(off) or 'none'}")


def _probed(settings: LatencySettings) -> str:
    try:
        keys.load(settings.key_file)
    except SourceError as error:
        raise ConfigError(f"latency.key-file: {error}") from error
    return ", ".join(settings.targets())
