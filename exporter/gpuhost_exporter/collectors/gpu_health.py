"""What tells a healthy GPU from one to be drained: memory errors, row remapping, limits and modes. From NVML."""

from __future__ import annotations

from collections.abc import Iterator

from gpuhost_exporter.collectors.per_gpu import NvmlCollector, gpu_counter, gpu_gauge, gpu_labels, one_of, told
from gpuhost_exporter.sources.nvml.readings import Gpu, Health
from gpuhost_exporter.specs import Sample

ECC_ENABLED = gpu_gauge(
    "gpuhost_gpu_ecc_enabled", "Whether memory errors are corrected (ECC) now. Good is 1; 0 hides memory errors."
)
ECC_PENDING = gpu_gauge(
    "gpuhost_gpu_ecc_enabled_after_reset",
    "ECC mode from the GPU's next reset on. Good is the same as gpuhost_gpu_ecc_enabled.",
)
ECC_ERRORS = gpu_counter(
    "gpuhost_gpu_ecc_errors_total",
    "Memory errors since the driver was loaded, corrected or uncorrected. Single corrected ones are normal; an "
    "uncorrected one cost its job.",
    "type",
)
ECC_LIFETIME_ERRORS = gpu_counter(
    "gpuhost_gpu_ecc_lifetime_errors_total",
    "Memory errors over the GPU's life, corrected or uncorrected, as it keeps them across resets.",
    "type",
)
SRAM_THRESHOLD = gpu_gauge(
    "gpuhost_gpu_sram_threshold_exceeded",
    "Whether uncorrected SRAM errors passed the limit at which NVIDIA replaces the GPU. Good is 0.",
)
REMAPPED_ROWS = gpu_counter(
    "gpuhost_gpu_remapped_rows_total",
    "Memory rows that were replaced by spare ones over the GPU's life, by the type of error that caused it.",
    "type",
)
REMAP_PENDING = gpu_gauge(
    "gpuhost_gpu_row_remap_pending", "Whether a row waits for a GPU reset to be replaced. Good is 0."
)
REMAP_FAILED = gpu_gauge(
    "gpuhost_gpu_row_remap_failed", "Whether replacing a row has failed: at 1 the GPU has to be exchanged."
)
REMAP_BANKS = gpu_gauge(
    "gpuhost_gpu_row_remap_banks",
    "Memory banks by how many spare rows they have left: max, high, partial, low or none. Banks with none left are a "
    "reason to exchange the GPU.",
    "availability",
)
RECOVERY_ACTION = gpu_gauge(
    "gpuhost_gpu_recovery_action",
    "What the driver wants done to the GPU, 1 for the current action. Good is none.",
    "action",
)
PERSISTENCE = gpu_gauge(
    "gpuhost_gpu_persistence_enabled",
    "Whether the driver stays initialized without a client. Good is 1; at 0 each first use costs seconds.",
)
MIG_ENABLED = gpu_gauge("gpuhost_gpu_mig_enabled", "Whether the GPU is partitioned (MIG) now. Expected 0 for training.")
MIG_PENDING = gpu_gauge(
    "gpuhost_gpu_mig_enabled_after_reset",
    "MIG mode from the GPU's next reset on. Good is the same as gpuhost_gpu_mig_enabled.",
)
POWER_LIMIT = gpu_gauge(
    "gpuhost_gpu_power_limit_watts", "Power limit that is enforced now. Good is the default or more."
)
POWER_LIMIT_DEFAULT = gpu_gauge("gpuhost_gpu_power_limit_default_watts", "Power limit that the board comes with.")
POWER_LIMIT_MAX = gpu_gauge("gpuhost_gpu_power_limit_max_watts", "Highest power limit that can be set.")
POWER_LIMIT_LOWERED = gpu_gauge(
    "gpuhost_gpu_power_limit_lowered", "Whether the power limit is below the board's default. Good is 0."
)
SM_CLOCK_LIMIT = gpu_gauge(
    "gpuhost_gpu_sm_clock_limit_hertz", "Clock that the multiprocessors are held to now, where the driver tells it."
)
CLOCKS_LOCKED = gpu_gauge(
    "gpuhost_gpu_clocks_locked",
    "Whether somebody locked the clocks below what the GPU can do. Good is 0.",
)
ENCODER = gpu_gauge(
    "gpuhost_gpu_encoder_utilization_ratio",
    "Share of time with work on the GPU's video encoders, 0-1, in NVML's last sample of up to a second. Training "
    "leaves it at 0.",
)
DECODER = gpu_gauge(
    "gpuhost_gpu_decoder_utilization_ratio",
    "Share of time with work on the GPU's video decoders, 0-1, in NVML's last sample of up to a second. Training "
    "uses them for video data alone.",
)

RECOVERY_ACTIONS = (
    "none",
    "gpu_reset",
    "node_reboot",
    "drain_p2p",
    "drain_and_reset",
    "recover_imex_domain",
    "bus_reset",
    "system_reboot",
)

_TOLD = (
    (ECC_ENABLED, "ecc_enabled"),
    (ECC_PENDING, "ecc_pending"),
    (SRAM_THRESHOLD, "sram_threshold_exceeded"),
    (REMAP_PENDING, "remap_pending"),
    (REMAP_FAILED, "remap_failed"),
    (PERSISTENCE, "persistence"),
    (MIG_ENABLED, "mig_enabled"),
    (MIG_PENDING, "mig_pending"),
    (POWER_LIMIT, "power_limit_watts"),
    (POWER_LIMIT_DEFAULT, "power_limit_default_watts"),
    (POWER_LIMIT_MAX, "power_limit_max_watts"),
    (SM_CLOCK_LIMIT, "sm_clock_limit_hertz"),
    (CLOCKS_LOCKED, "clocks_locked"),
    (ENCODER, "encoder_ratio"),
    (DECODER, "decoder_ratio"),
)
_ECC_PERIODS = {"volatile": ECC_ERRORS, "aggregate": ECC_LIFETIME_ERRORS}


class GpuHealthCollector(NvmlCollector):
    name = "gpu_health"
    help = "ECC, row remapping, recovery action, limits, persistence, MIG mode and video engines of each GPU"
    source = "NVML: ECC, remapped rows, field values, persistence, MIG mode, power management limits, video utilization"
    interval = 15.0
    subject = "health"
    specs = (
        ECC_ENABLED,
        ECC_PENDING,
        ECC_ERRORS,
        ECC_LIFETIME_ERRORS,
        SRAM_THRESHOLD,
        REMAPPED_ROWS,
        REMAP_PENDING,
        REMAP_FAILED,
        REMAP_BANKS,
        RECOVERY_ACTION,
        PERSISTENCE,
        MIG_ENABLED,
        MIG_PENDING,
        POWER_LIMIT,
        POWER_LIMIT_DEFAULT,
        POWER_LIMIT_MAX,
        POWER_LIMIT_LOWERED,
        SM_CLOCK_LIMIT,
        CLOCKS_LOCKED,
        ENCODER,
        DECODER,
    )

    def poll(self, _now: float) -> Iterator[Sample]:
        for gpu, health in self.of_gpus(self.ask(), Health):
            yield from told(_TOLD, gpu_labels(gpu), health)
            yield from _labelled(gpu, health)
            if health.power_limit_watts is not None and health.power_limit_default_watts is not None:
                lowered = health.power_limit_watts < health.power_limit_default_watts
                yield POWER_LIMIT_LOWERED(*gpu_labels(gpu), value=lowered)


def _labelled(gpu: Gpu, health: Health) -> Iterator[Sample]:
    labels = gpu_labels(gpu)
    for kind, period, count in health.ecc_errors:
        yield _ECC_PERIODS[period](*labels, kind, value=count)
    for kind, rows in health.remapped_rows:
        yield REMAPPED_ROWS(*labels, kind, value=rows)
    for availability, banks in health.remap_banks:
        yield REMAP_BANKS(*labels, availability, value=banks)
    if health.recovery_action is not None:
        yield from one_of(RECOVERY_ACTION, labels, RECOVERY_ACTIONS, health.recovery_action)
