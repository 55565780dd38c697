"""`serve`: an App that reads, a web server that tells, and signals until one ends both."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping

from gpuhost_exporter.app import App
from gpuhost_exporter.config import Settings, default_runtime_path
from gpuhost_exporter.latest import Rates, Series
from gpuhost_exporter.sources import linux
from gpuhost_exporter.sources.launcher import Launcher
from gpuhost_exporter.sources.runtime import Runtime
from gpuhost_exporter.sources.systemd import ServiceManager

log = logging.getLogger(__name__)

_RELEASE_SECONDS = 600.0
_LOOK_SECONDS = 5.0
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)


def serve(settings: Settings, launcher: Launcher) -> int:
    """Run until a signal ends it. Raises ConfigError when it cannot begin."""
    from gpuhost_exporter.status import RATED
    from gpuhost_exporter.web.routes import Routes
    from gpuhost_exporter.web.server import Server

    linux.name_process("gpuhost-exporter")
    sys.setswitchinterval(0.001)  # a scrape that falls on a tick waits for the collectors' threads 1 ms, not 5
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    app = App(settings, launcher)
    try:
        rates = Rates(RATED)
        routes = Routes(
            metrics=app.exposition.render,
            healthy=lambda: _healthy(app),
            ready=lambda: _ready(app),
            page=lambda nonce: _page(app, rates.look(app.runner.snapshots()), nonce),
            verdict=lambda: _verdict(app, rates.look(app.runner.snapshots())),
        )
        server = Server(settings.listen_addresses, routes, settings.web_config_file)
        app.server_samples = server.samples
        folder = default_runtime_path(os.environ)
        runtime = Runtime(folder)
        manager = ServiceManager(os.environ, os.getpid())
        server.start()  # before the collectors: an address that is taken ends it with that one line
        app.hear_marks(folder)
        app.start(probing=True)
        runtime.write_pid()
        listening = f"listening on {', '.join(server.addresses)}"
        log.info(listening)
        manager.ready(listening)

        stopping = threading.Event()

        def look() -> None:
            while not stopping.wait(manager.pause(_LOOK_SECONDS)):
                rates.look(app.runner.snapshots())  # a page opened has rates at once
                if app.runner.progressing():  # hung hardware or not: a restart would hang on it, too
                    manager.alive()

        threading.Thread(target=look, name="look", daemon=True).start()
        try:
            return _until_stopped(app, runtime)
        finally:
            stopping.set()
            manager.stopping()
            runtime.remove_pid()
            server.close()
    finally:
        app.close()


def _until_stopped(app: App, runtime: Runtime) -> int:
    """Serve signals until one ends it; the exit status."""
    while True:
        # Not sigtimedwait: stopped for longer than its time (SIGSTOP, a frozen container), it returns a signal that
        # nobody sent.
        received = signal.sigwaitinfo(_HANDLED)
        if received.si_signo == signal.SIGUSR1:
            seconds = runtime.take_release() or _RELEASE_SECONDS
            log.info("releasing NVML for %.0f s", seconds)
            app.host.nvml.release(seconds)
            app.runner.hurry()
        elif received.si_signo == signal.SIGCHLD:
            if app.launcher.ended():
                log.error("the launcher has gone, and every reader with it: ending, to be started anew")
                return 1
        elif received.si_signo == signal.SIGUSR2:
            log.info("taking NVML up again")
            app.host.nvml.resume()
            app.runner.hurry()
        else:
            log.info("%s: stopping", signal.Signals(received.si_signo).name)
            return 0


def _healthy(app: App) -> tuple[bool, str]:
    if app.runner.progressing():
        return True, "the sampler is alive"
    return False, "no collector has finished a poll within its lifetime"


def _ready(app: App) -> tuple[bool, str]:
    waiting = app.runner.waiting()
    return (False, "not polled yet: " + ", ".join(waiting)) if waiting else (True, "every collector has polled")


def _page(app: App, rates: Mapping[Series, float], nonce: str) -> bytes:
    from gpuhost_exporter.status import build
    from gpuhost_exporter.web.page import render

    spent = app.host.board.last("spent", tuple, app.clock.now()) or ()
    return render(build([*app.runner.samples(), *app.own_samples()], rates, spent=spent), nonce)


def _verdict(app: App, rates: Mapping[Series, float]) -> tuple[str, str]:
    from gpuhost_exporter.status import build
    from gpuhost_exporter.verdict import verdict

    status = build([*app.runner.samples(), *app.own_samples()], rates)
    return verdict(status, sampling=app.runner.progressing())
