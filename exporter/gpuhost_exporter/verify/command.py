"""`verify` from its options to its exit code: 0 accepted, 1 rejected, 2 nothing judged, 130 interrupted."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from gpuhost_exporter.app import App
from gpuhost_exporter.collectors import driver, gpu, inventory
from gpuhost_exporter.collectors.per_gpu import NvmlCollector
from gpuhost_exporter.config import Settings
from gpuhost_exporter.errors import ConfigError, SourceError
from gpuhost_exporter.findings import find_each, ranges
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.look import look_twice
from gpuhost_exporter.runner import ERRORS
from gpuhost_exporter.sources import tools
from gpuhost_exporter.sources.launcher import Launcher
from gpuhost_exporter.sources.state import State
from gpuhost_exporter.specs import Sample
from gpuhost_exporter.status import RATED, build
from gpuhost_exporter.table import WIDTH
from gpuhost_exporter.verdict import unread
from gpuhost_exporter.verify import fio, gpus, output, passive, wire
from gpuhost_exporter.verify.ending import Ending
from gpuhost_exporter.verify.live import Live
from gpuhost_exporter.verify.measurement import Asked, Measurement, Planned
from gpuhost_exporter.verify.progress import Progress
from gpuhost_exporter.verify.result import STATE_NAME, Mode, Result, Run, against, baseline, keep

_PATIENCE = 15.0  # seconds for the collectors' first two looks
_DRIVER_PATIENCE = 90.0  # NVML may take a minute to begin, and a second or two for each GPU
_QUIET_SECONDS = 10.0  # of waiting for it without a word
_LOOK_SECONDS = 0.05
_BUSY_RATIO = 0.05
_WITHOUT_DRIVER = ("no_library", "no_driver", "no_gpus")


@dataclass(frozen=True, slots=True)
class Options:
    mode: Mode
    asked: Asked
    while_busy: bool
    new_baseline: bool
    as_json: bool
    junit: str | None


def verify(settings: Settings, launcher: Launcher, options: Options) -> int:
    """Print the report and keep it as the host's baseline. What begins here is gone at the end, however it ends."""
    ending, judged = Ending(), False
    try:
        with ending, ExitStack() as stack:
            report = stack.enter_context(_junit(options.junit))
            with ending.held():
                app = App(settings, launcher, accepting=True)
                stack.callback(_close, app, ending)
            run = _judge(app, options)
            judged = True
            # Kept first: minutes of measuring are not lost to a report that cannot be written.
            _keep(app.host.state, run, options)
            told = _tell(run, app.host.simulated, options)
            if report:
                told = _write(report, run) and told
            return 1 if not run.accepted else 0 if told else 2
    except KeyboardInterrupt:
        if not judged:
            print("interrupted: nothing is judged or kept, and nothing left behind", file=sys.stderr)
        raise


def _close(app: App, ending: Ending) -> None:
    with ending.held():
        app.close()


def _judge(app: App, options: Options) -> Run:
    app.start()
    _await_driver(app)
    rates = look_twice(app, _PATIENCE, (*RATED, gpu.THROTTLED))
    samples = [*app.runner.samples(), *app.own_samples()]
    latest = Latest(samples)
    moved = Latest(Sample(spec, labels, value) for (spec, labels), value in rates.items())
    results = [*passive.check(latest, moved, find_each(latest, moved, app.clock.wall()))]
    missing = unjudged(latest) or unread(build(samples))
    if missing and not any(result.verdict == "fail" for result in results):
        raise ConfigError(f"nothing is judged: {missing}; gpuhost-exporter doctor says why")
    if options.mode != "passive":
        live = Live(app, latest)
        results += _measure(live, _plan(app, live, options), options)
    compared = tuple(against(baseline(app.host.state.load(STATE_NAME), options.mode), results))
    return Run(app.clock.wall(), options.mode, compared)


def _keep(state: State, run: Run, options: Options) -> None:
    if options.mode == "passive":
        return
    state.update(STATE_NAME, partial(keep, run=run, anew=options.new_baseline))
    state.flush()
    if not state.writable:
        print(f"not kept as a baseline: {state.reason}", file=sys.stderr)


def unjudged(latest: Latest) -> str:
    """Why nothing can be said of GPUs that are here, or may be; "" where it can. What speaks against a host counts
    nonetheless: this is asked of one that would pass.
    """
    state, on_bus = latest.state(driver.NVML_STATE), latest.value(driver.GPUS_ON_BUS)
    if state is None:
        return "nothing tells the state of the driver"
    if state == "ok":
        return ""
    told = f"the driver's state is {state.replace('_', ' ')}"
    if on_bus or latest.value(inventory.GPUS_EXPECTED):
        return f"{told}, and there are GPUs"
    uncounted = on_bus is None and any(count for _, count in latest.below(ERRORS, driver.DriverCollector.name))
    if uncounted or state not in _WITHOUT_DRIVER:
        return f"{told}, and GPUs cannot be counted" if on_bus is None else told
    return ""


def busy(latest: Latest) -> list[str]:
    """Indexes of GPUs that somebody uses."""
    used = (
        (index, latest.value(gpu.PROCESSES, index, uuid), latest.value(gpu.UTILIZATION, index, uuid))
        for index, uuid in latest.rows(driver.GPU_UP)
    )
    return [index for index, processes, ratio in used if processes or (ratio or 0.0) > _BUSY_RATIO]


def _await_driver(app: App) -> None:
    """What is looked at before the driver has answered once says nothing of any GPU."""
    if not any(isinstance(task.collector, NvmlCollector) for task in app.runner.tasks):
        return
    begun, told = time.monotonic(), False
    while app.host.nvml.state() == "starting" and (waited := time.monotonic() - begun) < _DRIVER_PATIENCE:
        if waited > _QUIET_SECONDS and not told:
            print(f"waiting for the driver, for {_DRIVER_PATIENCE:.0f} s at most", file=sys.stderr, flush=True)
            told = True
        time.sleep(_LOOK_SECONDS)


def _plan(app: App, live: Live, options: Options) -> list[Planned]:
    if app.host.simulated:
        checks = (*fio.CHECKS.values(), *gpus.CHECKS, *wire.CHECKS)
        return [Result(check, "", "skipped", why="a simulated host is not measured") for check in checks]
    return [
        *fio.plan(options.asked, live, options.mode),
        *gpus.plan(live.latest, app.host.targets, options.mode),
        *wire.plan(options.asked, live.latest, options.mode),
    ]


def _measure(live: Live, planned: Sequence[Planned], options: Options) -> Iterator[Result]:
    running = [each for each in planned if isinstance(each, Measurement)]
    used = busy(live.latest)
    if running and used and not options.while_busy:
        raise ConfigError(
            f"GPUs {ranges(used)} are in use and nothing was measured; --passive only looks, "
            "--while-busy measures beside the job, which disturbs both"
        )
    progress = Progress(sys.stderr, sum(each.seconds for each in running))

    def waiting() -> None:
        progress.show()
        live.look()

    try:
        for each in planned:
            if isinstance(each, Result):
                yield each
            else:
                progress.begin(each.name, each.seconds)
                yield from each.run(waiting)
    finally:
        progress.end()


def _tell(run: Run, simulated: str, options: Options) -> bool:
    """Whether it could be told. A reader who has gone away (`| head`) does not change the verdict."""
    width = shutil.get_terminal_size((WIDTH, 0)).columns  # where it goes to no terminal: as mails have it
    page = output.as_json(run, simulated) + "\n" if options.as_json else ""
    try:
        print(page or output.page(run, simulated, min(width, WIDTH)), end="", flush=True)
    except BrokenPipeError:
        tools.discard_output()
    except OSError as error:
        print(f"gpuhost-exporter: standard output: {error.strerror}", file=sys.stderr)
        tools.discard_output()
        return False
    return True


@contextmanager
def _junit(path: str | None) -> Iterator[tools.Report | None]:
    """Begun before anything is measured, so that what cannot be written is said at once. Raises ConfigError."""
    if path is None:
        yield None
        return
    try:
        report = tools.Report(path)
    except SourceError as error:
        raise ConfigError(f"--junit {error}") from error
    try:
        yield report
    finally:
        report.close()


def _write(report: tools.Report, run: Run) -> bool:
    try:
        report.write(output.junit(run, os.uname().nodename))
    except SourceError as error:
        print(f"gpuhost-exporter: --junit {error}", file=sys.stderr)
        return False
    return True
