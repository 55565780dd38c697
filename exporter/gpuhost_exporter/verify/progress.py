"""What is being measured and for how long still, on standard error: a line that is written over where it can be."""

from __future__ import annotations

import time
from typing import TextIO

from gpuhost_exporter import figures


class Progress:
    """`seconds`: what all measurements together are planned to take."""

    def __init__(self, stream: TextIO, seconds: float) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._later = seconds
        self._name = ""
        self._until = 0.0
        self._shown = ""

    def begin(self, name: str, seconds: float) -> None:
        self._later = max(0.0, self._later - seconds)
        self._name = name
        self._until = time.monotonic() + seconds
        if not self._terminal:
            print(f"{name}: {figures.seconds(seconds + self._later)} left in all", file=self._stream, flush=True)
        self.show()

    def show(self) -> None:
        if not self._terminal:
            return
        left = max(0.0, self._until - time.monotonic())
        line = f"{self._name}: {left:.0f} s left, {left + self._later:.0f} s in all"
        if line != self._shown:
            print(f"\r{line.ljust(len(self._shown))}", end="", file=self._stream, flush=True)
            self._shown = line

    def end(self) -> None:
        """Leave nothing of it on the terminal."""
        if self._terminal and self._shown:
            print(f"\r{' ' * len(self._shown)}\r", end="", file=self._stream, flush=True)
            self._shown = ""
