"""What changes rarely: ECC, row remapping, recovery action, modes, limits, the PCIe link.

And what training seldom uses: the video engines.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.sources.nvml import fields, quantities
from gpuhost_exporter.sources.nvml.probe import Probe
from gpuhost_exporter.sources.nvml.readings import Health

_RECOVERY_ACTIONS = (
    "none",
    "gpu_reset",
    "node_reboot",
    "drain_p2p",
    "drain_and_reset",
    "recover_imex_domain",
    "bus_reset",
    "system_reboot",
)
_ERRORS = ((0, "corrected"), (1, "uncorrected"))
_COUNTERS = ((0, "volatile"), (1, "aggregate"))
_BANKS = ("max", "high", "partial", "low", "none")

_CLOCK_GRAPHICS = 0  # the domain that application clocks are set in; SM clocks follow it
_CLOCK_SM = 1
_USER_DEFINED_CLOCKS = 0x2


class Healths:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def read(self, probe: Probe) -> Iterator[Health]:
        ecc = probe.modes("nvmlDeviceGetEccMode")
        mig = probe.modes("nvmlDeviceGetMigMode")
        rows = _remapped_rows(probe)
        sram = probe.filled("nvmlDeviceGetSramEccErrorStatus", ("c_nvmlEccSramErrorStatus_v1_t",))
        limits = probe.value("nvmlDeviceGetPowerManagementLimitConstraints")
        held, locked = _clock_limit(probe)
        yield Health(
            uuid=probe.device.uuid,
            at=self._clock.now(),
            ecc_enabled=ecc[0],
            ecc_pending=ecc[1],
            ecc_errors=_ecc_errors(probe),
            sram_threshold_exceeded=probe.flag(getattr(sram, "bThresholdExceeded", None), "SRAM threshold"),
            remapped_rows=tuple(
                (word, count)
                for word, count in zip(("corrected", "uncorrected"), rows[:2], strict=True)
                if count is not None
            ),
            remap_pending=rows[2],
            remap_failed=rows[3],
            remap_banks=_remap_banks(probe),
            recovery_action=_recovery_action(probe),
            persistence=probe.switch("nvmlDeviceGetPersistenceMode"),
            mig_enabled=mig[0],
            mig_pending=mig[1],
            power_limit_watts=probe.quantity(quantities.MILLIWATTS, "nvmlDeviceGetEnforcedPowerLimit"),
            power_limit_default_watts=probe.quantity(quantities.MILLIWATTS, "nvmlDeviceGetPowerManagementDefaultLimit"),
            power_limit_max_watts=probe.checked(
                quantities.MILLIWATTS, None if limits is None else limits[1], "power limit constraints"
            ),
            sm_clock_limit_hertz=held,
            clocks_locked=locked,
            pcie_generation=probe.whole(quantities.PCIE_GENERATION, "nvmlDeviceGetCurrPcieLinkGeneration"),
            pcie_width=probe.whole(quantities.PCIE_LANES, "nvmlDeviceGetCurrPcieLinkWidth"),
            pcie_generation_max=probe.whole(quantities.PCIE_GENERATION, "nvmlDeviceGetMaxPcieLinkGeneration"),
            pcie_generation_device_max=probe.whole(quantities.PCIE_GENERATION, "nvmlDeviceGetGpuMaxPcieLinkGeneration"),
            pcie_width_max=probe.whole(quantities.PCIE_LANES, "nvmlDeviceGetMaxPcieLinkWidth"),
            pcie_replays=probe.whole(quantities.COUNT, "nvmlDeviceGetPcieReplayCounter"),
            encoder_ratio=_video_ratio(probe, "nvmlDeviceGetEncoderUtilization"),
            decoder_ratio=_video_ratio(probe, "nvmlDeviceGetDecoderUtilization"),
        )


def _ecc_errors(probe: Probe) -> tuple[tuple[str, str, int], ...]:
    counts = (
        (error, counter, probe.whole(quantities.COUNT, "nvmlDeviceGetTotalEccErrors", error_number, counter_number))
        for error_number, error in _ERRORS
        for counter_number, counter in _COUNTERS
    )
    return tuple((error, counter, count) for error, counter, count in counts if count is not None)


def _remapped_rows(probe: Probe) -> tuple[int | None, int | None, bool | None, bool | None]:
    """Rows remapped after corrected and uncorrected errors, whether one is pending, whether one failed."""
    name = "nvmlDeviceGetRemappedRows"
    rows = probe.value(name)
    if rows is None:
        return None, None, None, None
    corrected, uncorrected, pending, failed = rows
    return (
        probe.counted(quantities.COUNT, corrected, name),
        probe.counted(quantities.COUNT, uncorrected, name),
        probe.flag(pending, name),
        probe.flag(failed, name),
    )


def _remap_banks(probe: Probe) -> tuple[tuple[str, int], ...]:
    name = "nvmlDeviceGetRowRemapperHistogram"
    histogram = probe.value(name)
    if histogram is None:
        return ()
    counts = ((word, probe.counted(quantities.COUNT, getattr(histogram, word), name)) for word in _BANKS)
    return tuple((word, count) for word, count in counts if count is not None)


def _recovery_action(probe: Probe) -> str | None:
    action = fields.read(probe, ((fields.RECOVERY_ACTION, 0),)).whole(quantities.ENUM, fields.RECOVERY_ACTION)
    if action is None:
        return None
    # An action of a newer driver is still an action: not to be hidden.
    return _RECOVERY_ACTIONS[action] if action < len(_RECOVERY_ACTIONS) else "other"


def _clock_limit(probe: Probe) -> tuple[float | None, bool | None]:
    """What the SM clock is held to by a setting (Hz), and whether it is held.

    NVML sets locked clocks but has no getter for them. Held: application clocks below their default, or the GPU
    says that user-defined clocks limit it now. Not held: it runs at its maximum. Anything else cannot be told: a
    lower clock has many causes, and a lock shows in no reason bit on some drivers.
    """
    target = probe.quantity(quantities.MEGAHERTZ, "nvmlDeviceGetApplicationsClock", _CLOCK_GRAPHICS)
    default = probe.quantity(quantities.MEGAHERTZ, "nvmlDeviceGetDefaultApplicationsClock", _CLOCK_GRAPHICS)
    if target is not None and default is not None and target < default:
        return target, True
    reasons = probe.whole(quantities.MASK, "nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is not None and reasons & _USER_DEFINED_CLOCKS:
        return None, True
    now = probe.quantity(quantities.MEGAHERTZ, "nvmlDeviceGetClockInfo", _CLOCK_SM)
    highest = probe.quantity(quantities.MEGAHERTZ, "nvmlDeviceGetMaxClockInfo", _CLOCK_SM)
    if now is not None and highest is not None and now >= highest:
        return None, False
    return None, None


def _video_ratio(probe: Probe, name: str) -> float | None:
    told = probe.value(name)  # percent, and the sampling period
    return None if told is None else probe.checked(quantities.PERCENT, told[0], name)
