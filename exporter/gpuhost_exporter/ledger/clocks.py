"""What clock a GPU would have if neither heat nor the power brake held it back.

That of its siblings of the same product at the same time. A brake of the whole host leaves none: then the last such
clock that was seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gpuhost_exporter.ledger.piece import Piece


class Clocks:
    def __init__(self) -> None:
        self._told: dict[str, list[Piece]] = {}
        self._last: dict[str, float] = {}  # by product

    def take(self, pieces: Mapping[str, Iterable[Piece]]) -> None:
        """`pieces` by product: what is not booked yet of all its GPUs, in whatever order."""
        self._told = {
            product: [piece for piece in told if piece.clock and piece.working] for product, told in pieces.items()
        }
        for product, told in self._told.items():
            newest = max(told, key=lambda piece: piece.at, default=None)
            around = self._around(product, newest) if newest else []
            free = _free(around)
            # Where most are held back the clock of the others may be that of a brake whose reason is not told yet.
            if free and 2 * len(free) >= len(around):
                self._last[product] = _middle(free)

    def beside(self, product: str, piece: Piece) -> float | None:
        """Hertz; None where no GPU of the product was ever seen at work without a brake."""
        free = _free(self._around(product, piece))
        return _middle(free) if free else self._last.get(product)

    def _around(self, product: str, piece: Piece) -> list[Piece]:
        middle = (piece.since + piece.at) / 2
        return [each for each in self._told.get(product, ()) if each.since < middle <= each.at]


def _free(pieces: Iterable[Piece]) -> list[float]:
    return sorted(piece.clock for piece in pieces if piece.clock and not piece.held_back)


def _middle(values: list[float]) -> float:
    return values[len(values) // 2]
