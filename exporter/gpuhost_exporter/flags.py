"""The flags that commands share, and what they and the configuration file make together."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

from gpuhost_exporter.arguments import text
from gpuhost_exporter.config import (
    LOG_LEVELS,
    CollectorSettings,
    Settings,
    default_config_file,
    default_storage_path,
    load,
)
from gpuhost_exporter.errors import ConfigError


def add_host_options(parser: argparse.ArgumentParser) -> None:
    from gpuhost_exporter.collectors import ALL

    parser.usage = "%(prog)s [options]"  # two for each collector would fill a screen
    parser.add_argument("--config.file", dest="config", type=text, metavar="FILE", help="TOML")
    parser.add_argument(
        "--simulate",
        type=text,
        metavar="HOST[:SCENARIO]",
        help="a simulated host in place of this one, marked as such",
    )
    parser.add_argument("--path.procfs", dest="procfs", type=text, metavar="DIR")
    parser.add_argument("--path.sysfs", dest="sysfs", type=text, metavar="DIR")
    parser.add_argument(
        "--storage.path",
        dest="storage",
        type=text,
        metavar="DIR",
        help="what is kept: learned inventory, baselines of verify",
    )
    parser.add_argument("--log.level", dest="level", choices=LOG_LEVELS)
    collectors = parser.add_argument_group("collectors")
    for collector in ALL:
        collectors.add_argument(
            f"--collector.{collector.name}",
            dest=f"collector_{collector.name}",
            action=argparse.BooleanOptionalAction,
            help=collector.help,
        )


def settings_of(options: argparse.Namespace) -> Settings:
    """The configuration file with the flags over it."""
    from gpuhost_exporter.collectors import ALL
    from gpuhost_exporter.targets import Targets

    names = tuple(collector.name for collector in ALL)
    path = options.config or (None if options.simulate else default_config_file(os.environ))
    settings = load(path, names) if path else Settings()
    try:
        Targets.load(settings.target)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if options.simulate:
        # A simulated host must not teach the inventory of the real one, whose file this is.
        settings = replace(settings, storage_path=None)
    given = {
        "procfs": options.procfs,
        "sysfs": options.sysfs,
        "storage_path": options.storage,
        "log_level": options.level,
        "simulate": options.simulate,
        "simulate_control": getattr(options, "control", None),
        "compat": getattr(options, "compat", None),
        "web_config_file": getattr(options, "web_config", None),
        "listen_addresses": tuple(getattr(options, "listen", None) or ()) or None,
    }
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    collectors = dict(settings.collectors)
    for name in names:
        chosen = getattr(options, f"collector_{name}")
        if chosen is not None:
            collectors[name] = replace(collectors.get(name, CollectorSettings()), enabled=chosen)
    settings = replace(settings, collectors=collectors)
    for key, folder in (("procfs", settings.procfs), ("sysfs", settings.sysfs)):
        if not os.path.isdir(folder):
            raise ConfigError(f"path.{key}: {folder}: no such folder; expected a {key.removesuffix('fs')} file system")
    if settings.simulate:
        from gpuhost_exporter.sim.control import parse_target

        parse_target(settings.simulate)
    return settings


def storage_of(options: argparse.Namespace) -> str:
    """Where the exporter that runs beside this command keeps its state."""
    from gpuhost_exporter.collectors import ALL

    path = None if options.storage else default_config_file(os.environ)
    told = load(path, tuple(collector.name for collector in ALL)).storage_path if path else None
    return str(options.storage or told or default_storage_path(os.environ))
