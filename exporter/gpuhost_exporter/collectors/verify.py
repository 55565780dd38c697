"""What the last `gpuhost-exporter verify` measured on this host, from the state directory."""

from __future__ import annotations

from collections.abc import Iterator

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.specs import Sample, gauge
from gpuhost_exporter.verify.result import STATE_NAME, VERDICTS, Result, last

TIMESTAMP = gauge(
    "gpuhost_verify_timestamp_seconds",
    "When the last verify of this host ended, in seconds since the epoch, by its mode (quick or full). Its figures are "
    "as old; absent where there was none.",
    "mode",
)
ACCEPTED = gauge("gpuhost_verify_accepted", "Whether the last verify accepted the host. 1 is good.")
CHECKS = gauge(
    "gpuhost_verify_checks",
    "Checks of the last verify by verdict: pass, warn, fail or skipped. Good is no fail.",
    "verdict",
)
PROBLEM = gauge(
    "gpuhost_verify_problem",
    "1 for each check of the last verify that failed or warned, with the device it was about. Good is no such series.",
    "check",
    "device",
    "verdict",
)
RATE = gauge(
    "gpuhost_verify_bytes_per_second",
    "What the last verify measured, in bytes per second. Good is the target or more; hosts of a kind differ little.",
    "check",
    "device",
)
RATE_TARGET = gauge(
    "gpuhost_verify_target_bytes_per_second", "What verify warns below, in bytes per second.", "check", "device"
)
RATE_BASELINE = gauge(
    "gpuhost_verify_baseline_bytes_per_second",
    "The best that this host did in a verify, in bytes per second. A result below nine tenths of it warns.",
    "check",
    "device",
)
LATENCY = gauge(
    "gpuhost_verify_latency_seconds",
    "Latency that the last verify measured, in seconds. Low is good.",
    "check",
    "device",
)


class VerifyCollector(Collector):
    name = "verify"
    help = "What the last gpuhost-exporter verify found, and when"
    source = "the state directory"
    interval = 60.0
    specs = (TIMESTAMP, ACCEPTED, CHECKS, PROBLEM, RATE, RATE_TARGET, RATE_BASELINE, LATENCY)

    def poll(self, now: float) -> Iterator[Sample]:
        run = last(self.host.state.load(STATE_NAME))
        if run is None:
            return
        yield TIMESTAMP(run.mode, value=run.at)
        yield ACCEPTED(value=run.accepted)
        for verdict in VERDICTS:
            yield CHECKS(verdict, value=run.count(verdict))
        for result in run.results:
            yield from _samples(result)


def _samples(result: Result) -> Iterator[Sample]:
    if result.verdict in ("warn", "fail"):
        yield PROBLEM(result.check, result.device, result.verdict, value=1)
    if result.unit == "bytes_per_second":
        told = ((RATE, result.value), (RATE_TARGET, result.target), (RATE_BASELINE, result.baseline))
        for spec, value in told:
            if value is not None:
                yield spec(result.check, result.device, value=value)
    elif result.value is not None:
        yield LATENCY(result.check, result.device, value=result.value)
