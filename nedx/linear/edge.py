"""Whether penalties end too early."""

from __future__ import annotations

import warnings

import numpy as np

from nedx.errors import NedxWarning


class PenaltyEdge:
    """Counts targets whose score still rises where the penalties end.

    Parameters
    ----------
    alphas : ndarray (alpha,)
        In any order.
    """

    def __init__(self, alphas: np.ndarray):
        self.alphas, self.order = alphas, np.argsort(alphas)
        self.rising = np.zeros(2, int)
        self.predicted = 0

    def look(self, score: np.ndarray) -> None:
        """Look at the R2 of each penalty, (alpha, target)."""
        if len(self.alphas) < 2:
            return
        ordered = score[self.order]
        worth = ordered.max(0) > 0
        self.predicted += int(worth.sum())
        for i, (end, beside) in enumerate(((0, 1), (-1, -2))):
            rises = (ordered[end] == ordered.max(0)) & (ordered[end] > ordered[beside] + 1e-3)
            self.rising[i] += int((rises & worth).sum())

    def warn(self) -> None:
        """Warn where that is so for more than a tenth of the targets that are predicted at all."""
        for count, end, word in zip(
            self.rising, self.order[[0, -1]], ("smaller", "larger"), strict=True
        ):
            if count > 0.1 * self.predicted:
                warnings.warn(
                    f"{count} of {self.predicted} predicted targets are best at the end of the "
                    f"penalties, {self.alphas[end]:g}, and still improve there: add {word} alphas",
                    NedxWarning,
                    stacklevel=4,
                )
