"""How close fitted encoders come to what can be known: the linear part of the simulations.

The simulated responses of sim-fmri hold a linear map of 64 features that explains a known share
of the noise-free response (``linear_map_r2``), those of sim-eeg are that map; trial noise is known,
too. No linear model of these features can be expected to correlate with the mean of the test
trials by more than r = sqrt(linear_map_r2 * noise_ceiling).
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from benchmarks.measuring import Row, at_least

RELIABLE = 0.5
"""A ceiling of r above which the signal of a target is a quarter of its variance."""
SUBJECT = "sub-01"
TIMES = [0.075, 0.105, 0.13, 0.165, 0.2, 0.23, 0.3, 0.38, 0.45]
"""s, where the components of the evoked response are."""
ALPHAS = tuple(float(alpha) for alpha in 10.0 ** np.arange(-1, 6))


def measure() -> list[Row]:
    """Report the mean accuracy over the mean of its ceiling, held-out images only."""
    rows = []
    for name in ("sim-fmri", "sim-eeg"):
        accuracy, ceiling = held_out(name)
        for least in (0.0, RELIABLE):
            kept = ceiling > least
            r, best = accuracy[kept].mean(), ceiling[kept].mean()
            note = f"mean r {r:.3f}, ceiling {best:.3f}, {int(kept.sum()):,} targets"
            which = f" where it is above {least:g}" if least else ""
            title = f"{name}: r over the ceiling of the linear part{which}"
            rows.append(at_least(title, float(r / best), 0.95, "", note))
    return [*rows, *learning_curve()]


def learning_curve() -> list[Row]:
    """Report what the number of training images does to the accuracy on sim-eeg.

    The law of the simulation is drawn from again, for more images than the store has: features
    as normal as those of its training images, its maps, its noise. Test images are the store's.
    THINGS-EEG2 has 16,540 training images, shown four times each as here.
    """
    import nedx

    truth = nedx.open("sim-eeg", group="truth")
    features = truth["features"].values.astype(float)
    train = truth["partition"].values == "train"
    best = np.sqrt(np.clip(truth["noise_ceiling"].sel(subject=SUBJECT, time=TIMES), 0, None))
    rows = []
    for images in (1000, 5000, 16_540):
        accuracy = _redrawn(features[~train], images)
        ratio = float(accuracy.mean() / best.values.mean())
        title = f"sim-eeg, {images:,} training images: r over the ceiling of the linear part"
        note = f"the store has {int(train.sum())}; {SUBJECT}, {len(TIMES)} times"
        rows.append(at_least(title, ratio, 0.95, "", note))
    return rows


def _redrawn(test: np.ndarray, images: int) -> np.ndarray:
    """Return r of each channel and time on the test images, fitted to new training images.

    The mean over several draws of the test trials: in 200 images shown once, r moves by .03.
    """
    import nedx
    from nedx.linear.ridge import fit_ridge
    from nedx.metrics.correlation import correlate
    from nedx.simulation import eeg

    rng = np.random.default_rng(0)
    at = np.isin(eeg.TIMES, TIMES)
    drawn = nedx.simulate_eeg(images, subject=SUBJECT)
    means = drawn["response"].isel(subject=0, time=at).mean("repetition")

    def trials() -> np.ndarray:
        signal = eeg.noise_free(test, SUBJECT)
        noisy = eeg.add_noise(signal, eeg.noise_sd(SUBJECT), eeg.EEG_REPETITIONS, rng)
        return noisy[..., at].mean(1).reshape(len(test), -1)

    fit = fit_ridge(drawn["features"].values, means.values.reshape(images, -1), ALPHAS)
    predicted = test @ fit.coef
    return np.mean([correlate(predicted.T, trials().T) for _ in range(10)], axis=0)


def held_out(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return for every target Pearson's r on the test images, and the most that can be expected."""
    import nedx
    from nedx.fitting.splitting import Split, split

    responses = nedx.open(name)
    features = nedx.open(name, group="truth")[["features"]].load().astype("f4")
    train, test = split(responses, Split())
    encoder = nedx.RidgeEncoder("gabor", n_components=64, alphas=ALPHAS, groups="category")
    scored = encoder.fit(features, train).evaluate(features, test)
    if isinstance(scored, xr.Dataset):
        truth = nedx.open(name, group="truth")
        return _pair(scored, truth)
    pairs = [
        _pair(child.to_dataset(), nedx.open(name, group=f"truth/{subject}"))
        for subject, child in scored.children.items()
    ]
    first, second = zip(*pairs, strict=True)
    return np.concatenate(first), np.concatenate(second)


def _pair(scored: xr.Dataset, truth: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    explained = truth.get("linear_map_r2", 1.0)
    best = np.sqrt(np.clip(truth["noise_ceiling"] * explained, 0, None))
    accuracy = scored["accuracy"].transpose(*best.dims)
    return accuracy.values.astype(float).reshape(-1), best.values.astype(float).reshape(-1)
