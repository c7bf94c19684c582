"""Linear classifiers of two classes, thousands at a time, from inner products alone.

A fit on a few trials of many channels is a problem of the size of the trials: all that a linear
classifier asks of the data are their inner products, which all pairs and folds share.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 50
_TOLERANCE = 1e-9


def lda(gram: np.ndarray, train: np.ndarray, test: np.ndarray, ridge: float) -> np.ndarray:
    """Return decision values of a linear discriminant with a shrunk shared covariance.

    With residuals Z of the n training trials around the means of their classes, the covariance
    is (1 - s) Z'Z / n + s tr(Z'Z) / (n p) I, as in regularised discriminant analysis (Friedman
    1989, Journal of the American Statistical Association 84:165) and scikit-learn's
    ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s)``. The Woodbury identity applies its
    inverse in the space of trials.

    Parameters
    ----------
    gram : ndarray of float64, (problem, 2 fold, 2 fold)
        Inner products of the trials of the first class and then of the second.
    train, test : ndarray of int
        The folds to fit on, and those to classify.
    ridge : float
        s / (p (1 - s)).

    Returns
    -------
    ndarray of float64, (problem, 2 test)
        Positive for the second class; the decision values but for a factor. Where trials of a
        class do not differ, those of the nearest mean.
    """
    each, n_folds = np.eye(gram.shape[-1]), gram.shape[-1] // 2
    fitted = np.concatenate([train, train + n_folds])
    classes = np.stack([each[train].mean(axis=0), each[train + n_folds].mean(axis=0)])
    residuals = each[fitted] - np.repeat(classes, train.size, axis=0)
    between = classes[1] - classes[0]
    tested = each[np.concatenate([test, test + n_folds])] - classes.mean(axis=0)
    products = residuals @ gram
    scatter = products @ residuals.T
    trace = np.trace(scatter, axis1=-2, axis2=-1)
    added = np.where(trace > 0, ridge * trace, 1.0)
    scatter += added[:, np.newaxis, np.newaxis] * np.eye(fitted.size)
    solved = np.linalg.solve(scatter, products @ between[:, np.newaxis])
    return (gram @ between) @ tested.T - (tested @ products.swapaxes(-1, -2) @ solved)[..., 0]


def svm(gram: np.ndarray, train: np.ndarray, test: np.ndarray, cost: float) -> np.ndarray:
    """Return decision values of a linear support vector machine with intercept.

    The dual of Cortes & Vapnik 1995, Machine Learning 20:273: minimise a'Qa / 2 - sum(a) for
    0 <= a <= C and y'a = 0, as scikit-learn's ``SVC(kernel="linear", C=C)`` defines it, solved
    exactly by an active-set method (Hintermueller, Ito & Kunisch 2002, SIAM Journal on
    Optimization 13:865): all equations of the free trials at once, then those that left their
    bounds are fixed, and those fixed with the wrong sign are freed, until nothing changes. The
    few problems where it does not settle go to libsvm.

    Parameters
    ----------
    gram, train, test
        As `lda` takes them.
    cost : float
        C.

    Returns
    -------
    ndarray of float64, (problem, 2 test)
        Positive for the second class.
    """
    n_folds = gram.shape[-1] // 2
    fitted, tested = (np.concatenate([some, some + n_folds]) for some in (train, test))
    sides = np.repeat([-1.0, 1.0], train.size)
    kernel = gram[:, fitted[:, np.newaxis], fitted]
    weights, intercept, settled = _active_sets(kernel, sides, cost)
    for problem in np.flatnonzero(~settled):
        weights[problem], intercept[problem] = _libsvm(kernel[problem], sides, cost)
    between = gram[:, fitted[:, np.newaxis], tested]
    return np.einsum("pf,pft->pt", weights, between) + intercept[:, np.newaxis]


def _active_sets(
    kernel: np.ndarray, sides: np.ndarray, cost: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Solve dual problems: y a (problem, trial), intercept (problem,) and which are solved."""
    count, size = kernel.shape[:2]
    weights, intercept = np.zeros((count, size)), np.zeros(count)
    settled = np.zeros(count, dtype=bool)
    rest = np.arange(count)
    bound = np.zeros((count, size), dtype=np.int8)
    for _ in range(_ROUNDS):
        signed = kernel[rest] * (sides[:, np.newaxis] * sides)
        dual, shift, soluble = _solved(signed, sides, bound, cost)
        slope = np.einsum("pij,pj->pi", signed, dual) - 1
        shift = _intercept(dual, slope, sides, cost, shift)
        slope += shift[:, np.newaxis] * sides
        new = _bounds(bound, dual, slope, cost)
        same = soluble & (new == bound).all(axis=1)
        done = rest[same]
        weights[done], intercept[done], settled[done] = (dual * sides)[same], shift[same], True
        again = soluble & ~same
        rest, bound = rest[again], new[again]
        if not rest.size:
            break
    return weights, intercept, settled


def _solved(
    signed: np.ndarray, sides: np.ndarray, bound: np.ndarray, cost: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Solve for the free trials, those at a bound (-1: zero, 1: cost) being fixed."""
    count, size = bound.shape
    free = bound == 0
    system = np.zeros((count, size + 1, size + 1))
    system[:, :size, :size] = np.where(free[..., np.newaxis], signed, np.eye(size))
    system[:, :size, size] = free * sides
    system[:, size, :size] = sides
    right = np.zeros((count, size + 1, 1))
    right[:, :size, 0] = np.where(free, 1.0, np.where(bound > 0, cost, 0.0))
    # Without free trials the weights must balance by themselves, and say nothing of the intercept.
    fixed = ~free.any(axis=1)
    system[fixed, size] = system[fixed, :, size] = 0.0
    system[fixed, size, size] = 1.0
    # A ridge that no decision can see makes equal trials soluble.
    scale = np.trace(signed, axis1=-2, axis2=-1)[:, np.newaxis] / size
    system[:, range(size), range(size)] += free * (1e-12 * scale + 1e-300)
    try:
        found = np.linalg.solve(system, right)[..., 0]
    except np.linalg.LinAlgError:
        return np.zeros((count, size)), np.zeros(count), np.zeros(count, dtype=bool)
    dual = found[:, :size]
    balanced = np.abs(dual @ sides) <= _TOLERANCE * np.abs(dual).sum(axis=1)
    return dual, found[:, size], balanced | ~fixed


def _intercept(
    dual: np.ndarray, slope: np.ndarray, sides: np.ndarray, cost: float, shift: np.ndarray
) -> np.ndarray:
    """Take the middle, as libsvm does, where all trials are at a bound and a range is optimal."""
    zero, full = dual <= _TOLERANCE * cost, dual >= (1 - _TOLERANCE) * cost
    inside = (dual >= -_TOLERANCE * cost) & (dual <= (1 + _TOLERANCE) * cost)
    ranged = (zero | full).all(axis=1) & inside.all(axis=1)
    above = np.where((full & (sides < 0)) | (zero & (sides > 0)), slope * sides, np.inf)
    below = np.where((full & (sides > 0)) | (zero & (sides < 0)), slope * sides, -np.inf)
    with np.errstate(invalid="ignore"):
        middle = (above.min(axis=1) + below.max(axis=1)) / 2
    return np.where(ranged, -middle, shift)


def _bounds(bound: np.ndarray, dual: np.ndarray, slope: np.ndarray, cost: float) -> np.ndarray:
    """Fix trials that left [0, cost], and free those whose slope points inwards."""
    free = bound == 0
    zero = np.where(free, dual < -_TOLERANCE * cost, (bound < 0) & (slope >= -_TOLERANCE))
    full = np.where(free, dual > (1 + _TOLERANCE) * cost, (bound > 0) & (slope <= _TOLERANCE))
    return full.astype(np.int8) - zero.astype(np.int8)


def _libsvm(kernel: np.ndarray, sides: np.ndarray, cost: float) -> tuple[np.ndarray, float]:
    from sklearn.svm import SVC

    fitted = SVC(C=cost, kernel="precomputed", tol=1e-10).fit(kernel, sides)
    weights = np.zeros(sides.size)
    weights[fitted.support_] = fitted.dual_coef_[0]
    return weights, float(fitted.intercept_[0])
