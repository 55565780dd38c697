"""The command line. Exit codes: 0 done, 1 failed while working, 2 a usage or configuration error, in one line.

Of `verify` and `health` 1 is a verdict: whatever else goes wrong there is 2.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from gpuhost_exporter import __version__, health, nodecondition
from gpuhost_exporter.arguments import Parser, positive_seconds, text
from gpuhost_exporter.config import (
    SERVICE_RUNTIME_PATH,
    default_runtime_path,
)
from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.flags import add_host_options, settings_of, storage_of
from gpuhost_exporter.sources import linux
from gpuhost_exporter.sources.launcher import Launcher
from gpuhost_exporter.sources.readers import KINDS
from gpuhost_exporter.verify import arguments as verify_arguments

_FEWEST_ITERATIONS = 10
_JUDGING = ("verify", "health")
_READING = ("serve", "snapshot", "doctor", "verify")


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # cannot be subscripted before Python 3.11


class _LogHandler(_StreamHandler):
    """Drops lines while nobody empties the pipe that they go to: a thread that waited there would not read or stop."""

    def emit(self, record: logging.LogRecord) -> None:
        if select.select([], [self.stream], [], 0)[1]:
            super().emit(record)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    _open_standard_streams()
    # Readers share the launcher's memory: it is forked before what they do not need is imported.
    linux.bound_malloc()
    launcher = Launcher.start(KINDS) if arguments and arguments[0] in _READING else None
    judges = bool(arguments) and arguments[0] in _JUDGING
    status = 2 if judges else 0
    try:
        status = _run(arguments, launcher)
        sys.stdout.flush()
    except ConfigError as error:
        print("gpuhost-exporter:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not our failure, and nothing more to say.
        _discard_output()
        return status
    except OSError as error:
        print(f"gpuhost-exporter: {error}", file=sys.stderr)
        _discard_output()
        return 2 if judges else 1
    except KeyboardInterrupt:
        return 130
    finally:
        if launcher:
            launcher.close()
    return status


def _run(arguments: Sequence[str], launcher: Launcher | None) -> int:
    try:
        options = _parser().parse_args(arguments, argparse.Namespace(launcher=launcher))
    except SystemExit:  # help or version has been printed
        return 0
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


def _open_standard_streams() -> None:
    """Whoever starts us with 0, 1 or 2 closed must not have our sockets take their numbers and their output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path is bytes, and a terminal may know ASCII only


def _discard_output() -> None:
    """Else the interpreter would fail once more at its end, on what is still buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="gpuhost-exporter",
        description="Says whether a GPU host delivers the metal that is paid for, and where every GPU-second went.",
    )
    parser.add_argument("--version", action="version", version=f"gpuhost-exporter {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", prog=parser.prog)  # else it formats a usage

    def command(name: str, run: Callable[[argparse.Namespace], int], does: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=does, description=does)
        added.set_defaults(run=run)
        return added

    serve = command("serve", _serve, "Serve this host's metrics until stopped.")
    add_host_options(serve)
    serve.add_argument(
        "--web.listen-address",
        dest="listen",
        action="append",
        metavar="ADDRESS",
        help="host:port; may be given again (default :19400)",
    )
    serve.add_argument(
        "--web.config.file",
        dest="web_config",
        type=text,
        metavar="FILE",
        help="TLS and basic auth, as for other Prometheus exporters",
    )
    serve.add_argument(
        "--simulate.control",
        dest="control",
        type=text,
        metavar="FILE",
        help="where the simulation's control file is kept",
    )
    serve.add_argument(
        "--compat", choices=("dcgm",), help="serve GPU metrics under the names of NVIDIA's dcgm-exporter too"
    )
    snapshot = command("snapshot", _snapshot, "One look at this host: a table, or JSON.")
    add_host_options(snapshot)
    snapshot.add_argument("--json", action="store_true", help="every sample, for programs")
    snapshot.add_argument(
        "--timeout", default="5s", metavar="DURATION", help="how long to wait for slow hardware (default 5s)"
    )
    doctor = command("doctor", _doctor, "Each collector: on or off, why, and what grants it more.")
    add_host_options(doctor)
    verify = command("verify", _verify, "Accept or reject this host: what it tells, then what it delivers.")
    verify.description = verify_arguments.DESCRIPTION
    verify_arguments.add_arguments(verify)
    add_host_options(verify)
    health.add_arguments(command("health", health.run, health.DOES))
    nodecondition.add_arguments(
        command("node-condition", _node_condition, "Keep the verdict as a condition of this Kubernetes node; dry run.")
    )
    command("drains", _drains, "Which findings take a host out of service, as Markdown.")
    check = command("check-config", _check_config, "Check configuration files; print what is in force.")
    add_host_options(check)
    check.add_argument("--web.config.file", dest="web_config", type=text, metavar="FILE")
    metrics = command("metrics", _metrics, "The catalogue of metrics as Markdown, or JSON.")
    metrics.add_argument("--json", action="store_true")
    metrics.add_argument("--collectors", action="store_true", help="the table of collectors instead")
    report = command("report", _report, "What GPU time was lost to what, and what it cost, from the hourly buckets.")
    report.add_argument("--since", default="24h", metavar="DURATION", help="so far back, by whole hours (default 24h)")
    report.add_argument("--json", action="store_true")
    report.add_argument("--storage.path", dest="storage", type=text, metavar="DIR")
    allreduce = command(
        "allreduce",
        _allreduce,
        "On every rank of an MPI job: measure a small allreduce for the exporters of its hosts.",
    )
    allreduce.add_argument(
        "--iterations", type=int, default=500, metavar="N", help="allreduces measured, 10 to 1000 (default 500)"
    )
    allreduce.add_argument("--storage.path", dest="storage", type=text, metavar="DIR")
    release = command(
        "release", _release, "Have the running exporter let go of NVML, so that the driver can be unloaded."
    )
    release.add_argument(
        "--for",
        dest="duration",
        default="10m",
        metavar="DURATION",
        help="take it up again after this (default 10m)",
    )
    command("resume", _resume, "Have the running exporter take NVML up again.")
    simulate = command("simulate", _simulate, "Change the scenario of a running simulation.")
    simulate.add_argument("scenario")
    simulate.add_argument(
        "--control", required=True, type=text, metavar="FILE", help="the control file that `serve --simulate` named"
    )
    forget = command("forget", _forget, "Drop a device that is gone for good from the learned inventory.")
    forget.add_argument(
        "device",
        help="a GPU's uuid, a drive's serial, an array or a port, as gpuhost_inventory_missing names it",
    )
    forget.add_argument("--storage.path", dest="storage", type=text, metavar="DIR")
    return parser


def _log(level: str) -> None:
    # systemd's journal brings its own time stamps.
    stamp = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "
    logging.basicConfig(
        level=level.upper(), format=f"{stamp}%(levelname)s %(message)s", handlers=[_LogHandler(sys.stderr)]
    )


def _serve(options: argparse.Namespace) -> int:
    from gpuhost_exporter.serving import serve

    settings = settings_of(options)
    _log(settings.log_level)
    return serve(settings, options.launcher)


def _snapshot(options: argparse.Namespace) -> int:
    from gpuhost_exporter.look import snapshot

    timeout = positive_seconds(options.timeout)
    settings = settings_of(options)
    _log("error" if options.level is None else options.level)
    return snapshot(settings, options.launcher, timeout, as_json=options.json)


def _doctor(options: argparse.Namespace) -> int:
    from gpuhost_exporter.look import doctor

    settings = settings_of(options)
    _log("error" if options.level is None else options.level)
    return doctor(settings, options.launcher)


def _verify(options: argparse.Namespace) -> int:
    from gpuhost_exporter.verify.command import Options, verify
    from gpuhost_exporter.verify.measurement import Asked

    settings = settings_of(options)
    _log("error" if options.level is None else options.level)
    asked = Asked(options.directory, options.peer, settings.storage_path)
    chosen = Options(options.mode, asked, options.while_busy, options.new_baseline, options.json, options.junit)
    return verify(settings, options.launcher, chosen)


def _node_condition(options: argparse.Namespace) -> int:
    _log("info")
    return nodecondition.run(options)


def _drains(_options: argparse.Namespace) -> int:
    from gpuhost_exporter.kinds import drains_page

    print(drains_page(), end="")
    return 0


def _check_config(options: argparse.Namespace) -> int:
    from gpuhost_exporter.check import check

    check(settings_of(options))
    return 0


def _metrics(options: argparse.Namespace) -> int:
    from gpuhost_exporter import catalogue

    if options.collectors:
        print(catalogue.collectors_table(), end="")
    elif options.json:
        rows = [
            {
                "name": spec.name,
                "type": spec.kind,
                "unit": spec.unit,
                "labels": spec.labels,
                "help": spec.help,
            }
            for spec in catalogue.specs().values()
        ]
        print(json.dumps(rows, indent=1))
    else:
        print(catalogue.metrics_page(), end="")
    return 0


def _report(options: argparse.Namespace) -> int:
    from gpuhost_exporter.clock import SystemClock
    from gpuhost_exporter.report import LONGEST, report
    from gpuhost_exporter.sources.state import State

    seconds = positive_seconds(options.since, LONGEST)
    state = State(storage_of(options))
    return report(state, SystemClock(), seconds, as_json=options.json)


def _allreduce(options: argparse.Namespace) -> int:
    from gpuhost_exporter.latency.allreduce import allreduce
    from gpuhost_exporter.latency.collective import MOST_ITERATIONS

    if not _FEWEST_ITERATIONS <= options.iterations <= MOST_ITERATIONS:
        raise ConfigError(f"--iterations: expected {_FEWEST_ITERATIONS} to {MOST_ITERATIONS}, got {options.iterations}")
    return allreduce(storage_of(options), options.iterations)


def _release(options: argparse.Namespace) -> int:
    from gpuhost_exporter.sources.runtime import Runtime

    seconds = positive_seconds(options.duration)
    pid = Runtime.of_daemon(default_runtime_path(os.environ), SERVICE_RUNTIME_PATH).signal_release(seconds)
    print(f"asked gpuhost-exporter ({pid}) to let go of NVML for {seconds:.0f} s")
    return 0


def _resume(_options: argparse.Namespace) -> int:
    from gpuhost_exporter.sources.runtime import Runtime

    pid = Runtime.of_daemon(default_runtime_path(os.environ), SERVICE_RUNTIME_PATH).signal_resume()
    print(f"asked gpuhost-exporter ({pid}) to take NVML up again")
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from gpuhost_exporter.clock import SystemClock
    from gpuhost_exporter.sim import control

    control.switch(options.control, options.scenario, SystemClock())
    return 0


def _forget(options: argparse.Namespace) -> int:
    from gpuhost_exporter.collectors.inventory import forget
    from gpuhost_exporter.sources.state import State

    folder = storage_of(options)
    if not forget(State(folder), options.device):
        raise ConfigError(f"{folder}: the learned inventory has no device {options.device!r}")
    print(f"forgot {options.device}")
    return 0
