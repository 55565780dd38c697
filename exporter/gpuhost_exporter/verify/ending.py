"""Being asked to end: by Ctrl-C, by a request of somebody else, by a terminal that goes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending:
    """Within it each of these signals is a KeyboardInterrupt, whose way out removes what was made. The first is enough:
    from then on, to the end of the process, they do nothing, for another one would break off the clean-up.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, object] = {}
        self._asked = False
        self._held = False

    def __enter__(self) -> None:
        for number in _SIGNALS:
            # SIGINT too: what a shell starts in the background ignores it. What nohup starts outlives its terminal.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._ask)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._asked:
            for number, handler in self._before.items():
                signal.signal(number, handler)  # type: ignore[arg-type]  # as signal() gave it

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is asked within is done at its end: no folder is made that nobody removes, and none removed in part."""
        self._held = True
        already = self._asked
        try:
            yield
        finally:
            self._held = False
        if self._asked and not already:
            raise KeyboardInterrupt

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        # Not by SIG_IGN: of a signal that waits to be handled Python would print that it is ignored.
        first, self._asked = not self._asked, True
        if first and not self._held:
            raise KeyboardInterrupt
