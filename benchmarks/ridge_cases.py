"""What ``benchmarks.ridge`` runs, each way in a process of its own on one thread.

``python -m benchmarks.ridge_cases WAY FILE KEY=VALUE...`` prints the CPU seconds of the fit and
what its peak memory adds to that of imports and data, and saves penalties and predictions.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]
Fitted = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]


def simulated(samples: int, features: int, targets: int) -> Arrays:
    """Return features of power-law spread and targets with a signal share between 0 and 1."""
    rng = np.random.default_rng(0)
    spread = np.arange(1, features + 1, dtype=np.float32) ** -0.5
    x = rng.standard_normal((samples, features), dtype=np.float32) * spread
    share = rng.uniform(0, 1, targets).astype(np.float32)
    y = np.empty((samples, targets), np.float32)
    for start in range(0, targets, 2048):
        some = slice(start, start + 2048)
        signal = x @ rng.standard_normal((features, share[some].size), dtype=np.float32)
        signal *= np.sqrt(share[some]) / signal.std(0)
        noise = rng.standard_normal(signal.shape, dtype=np.float32)
        y[:, some] = signal + noise * np.sqrt(1 - share[some])
    return x, y


def nedx_ridge(x: np.ndarray, y: Any, alphas: np.ndarray, cv: Any) -> Fitted:
    from nedx.linear.ridge import fit_ridge

    # The others are on the processor, too.
    fit = fit_ridge(x, y, alphas, cv, device="cpu")
    return fit.alpha, lambda new: new @ fit.coef + fit.intercept


def himalaya_ridge(x: np.ndarray, y: np.ndarray, alphas: np.ndarray, cv: int, **batch) -> Fitted:
    from himalaya.backend import set_backend
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import KFold

    set_backend("torch")
    model = RidgeCV(alphas, fit_intercept=True, cv=KFold(cv), solver_params=batch).fit(x, y)
    return model.best_alphas_.numpy(), lambda new: model.predict(new).numpy()


def himalaya_kernel(x: np.ndarray, y: np.ndarray, alphas: np.ndarray, cv: int, **batch) -> Fitted:
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import KernelRidgeCV
    from sklearn.model_selection import KFold

    set_backend("torch")
    model = KernelRidgeCV(alphas, fit_intercept=True, cv=KFold(cv), solver_params=batch).fit(x, y)
    return model.best_alphas_.numpy(), lambda new: model.predict(new).numpy()


def sklearn_loo(x: np.ndarray, y: np.ndarray, alphas: np.ndarray, cv: Any) -> Fitted:
    from sklearn.linear_model import RidgeCV

    model = RidgeCV(alphas, alpha_per_target=True).fit(x, y)
    return model.alpha_, model.predict


def sklearn_regression(x: np.ndarray, y: np.ndarray, alphas: np.ndarray, cv: Any) -> Fitted:
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit(x, y)
    return np.zeros(y.shape[1]), model.predict


def nedx_streamed(x: np.ndarray, y: Any, alphas: np.ndarray, cv: Any) -> Fitted:
    """Fit to a store; the weights go to one too, so that they are never held whole."""
    import zarr

    from nedx.linear.ridge import RidgeSolver

    shape = (x.shape[1], y.shape[1])
    coef = zarr.create_array(f"{STORE}/coef.zarr", shape=shape, dtype="f4", overwrite=True)
    done, penalties, offsets = 0, [], []
    for fit in RidgeSolver(x, alphas, cv, device="cpu").blocks(y, memory=2**26):
        stop = done + len(fit.alpha)
        coef[:, done:stop] = fit.coef
        penalties.append(fit.alpha)
        offsets.append(fit.intercept)
        done = stop
    return np.concatenate(penalties), lambda new: new @ coef[:] + np.concatenate(offsets)


WAYS = {
    each.__name__: each
    for each in (
        nedx_ridge,
        himalaya_ridge,
        himalaya_kernel,
        sklearn_loo,
        sklearn_regression,
        nedx_streamed,
    )
}
STORE = ""


def peak_megabytes() -> float:
    """Return the most memory this process ever held; a child's own, not that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def main() -> None:
    global STORE
    import torch

    torch.set_num_threads(1)
    way, file, *pairs = sys.argv[1:]
    given = dict(pair.split("=") for pair in pairs)
    alphas = np.logspace(*(float(given[k]) for k in ("low", "high")), int(given["penalties"]))
    cv = int(given["cv"]) if given["cv"].isdigit() else given["cv"]
    batch = {"n_targets_batch": int(given["batch"])} if "batch" in given else {}
    if "store" in given:
        import dask.array as da

        STORE = given["store"]
        x = np.load(f"{STORE}/x.npy")
        y: Any = da.from_zarr(f"{STORE}/y.zarr")
        if way != "nedx_streamed":
            y = y.compute()
    else:
        x, y = simulated(*(int(given[k]) for k in ("samples", "features", "targets")))
    _import(way, x[:50, :5], y[:50, :2])
    before, start, began = peak_megabytes(), time.process_time(), time.perf_counter()
    penalties, predict = WAYS[way](x, y, alphas, cv, **batch)
    elapsed, seconds = time.perf_counter() - began, time.process_time() - start
    after = peak_megabytes()
    np.savez(file, alpha=penalties, predicted=predict(x[:200])[:, :4096])
    figures = {"seconds": seconds, "elapsed": elapsed, "extra": after - before, "peak": after}
    print(json.dumps(figures))


def _import(way: str, x: np.ndarray, y: Any) -> None:
    """Fit to next to nothing, so that imports are not measured."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        WAYS[way](x, y, np.array([1.0, 10.0]), 2)


if __name__ == "__main__":
    main()
