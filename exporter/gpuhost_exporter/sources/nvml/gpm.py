"""GPU performance monitoring: what the parts of a GPU did on average between two samples (Hopper and newer).

nvmlGpmSampleGet(handle, sample) twice, at least 100 ms apart; nvmlGpmMetricsGet(both) -> values
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gpuhost_exporter.errors import Denied, Malformed, SourceError, Unsupported
from gpuhost_exporter.sources.nvml.calls import Calls
from gpuhost_exporter.sources.nvml.probe import Probe
from gpuhost_exporter.sources.nvml.quantities import MEBIBYTES_PER_SECOND, PERCENT, SWITCH
from gpuhost_exporter.sources.nvml.readings import GpmState

SHORTEST_SECONDS = 0.1  # the library refreshes no faster
LONGEST_SECONDS = 60.0  # an older sample would average over a time that nobody asked about

METRICS = {
    1: ("graphics", PERCENT),
    2: ("sm_active", PERCENT),
    3: ("sm_occupancy", PERCENT),
    5: ("tensor", PERCENT),
    10: ("memory_bandwidth", PERCENT),
    11: ("fp64", PERCENT),
    12: ("fp32", PERCENT),
    13: ("fp16", PERCENT),
    20: ("pcie_tx", MEBIBYTES_PER_SECOND),  # leaving the GPU
    21: ("pcie_rx", MEBIBYTES_PER_SECOND),
}

_QUERY = "nvmlGpmQueryDeviceSupport"


class Measured(NamedTuple):
    state: GpmState
    since: float | None  # start of the window, None unless state is "ok"
    values: Mapping[str, float]


class Comparison:
    """The structure in which the library compares two samples; one serves all GPUs, one at a time."""

    def __init__(self, nv: Any) -> None:
        self.block = nv.c_nvmlGpmMetricsGet_t()
        self.block.version = nv.NVML_GPM_METRICS_GET_VERSION
        self.block.numMetrics = len(METRICS)
        metrics = self.block.metrics
        self._rows = tuple(metrics[row] for row in range(len(METRICS)))
        for row, metric in zip(self._rows, METRICS, strict=True):
            row.metricId = metric

    def read(self, probe: Probe, old: Any, new: Any) -> dict[str, float]:
        self.block.sample1 = old
        self.block.sample2 = new
        probe.calls.call(probe.device.uuid, "nvmlGpmMetricsGet", self.block)
        values: dict[str, float] = {}
        for row, (metric, (name, quantity)) in zip(self._rows, METRICS.items(), strict=True):
            if row.nvmlReturn == 0:
                value = probe.checked(quantity, row.value, f"GPM metric {metric}")
                if value is not None:
                    values[name] = min(value, 1.0) if quantity is PERCENT else value
        return values


class Pair:
    """Two samples of one GPU or GPU instance that take turns. Allocated once, freed once."""

    def __init__(self) -> None:
        self._old: Any = None
        self._new: Any = None
        self._taken: float | None = None

    def measure(self, probe: Probe, compare: Comparison, now: float, take: Callable[[Any], object]) -> Measured:
        """Take a sample with `take` and compare it with the one before."""
        try:
            return self._measure(probe, compare, now, take)
        except (Unsupported, Denied) as error:
            self._taken = None
            return Measured(self._refusal(probe, error), None, {})
        except SourceError as error:
            self._taken = None
            probe.failed("GPM", error)
            return Measured("error", None, {})

    def discard(self) -> None:
        """Forget the last sample, keep its buffer."""
        self._taken = None

    def free(self, calls: Calls, uuid: str) -> None:
        """Give both buffers back. Freeing twice, or after nvmlShutdown, is undefined."""
        samples = (self._old, self._new)
        self._old = self._new = self._taken = None
        for sample in samples:
            if sample is not None:
                try:
                    calls.call(uuid, "nvmlGpmSampleFree", sample)
                except SourceError:
                    continue  # nothing more can be done for a buffer

    def _measure(self, probe: Probe, compare: Comparison, now: float, take: Callable[[Any], object]) -> Measured:
        if self._new is None:
            support = probe.calls.ask(probe.device, _QUERY)
            if not SWITCH.whole(support.isSupportedDevice):
                unsupported = Unsupported(f"{_QUERY}: not supported")
                probe.calls.refuse(probe.device, _QUERY, (), unsupported)
                raise unsupported
            self._old = self._old or probe.calls.call(probe.device.uuid, "nvmlGpmSampleAlloc")
            self._new = probe.calls.call(probe.device.uuid, "nvmlGpmSampleAlloc")
        take(self._new)
        since, self._taken = self._taken, now
        self._old, self._new = self._new, self._old
        if since is None or now - since > LONGEST_SECONDS:
            return Measured("warming_up", None, {})
        values = compare.read(probe, self._new, self._old)
        if not values:
            raise Malformed("nvmlGpmMetricsGet: not one metric has a value")
        return Measured("ok", since, values)

    @staticmethod
    def _refusal(probe: Probe, error: SourceError) -> GpmState:
        if isinstance(error, Denied):
            probe.failed("GPM", error)
            return "permission"
        # A GPU that is cut into instances is measured by instance only.
        return "mig" if probe.modes("nvmlDeviceGetMigMode")[0] else "unsupported"
