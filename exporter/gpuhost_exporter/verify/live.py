"""What the collectors see of the host while it is measured."""

from __future__ import annotations

from gpuhost_exporter.app import App
from gpuhost_exporter.demand import demand
from gpuhost_exporter.latest import Latest, Rates
from gpuhost_exporter.specs import Sample
from gpuhost_exporter.status import RATED

_WINDOW = 15.0  # seconds: a measurement's own time, not what was before


class Live:
    """`latest` is what the host told before it was asked to work."""

    def __init__(self, app: App, latest: Latest) -> None:
        self.latest = latest
        self._app = app
        self._rates = Rates(RATED, _WINDOW)
        self._moved = Latest(())

    def look(self) -> None:
        rates = self._rates.look(self._app.runner.snapshots())
        self._moved = Latest(Sample(spec, labels, value) for (spec, labels), value in rates.items())

    def limiting(self, device: str) -> str:
        """The member that an array waits for of late, "" where it is none alone."""
        found = demand(self.latest, self._moved, device)
        return found.member if found else ""
