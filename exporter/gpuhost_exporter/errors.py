"""What can go wrong while reading hardware, as types.

    SourceError
    +-- Unsupported   this device or kernel does not have it; remembered, not retried every second
    +-- Absent        the file, device or library is not there
    +-- Denied        a permission or capability is missing
    +-- Malformed     it answered, but not in the form it should have
    +-- Gone          the device was there and disappeared while being read
    +-- Lost          NVML: the GPU is lost (fell off the bus)
    +-- NeedsReset    NVML: the GPU needs a reset
    +-- Transient     a failure that may pass (timeout, unknown error)
    +-- Unavailable   the reader behind it is not there now: released, restarting, hung, driver not loaded
    +-- Hung          no answer within the deadline

`kind` is the value of the `kind` label of gpuhost_collector_errors_total.
"""

from __future__ import annotations

from typing import ClassVar


class SourceError(Exception):
    kind: ClassVar[str] = "error"


class Unsupported(SourceError):
    kind = "unsupported"


class Absent(SourceError):
    kind = "absent"


class Denied(SourceError):
    kind = "denied"


class Malformed(SourceError):
    kind = "malformed"


class Gone(SourceError):
    kind = "gone"


class Lost(SourceError):
    kind = "lost"


class NeedsReset(SourceError):
    kind = "needs_reset"


class Transient(SourceError):
    kind = "transient"


class Unavailable(SourceError):
    kind = "unavailable"


class Hung(SourceError):
    kind = "hung"


class ConfigError(Exception):
    """A usage or configuration error: one line for the user, exit code 2."""
