"""One GPU's time: what is told of it, in order and without holes, and what has been booked of that for good."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from gpuhost_exporter.ledger.accounts import ACCOUNTS
from gpuhost_exporter.ledger.piece import Piece

LONGEST_PIECE = 1.5  # seconds; a longer one is cut where the settled time ends


class Book:
    """Time is told up to `told` and booked up to `booked`; what lies between is pending."""

    def __init__(self, now: float) -> None:
        self.began = self.told = self.booked = now
        self.totals = dict.fromkeys(ACCOUNTS, 0.0)
        self.pending: deque[Piece] = deque()

    def tell(self, piece: Piece) -> None:
        """Add what happened next. What is already told stays as it was told; a hole before it is unknown."""
        if piece.since > self.told:
            self.pending.append(Piece(self.told, piece.since, state="unknown"))
            self.told = piece.since
        if piece.at <= self.told:
            return
        if piece.since < self.told:
            piece = piece.cut(self.told)[1]
        self.pending.append(piece)
        self.told = piece.at

    def settled(self, until: float) -> Iterator[Piece]:
        """The pieces to book now, oldest first: those that ended by then, and of a long one what lies before.

        Each must be booked before the next is taken.
        """
        while self.pending and self.pending[0].since < until:
            piece = self.pending[0]
            if piece.at > until:
                if piece.seconds <= LONGEST_PIECE:
                    return
                piece, rest = piece.cut(until)
                self.pending[0] = piece
                self.pending.insert(1, rest)
            yield piece
            self.pending.popleft()

    def following(self) -> Piece | None:
        """What comes after the piece that is being booked."""
        return self.pending[1] if len(self.pending) > 1 else None

    def book(self, piece: Piece, shares: Mapping[str, float]) -> dict[str, float]:
        """Book the piece; returns the seconds by account. The last gets what is left: rounding loses nothing."""
        left = piece.seconds
        booked = {}
        for number, (account, share) in enumerate(shares.items(), 1):
            seconds = left if number == len(shares) else min(left, piece.seconds * share)
            left -= seconds
            self.totals[account] += seconds
            booked[account] = seconds
        self.booked = piece.at
        return booked
