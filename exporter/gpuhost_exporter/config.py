"""The configuration file and the command line, as one frozen Settings. An unknown key is an error naming its path.

[web]
listen-address = [":19400"]          # --web.listen-address
config-file = "web.yml"              # --web.config.file: TLS and basic auth
[path]
procfs = "/proc"                     # --path.procfs
sysfs = "/sys"                       # --path.sysfs
[storage]
path = "/var/lib/gpuhost-exporter"   # --storage.path
[log]
level = "info"                       # --log.level
[nvml]
call-timeout = 10                    # seconds until a hung call gets the reader killed
[collector.rdma]
enabled = false                      # --no-collector.rdma
interval = 10                        # seconds
[inventory]                          # what must be there; without it, what was ever seen
gpus = 8
arrays = ["md0"]
[target]                             # the site's own figures in place of the guide's
storage_good_bytes_per_second = 14e9
[ledger]                             # thresholds of the GPU-time ledger, in place of its start values
gap_ratio = 0.1
[price]
gpu-hour = 3.0                       # dollars
product = { "NVIDIA H100 80GB HBM3" = 2.4 }
[job]                                # what gpuhost_gpu_job_info shows: plain, hash or off
names = "plain"                      # of jobs, pods, projects and runs
users = "off"
[latency]                            # probes between hosts; off without it. latency/settings.py has the rest
key-file = "latency.key"             # shared by the hosts; keys.py has its form
hosts = { gpu-a = "10.0.0.1:19401", gpu-b = "10.0.0.2:19401" }
"""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from gpuhost_exporter.errors import ConfigError

if TYPE_CHECKING:
    from gpuhost_exporter.latency.settings import LatencySettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOG_LEVELS = ("debug", "info", "warning", "error")
DEFAULT_ADDRESS = ":19400"
SERVICE_RUNTIME_PATH = "/run/gpuhost-exporter"  # of the packages' unit, whoever asks
INVENTORY_KINDS = ("gpus", "links", "drives", "arrays", "ports")
Shown = Literal["plain", "hash", "off"]
_SHOWN: tuple[Shown, ...] = get_args(Shown)
_INTERVALS = (0.2, 3600.0)
_SECTIONS = (
    "web", "path", "storage", "log", "nvml", "collector", "inventory", "target", "ledger", "price", "job", "latency",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CollectorSettings:
    enabled: bool | None = None  # None: the collector's own default
    interval: float | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars for an hour of a GPU; `products` by the name that NVML reports."""

    gpu_hour: float = 3.0  # the middle of the guide's $2-4
    products: Mapping[str, float] = field(default_factory=dict)

    def of(self, product: str) -> float:
        return self.products.get(product, self.gpu_hour)


@dataclass(frozen=True, slots=True)
class JobNames:
    """How much of who uses a GPU may be seen by everybody who sees the metrics."""

    names: Shown = "plain"
    users: Shown = "off"


@dataclass(frozen=True, slots=True)
class Settings:
    listen_addresses: tuple[str, ...] = (DEFAULT_ADDRESS,)
    web_config_file: str | None = None
    procfs: str = "/proc"
    sysfs: str = "/sys"
    storage_path: str | None = None
    log_level: str = "info"
    nvml_call_timeout: float = 10.0
    collectors: Mapping[str, CollectorSettings] = field(default_factory=dict)
    inventory: Mapping[str, int | tuple[str, ...]] = field(default_factory=dict)
    target: Mapping[str, float] = field(default_factory=dict)
    ledger: Mapping[str, float] = field(default_factory=dict)
    price: Price = field(default_factory=Price)
    job: JobNames = field(default_factory=JobNames)
    latency: LatencySettings | None = None
    compat: str | None = None  # further names to serve metrics under
    simulate: str | None = None
    simulate_control: str | None = None


def default_storage_path(environment: Mapping[str, str]) -> str:
    """systemd's StateDirectory, else the packaged service's where a package says so, else the user's state folder."""
    if environment.get("STATE_DIRECTORY"):
        return environment["STATE_DIRECTORY"].split(":")[0]
    if environment.get("GPUHOST_EXPORTER_STORAGE"):
        return environment["GPUHOST_EXPORTER_STORAGE"]
    home = environment.get("XDG_STATE_HOME") or os.path.join(environment.get("HOME") or "/root", ".local", "state")
    return os.path.join(home, "gpuhost-exporter")


def default_runtime_path(environment: Mapping[str, str]) -> str:
    """systemd's RuntimeDirectory, else the user's: where the daemon leaves its process id."""
    if environment.get("RUNTIME_DIRECTORY"):
        return environment["RUNTIME_DIRECTORY"].split(":")[0]
    if environment.get("XDG_RUNTIME_DIR"):
        return os.path.join(environment["XDG_RUNTIME_DIR"], "gpuhost-exporter")
    return os.path.join(default_storage_path(environment), "run")


def default_config_file(environment: Mapping[str, str]) -> str | None:
    """The packaged service's, where a package says so: what stands beside the service goes by its settings.

    Who may not read it goes without, and is told: `snapshot` and `doctor` are everybody's.
    """
    path = environment.get("GPUHOST_EXPORTER_CONFIG")
    if not path or not os.path.exists(path):
        return None
    if not os.access(path, os.R_OK):
        print(f"gpuhost-exporter: {path}: Permission denied; its settings are left out", file=sys.stderr)
        return None
    return path


def load(path: str, collector_names: tuple[str, ...]) -> Settings:
    """Read the file. Raises ConfigError: one line that names file, key and what was expected."""
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also a number of 5000 digits, a thousand brackets
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return parse(document, path, collector_names)


def parse(document: Mapping[str, Any], path: str, collector_names: tuple[str, ...]) -> Settings:
    reader = Reader(path)
    settings = Settings()
    sections = reader.table(document, "", _SECTIONS)
    web = reader.table(sections.get("web", {}), "web", ("listen-address", "config-file"))
    if "listen-address" in web:
        value = web["listen-address"]
        listed = [value] if isinstance(value, str) else value
        settings = replace(settings, listen_addresses=reader.strings(listed, "web.listen-address"))
    folder = os.path.dirname(os.path.abspath(path))
    if "config-file" in web:
        name = reader.string(web["config-file"], "web.config-file")
        settings = replace(settings, web_config_file=os.path.join(folder, name))
    paths = reader.table(sections.get("path", {}), "path", ("procfs", "sysfs"))
    storage = reader.table(sections.get("storage", {}), "storage", ("path",))
    logs = reader.table(sections.get("log", {}), "log", ("level",))
    nvml = reader.table(sections.get("nvml", {}), "nvml", ("call-timeout",))
    if "procfs" in paths:
        settings = replace(settings, procfs=reader.string(paths["procfs"], "path.procfs"))
    if "sysfs" in paths:
        settings = replace(settings, sysfs=reader.string(paths["sysfs"], "path.sysfs"))
    if "path" in storage:
        settings = replace(settings, storage_path=reader.string(storage["path"], "storage.path"))
    if "level" in logs:
        settings = replace(settings, log_level=reader.one_of(logs["level"], "log.level", LOG_LEVELS))
    if "call-timeout" in nvml:
        settings = replace(
            settings, nvml_call_timeout=reader.number(nvml["call-timeout"], "nvml.call-timeout", 0.5, 300)
        )
    collectors = _collectors(reader, sections.get("collector", {}), collector_names)
    if "latency" in sections and collectors.get("latency", CollectorSettings()).enabled is None:
        collectors["latency"] = replace(collectors.get("latency", CollectorSettings()), enabled=True)
    return replace(
        settings,
        collectors=collectors,
        inventory=_inventory(reader, sections.get("inventory", {})),
        target=_numbers(reader, sections.get("target", {}), "target"),
        ledger=_numbers(reader, sections.get("ledger", {}), "ledger"),
        price=_price(reader, sections.get("price", {})),
        job=_job(reader, sections.get("job", {})),
        latency=_latency(reader, sections["latency"], folder) if "latency" in sections else None,
    )


def _numbers(reader: Reader, section: Any, key: str) -> dict[str, float]:
    """A table whose names its own room checks."""
    return {
        name: reader.number(value, f"{key}.{name}", 0, float("inf"))
        for name, value in reader.table(section, key, None).items()
    }


def _latency(reader: Reader, section: Any, folder: str) -> LatencySettings:
    from gpuhost_exporter.latency.settings import parse

    return parse(reader, section, folder)


def _price(reader: Reader, section: Any) -> Price:
    keys = reader.table(section, "price", ("gpu-hour", "product"))
    return Price(
        reader.number(keys.get("gpu-hour", Price().gpu_hour), "price.gpu-hour", 0, 1e6),
        {
            name: reader.number(value, f"price.product.{name}", 0, 1e6)
            for name, value in reader.table(keys.get("product", {}), "price.product", None).items()
        },
    )


def _job(reader: Reader, section: Any) -> JobNames:
    chosen: dict[str, Shown] = {}
    for name, value in reader.table(section, "job", ("names", "users")).items():
        reader.one_of(value, f"job.{name}", _SHOWN)
        chosen[name] = value
    return JobNames(**chosen)


def _collectors(reader: Reader, section: Any, names: tuple[str, ...]) -> dict[str, CollectorSettings]:
    found = {}
    for name, value in reader.table(section, "collector", names).items():
        keys = reader.table(value, f"collector.{name}", ("enabled", "interval"))
        enabled = keys.get("enabled")
        if enabled is not None and not isinstance(enabled, bool):
            raise reader.error(f"collector.{name}.enabled", "true or false", enabled)
        interval = keys.get("interval")
        if interval is not None:
            interval = reader.number(interval, f"collector.{name}.interval", *_INTERVALS)
        found[name] = CollectorSettings(enabled, interval)
    return found


def _inventory(reader: Reader, section: Any) -> dict[str, int | tuple[str, ...]]:
    found: dict[str, int | tuple[str, ...]] = {}
    for kind, value in reader.table(section, "inventory", INVENTORY_KINDS).items():
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            found[kind] = value
        elif isinstance(value, list):
            found[kind] = reader.strings(value, f"inventory.{kind}")
        else:
            raise reader.error(f"inventory.{kind}", "a count or a list of names", value)
    return found


@dataclass(frozen=True, slots=True)
class Reader:
    path: str

    def error(self, key: str, expected: str, value: object) -> ConfigError:
        return ConfigError(f"{self.path}: {key}: expected {expected}, got {reprlib.repr(value)}")

    def table(self, value: Any, key: str, known: tuple[str, ...] | None) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self.error(key, "a table", value)
        for name in value:
            if known is not None and name not in known:
                where = f"{key}.{name[:80]}" if key else name[:80]
                raise ConfigError(f"{self.path}: unknown key {where}; known here: {', '.join(known)}")
        return value

    def string(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or not value or "\0" in value:
            raise self.error(key, "a text", value)
        return value

    def strings(self, value: Any, key: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise self.error(key, "a list of texts", value)
        return tuple(self.string(item, key) for item in value)

    def one_of(self, value: Any, key: str, choices: tuple[str, ...]) -> str:
        if value not in choices:
            raise self.error(key, "one of " + ", ".join(choices), value)
        return str(value)

    def count(self, value: Any, key: str, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f"a whole number from {low} to {high}", value)
        return value

    def number(self, value: Any, key: str, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.error(key, f"a number from {low:g} to {high:g}", value)
        return float(value)
