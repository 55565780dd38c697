"""Who has a GPU, as of the time that is booked, and whether they have done their first work."""

from __future__ import annotations

from dataclasses import dataclass

from gpuhost_exporter.ledger.book import Book
from gpuhost_exporter.ledger.piece import Piece
from gpuhost_exporter.ledger.thresholds import Thresholds


@dataclass(slots=True)
class Holder:
    present: bool | None = None  # some process was there when the ledger began: it is not starting
    started: float | None = None  # when the present one came
    pids: tuple[int, ...] = ()  # where these are told
    jobs: tuple[str, ...] = ()
    worked: float = 0.0  # seconds of tensor work
    used: float = 0.0  # and of any

    def follow(self, piece: Piece, limits: Thresholds) -> bool:
        """Go on. Whether the holder came while the ledger ran and has not done its first tensor work."""
        if piece.state != "read":
            return False  # who has the GPU after it tells whether it went on
        self.jobs = piece.jobs
        if not piece.held or self._gone(piece):
            self.present, self.started, self.pids = False, None, ()
        if not piece.held:
            return False
        if self.started is None:
            self.started, self.worked, self.used = piece.since, 0.0, 0.0
        self.pids = piece.pids or self.pids
        self.used += piece.busy * piece.seconds
        if piece.working:
            self.worked += piece.busy * piece.seconds
        return (
            not self.present
            and self.worked < limits.startup_tensor_seconds
            and piece.at - self.started < limits.idle_limit_seconds
        )

    def unworked(self, name: str, book: Book, limits: Thresholds) -> bool:
        """Whether the holder, of that job, came while the ledger ran and has not worked yet: as `follow`, but a GPU
        that has done nothing at all goes on starting however long that takes."""
        for piece in book.pending:
            if piece.state == "read" and (not piece.held or self._gone(piece)):
                return True  # what is known of the GPU is of the holder before
            if name in piece.jobs:
                break
        if self.present:
            return False
        if self.started is None:
            return True
        late = book.booked - self.started >= limits.idle_limit_seconds
        return self.worked < limits.startup_tensor_seconds and not (late and self.used >= limits.startup_tensor_seconds)

    def _gone(self, piece: Piece) -> bool:
        """Whether none of the processes that had the GPU has it any more, and others do."""
        return bool(self.pids and piece.pids) and self.pids != piece.pids and set(self.pids).isdisjoint(piece.pids)
