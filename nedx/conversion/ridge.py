"""Ridge: the neural code converter, with a Gram matrix that all targets of a subject share.

Yamada, Miyawaki & Kamitani 2015 (NeuroImage 113:289); Ho, Horikawa, Majima, Cheng & Kamitani 2023
(NeuroImage 271:120007).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from nedx.compute.devices import resolve_device
from nedx.conversion.base import LinearConverter, Solved, Solver
from nedx.conversion.regions import AREAS, Method, Region
from nedx.conversion.subjects import Pairs, Responses
from nedx.conversion.training import Work
from nedx.errors import ModelError
from nedx.linear.ridge import RidgeSolver, checked_penalties
from nedx.schema import subject_label

if TYPE_CHECKING:
    import torch

ALPHAS = tuple(10.0 ** np.arange(-1, 6.5, 0.5))
# Rounding grows with the Gram matrix over the penalty: from here on float32 is not enough, and
# float64 neither.
_WIDE, _LOST = 1e4, 1e12
Alpha = float | Literal["cv"] | Mapping[tuple[str, str], float | Mapping[str, float]]


class Gram:
    """A Gram matrix, of columns or, where these are more, of rows.

    Parameters
    ----------
    x : ndarray of float32, (row, column)
        Centred.
    device : str
        A torch device.
    """

    def __init__(self, x: np.ndarray, device: str):
        # On processors numpy's products are up to half again as fast as torch's.
        self.on_cpu = device == "cpu"
        self.x: Any = np.ascontiguousarray(x) if self.on_cpu else _tensor(x, device)
        self.by_row = x.shape[0] <= x.shape[1] + 1
        self._inverse: tuple[float, Any] | None = None
        self._multiply()
        # No eigenvalue is above the largest sum of a row.
        self.size = float(abs(self.matrix).sum(1).max())
        self.is_wide = False

    def solve(self, y: np.ndarray, alpha: float) -> np.ndarray:
        """Return ``(X'X + alpha I)^-1 X'Y``, float32 (column, target).

        Of centred X and Y: the intercept, penalised or not, is 0. What Y is multiplied with is
        kept for the next Y of the same penalty. Where float32 would round the penalty away, all is
        done in float64, the Gram matrix too.

        Parameters
        ----------
        y : ndarray of float32, (row, target)
        alpha : float

        Raises
        ------
        ModelError
            If the penalty is lost in rounding all the same.
        """
        if self.size > _LOST * alpha:
            raise ModelError(
                f"alpha {alpha:g} is too small for these responses: it is lost in rounding. Type "
                f"one from {self.size / _LOST:.1g}"
            )
        if self._inverse is None or self._inverse[0] != alpha:
            if self.size > _WIDE * alpha and not self.is_wide:
                self._widen()
            right = self.x if self.by_row else self.x.T
            found = self._divided(right, alpha)
            self._inverse = alpha, found.T if self.by_row else found
        if self.on_cpu:
            return np.asarray(self._inverse[1] @ y, dtype=np.float32)
        other = _tensor(y, self.x.device).to(self.x.dtype)
        return np.asarray((self._inverse[1] @ other).cpu().numpy(), dtype=np.float32)

    def _multiply(self) -> None:
        self.matrix: Any = self.x @ self.x.T if self.by_row else self.x.T @ self.x

    def _widen(self) -> None:
        """Go over to float64."""
        self.is_wide = True
        self.x = self.x.astype(np.float64) if self.on_cpu else self.x.double()
        self._multiply()

    def _divided(self, right: Any, alpha: float) -> Any:
        """Return the penalised Gram matrix's inverse, times something."""
        if self.on_cpu:
            from scipy.linalg import cho_factor, cho_solve

            penalised = self.matrix.copy()
            penalised[np.diag_indices_from(penalised)] += alpha
            factor = cho_factor(penalised, lower=True, overwrite_a=True, check_finite=False)
            return cho_solve(factor, right, check_finite=False)
        import torch

        penalised = self.matrix.clone()
        penalised.diagonal().add_(alpha)
        return torch.cholesky_solve(right, torch.linalg.cholesky(penalised))


def _tensor(values: np.ndarray, device: Any) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


class RidgeConverter(LinearConverter):
    """Regress one subject's neuroids on another's, with a penalty on the weights.

    z-scores (ddof=1, over training samples) of the target are regressed on those of the source.
    The Gram matrix of a subject is computed once for all its targets.

    Parameters
    ----------
    method : {"full", "whole", "subarea"}
        All neuroids onto all; each hemisphere onto its own, as published for the whole visual
        cortex; or each area of a hemisphere onto its own, where of areas that overlap the first
        counts.
    alpha : float, "cv" or mapping
        The penalty; found by cross-validation, one for each region of each pair; or a table
        ``{("sub-01", "sub-02"): 220.0}``, whose values may be mappings of regions
        (``"LH_V1"``), as `nedx.conversion.published.read_alphas` reads it.
    alphas : sequence of float
        The penalties that cross-validation tries.
    cv : int
        Folds; the repeats of an image stay together.
    areas : sequence of str
        Of ``method="subarea"``, in order of precedence.
    standardize : bool
        Whether z-scores are mapped; else responses are only centred.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Attributes
    ----------
    model_ : Converter
        `nedx.convert` takes it.
    grams_ : int
        How many Gram matrices were computed or decomposed.

    Examples
    --------
    >>> train = tree.ned.roi(["V1", "V2"])
    >>> converter = nedx.RidgeConverter(alpha=100.0).fit(train, pairs=[("sub-01", "sub-02")])
    >>> other = test["sub-01"].to_dataset().ned.convert(converter)
    """

    kind = "ridge"
    citation = "https://doi.org/10.1016/j.neuroimage.2023.120007"
    grams_: int

    def __init__(
        self,
        method: Method = "full",
        alpha: Alpha = "cv",
        *,
        alphas: Sequence[float] = ALPHAS,
        cv: int = 5,
        areas: Sequence[str] = AREAS,
        standardize: bool = True,
        device: str = "auto",
    ):
        self.method = method
        self.alpha = alpha
        self.alphas = alphas
        self.cv = cv
        self.areas = areas
        self.standardize = standardize
        self.device = device

    def fit(
        self, source: Responses, target: Responses | None = None, *, pairs: Pairs | None = None
    ) -> Self:
        """Fit to the images that subjects share; see `LinearConverter.fit`."""
        self._solving = SharedRidge(self.alpha, self.alphas, self.cv, resolve_device(self.device))
        try:
            super().fit(source, target, pairs=pairs)
            self.grams_ = len(self._solving.kept)
        finally:
            del self._solving
        return self

    def _check(self, parts: Mapping[tuple[str, str], Sequence[Region]]) -> None:
        for pair, own in parts.items():
            self._solving.check(pair, [part.name for part in own])

    def _solver(self, works: Sequence[Work]) -> Solver:
        return self._solving


class SharedRidge:
    """Fits regions; what depends on the source alone is kept for its other targets."""

    def __init__(self, alpha: Any, alphas: Sequence[float], cv: int, device: str):
        self.alpha, self.alphas, self.cv, self.device = alpha, alphas, cv, device
        self.table = None
        if isinstance(alpha, Mapping):
            self.table = _by_pair(alpha)
        elif alpha == "cv":
            checked_penalties(alphas)
            if isinstance(cv, bool) or not isinstance(cv, Integral) or cv < 2:
                raise ModelError(f"cv is {cv!r}; type a number of folds from 2")
        else:
            _positive(alpha)
        self.kept: dict[Hashable, Gram | RidgeSolver] = {}

    def __call__(self, work: Work, part: Region) -> Solved:
        """Fit one region of one pair."""
        y = work.target.values.z[:, part.target]
        if self.alpha == "cv":
            decomposed = self._of(work, part)
            assert isinstance(decomposed, RidgeSolver)
            fits = list(decomposed.blocks(y, per_target=False))
            weight = np.concatenate([fit.coef for fit in fits], 1)
            bias = np.concatenate([fit.intercept for fit in fits])
            return Solved(weight, bias, float(fits[0].alpha[0]))
        alpha = self._given((work.source.name, work.target.name), part.name)
        gram = self._of(work, part)
        assert isinstance(gram, Gram)
        return Solved(gram.solve(y, alpha), None, alpha)

    def check(self, pair: tuple[str, str], names: Sequence[str]) -> None:
        """Refuse a table without a penalty for some region of a pair."""
        if self.table is not None:
            for region in names:
                self._given(pair, region)

    def _of(self, work: Work, part: Region) -> Gram | RidgeSolver:
        key = (work.source.key, part.source.tobytes())
        if key not in self.kept:
            x = work.source.values.z[:, part.source]
            if self.alpha == "cv":
                groups = work.source.image.astype(str)
                self.kept[key] = RidgeSolver(
                    x, self.alphas, self.cv, groups=groups, device=self.device
                )
            else:
                self.kept[key] = Gram(x, self.device)
        return self.kept[key]

    def _given(self, pair: tuple[str, str], region: str) -> float:
        if self.table is None:
            return _positive(self.alpha)
        found = self.table.get(pair)
        if isinstance(found, Mapping):
            found = found.get(region)
        if found is None:
            raise ModelError(
                f"the table of penalties has none for {pair[0]} to {pair[1]}, {region!r}; "
                f"it has pairs {list(self.table)[:6]}"
            )
        return _positive(found)


def _by_pair(alphas: Mapping[Any, Any]) -> dict[tuple[str, str], Any]:
    """Return a table by the labels of source and target."""
    strange = [key for key in alphas if not isinstance(key, tuple) or len(key) != 2]
    if strange:
        raise ModelError(
            f"the table of penalties is by pairs such as ('sub-01', 'sub-02'), not {strange[0]!r}"
        )
    return {(subject_label(a), subject_label(b)): found for (a, b), found in alphas.items()}


def _positive(alpha: Any) -> float:
    number = isinstance(alpha, int | float | np.number) and not isinstance(alpha, bool)
    if not number or not 0 < alpha < np.inf:
        raise ModelError(
            f"alpha is {alpha!r}; type a positive number, 'cv', or a table "
            "{('sub-01', 'sub-02'): 220.0}"
        )
    return float(alpha)
