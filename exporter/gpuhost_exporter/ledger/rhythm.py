"""How long a job's training step takes, from the rhythm of its GPUs' tensor work; without GPM, of their NVLinks.

Readings are a second apart: what is faster than that shows slower than it is, and flatter. So a step is told only
where some seconds of it hold nearly no work, which an image of something faster seldom does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from gpuhost_exporter.sources.nvml.readings import Activity

WINDOW = 96  # readings
SHORTEST = 3  # readings in a step
_FEWEST_STEPS = 3  # in the window
_EVERY = 10  # readings between two searches
_LIKENESS = 0.7  # autocorrelation at which a rhythm is one
_FIRST_LIKENESS = 0.5  # of its first repetition: a step of 5.5 readings is most like itself after 11
_QUIET_RATIO = 0.2  # of the peak: what the quietest readings of a step may hold
_LONGEST_PAUSE = 2.5  # seconds without a reading that end a rhythm


class Rhythm:
    """Of each job: `periods` has the seconds of its step, where one shows."""

    def __init__(self) -> None:
        self.periods: dict[str, float] = {}
        self._signals: dict[str, deque[tuple[float, float]]] = {}
        self._links: dict[str, tuple[float, int]] = {}  # uuid -> when its bytes were told, and how many

    def tick(self, now: float, jobs: Mapping[str, str], activities: Iterable[Activity]) -> None:
        """`jobs`: uuid -> its job; `activities`: what its GPUs told of late, what is told again is not counted."""
        newest = {activity.uuid: activity for activity in activities}
        means: dict[str, list[Activity]] = {}
        for uuid, job in jobs.items():
            if uuid in newest:
                means.setdefault(job, []).append(newest[uuid])
        for job, told in means.items():
            values = [activity.tensor_ratio for activity in told if activity.tensor_ratio is not None]
            rates = [rate for activity in told if (rate := self._link_rate(activity)) is not None]
            values = values or rates
            signal = self._signals.setdefault(job, deque(maxlen=WINDOW))
            at = max(activity.at for activity in told)
            if signal and at - signal[-1][0] > _LONGEST_PAUSE:
                signal.clear()
                self.periods.pop(job, None)
            if values and (not signal or at > signal[-1][0]):
                signal.append((at, sum(values) / len(values)))
                if int(at) % _EVERY == 0:
                    self._search(job, signal)
        for job in [job for job, signal in self._signals.items() if signal and now - signal[-1][0] > _LONGEST_PAUSE]:
            del self._signals[job]
            self.periods.pop(job, None)

    def _link_rate(self, activity: Activity) -> float | None:
        """Bytes a second since the GPU's last reading; None where that is not told, or nothing new."""
        counted = activity.nvlink_tx_bytes
        if counted is None or activity.tensor_ratio is not None:
            return None
        before = self._links.get(activity.uuid)
        if before and activity.at <= before[0]:
            return None
        self._links[activity.uuid] = (activity.at, counted)
        return None if before is None or counted < before[1] else (counted - before[1]) / (activity.at - before[0])

    def _search(self, job: str, signal: Sequence[tuple[float, float]]) -> None:
        readings = period([value for _, value in signal])
        if readings is None:
            self.periods.pop(job, None)
        else:
            self.periods[job] = readings * (signal[-1][0] - signal[0][0]) / (len(signal) - 1)


def period(values: Sequence[float]) -> float | None:
    """Readings from one repetition to the next; None where nothing repeats plainly."""
    count = len(values)
    top = max(values, default=0.0)
    if count < _FEWEST_STEPS * SHORTEST or min(values) > _QUIET_RATIO * top or top <= 0:
        return None
    mean = sum(values) / count
    off = [value - mean for value in values]
    power = sum(value * value for value in off) / count
    likeness = [
        sum(a * b for a, b in zip(off, off[lag:], strict=False)) / (count - lag) / power
        for lag in range(count // _FEWEST_STEPS + 1)
    ]
    peaks = [
        lag
        for lag in range(2, len(likeness) - 1)
        if likeness[lag] >= _FIRST_LIKENESS and likeness[lag - 1] <= likeness[lag] >= likeness[lag + 1]
    ]
    if not peaks or peaks[0] < SHORTEST or max(likeness[lag] for lag in peaks) < _LIKENESS:
        return None
    first = _summit(likeness, peaks[0])
    if min(likeness[int(first / 2)], likeness[int(first / 2) + 1]) > 0:
        return None  # a step of 2.5 readings is most like itself after 5, and somewhat in between
    # The last multiple in the window tells the period best.
    for lag in peaks:
        steps = round(lag / first)
        if likeness[lag] >= _LIKENESS and abs(lag - steps * first) <= 1.0:
            first = _summit(likeness, lag) / steps
    return first


def _summit(likeness: Sequence[float], lag: int) -> float:
    """Where the parabola through a peak and its neighbours has its top."""
    left, middle, right = likeness[lag - 1 : lag + 2]
    bend = left - 2 * middle + right
    return lag + (0.5 * (left - right) / bend if bend else 0.0)
