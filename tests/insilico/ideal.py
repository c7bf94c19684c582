"""Responses whose signal lies where we put it, and the decoder that is best for them."""

from __future__ import annotations

import dask.array as da
import numpy as np
import xarray as xr

from nedx.simulation import eeg, montage

CHANNELS = ["Fp1", "Fp2", "F3", "Fz", "F4", "C3", "Cz", "C4", "P3", "P4", "O1", "Oz", "O2"]
CARRIERS = ["O1", "Oz", "O2"]
TIMES = np.arange(-10, 40) / 100
SIGNAL = (0.1, 0.2)
N_FEATURES = 16


class Linear:
    """Features to responses of ``CARRIERS`` within ``SIGNAL``, under white noise; and back.

    The decoder is the posterior mean of normal features, E[f | y] = (A'A / s^2 + I)^-1 A'y / s^2:
    no other has a smaller expected error.
    """

    def __init__(self, noise_sd: float = 6.0, subjects: tuple[str, ...] = ("sub-01", "sub-02")):
        rng = np.random.default_rng(0)
        self.noise_sd, self.subjects = noise_sd, subjects
        self.map = np.zeros((len(subjects), len(CHANNELS), TIMES.size, N_FEATURES))
        inside = (SIGNAL[0] - 1e-9 <= TIMES) & (SIGNAL[1] + 1e-9 >= TIMES)
        carriers = [CHANNELS.index(name) for name in CARRIERS]
        drawn = rng.normal(size=(len(subjects), len(carriers), inside.sum(), N_FEATURES))
        self.map[np.ix_(range(len(subjects)), carriers, inside)] = drawn

    def draw(self, count: int, seed: int, prefix: str = "t") -> tuple[xr.Dataset, xr.Dataset]:
        """Return responses (subject, image, channel, time) and features (image, feature)."""
        rng = np.random.default_rng([1, seed])
        features = rng.normal(size=(count, N_FEATURES)).astype(np.float32)
        signal = np.einsum("scTf,if->sicT", self.map, features)
        response = signal + self.noise_sd * rng.normal(size=signal.shape)
        ids = {"image_id": ("image", np.array([f"{prefix}:{i:04}" for i in range(count)], object))}
        responses = xr.Dataset(
            {"response": (("subject", "image", "channel", "time"), response.astype("f4"))},
            {
                **ids,
                "subject": np.array(self.subjects, object),
                "channel": np.array(CHANNELS, object),
                "time": ("time", TIMES, {"units": "s"}),
            },
            {"modality": "eeg"},
        )
        responses["response"].attrs |= {"units": "uV", "source": "synthetic"}
        gallery = xr.Dataset({"features": (("image", "feature"), features)}, ids)
        return responses.set_xindex("image_id"), gallery.set_xindex("image_id")

    def decode(self, ds: xr.Dataset) -> xr.Dataset:
        """Add the posterior mean as ``embedding (subject, image, feature)``, lazily."""
        response = ds["response"].transpose("subject", "image", "channel", "time").chunk(image=-1)
        decoded = [
            response[s].data.reshape(ds.sizes["image"], -1) @ self._inverse(s)
            for s in range(ds.sizes["subject"])
        ]
        dims = ("subject", "image", "feature")
        return ds.assign(embedding=(dims, da.stack(decoded).astype("f4")))

    def _inverse(self, subject: int) -> np.ndarray:
        a = self.map[subject].reshape(-1, N_FEATURES)
        precision = a.T @ a / self.noise_sd**2 + np.eye(N_FEATURES)
        return np.linalg.solve(precision, a.T / self.noise_sd**2).T


class LeastSquares:
    """A ridge decoder that is fitted: an estimator as `retrain` wants one."""

    def __init__(self, penalty: float = 100.0):
        self.penalty, self.fits = penalty, 0

    def fit(self, responses: xr.Dataset, targets: xr.Dataset):
        """Return the function that decodes."""
        self.fits += 1
        ids = targets["image_id"].values.tolist()
        rows = [ids.index(name) for name in responses["image_id"].values]
        y = targets["features"].values[rows]
        weights = []
        for x in _flat(responses["response"]):
            gram = x.T @ x + self.penalty * np.eye(x.shape[1])
            weights.append(np.linalg.solve(gram, x.T @ y))

        def decode(ds: xr.Dataset) -> xr.Dataset:
            found = [x @ w for x, w in zip(_flat(ds["response"]), weights, strict=True)]
            return ds.assign(embedding=(("subject", "image", "feature"), np.stack(found)))

        return decode


def _flat(response: xr.DataArray) -> np.ndarray:
    values = response.transpose("subject", "image", "channel", "time").values.astype(np.float64)
    return values.reshape(*values.shape[:2], -1)


def simulated_eeg(
    count: int, subject: str = "sub-01", repetitions: int = 4
) -> tuple[xr.Dataset, xr.Dataset, np.ndarray]:
    """Return mean responses to drawn images, their features, and features that tell their law."""
    rng = np.random.default_rng(7)
    law = rng.normal(size=(2000, 64)) * rng.uniform(0.3, 1.5, 64) + rng.normal(size=64)
    features = law[:count].astype(np.float32)
    signal = eeg.noise_free(features, subject)
    response = eeg.add_noise(signal, eeg.noise_sd(subject), repetitions, rng).mean(1)
    ids = {"image_id": ("image", np.array([f"s:{i:04}" for i in range(count)], object))}
    attrs = {"units": "uV", "source": "synthetic"}
    responses = xr.Dataset(
        {"response": (("image", "channel", "time"), response, attrs)},
        {
            **ids,
            "subject": subject,
            "channel": np.array(montage.CHANNELS, object),
            "time": ("time", eeg.TIMES, {"units": "s"}),
            **{
                axis: ("channel", place)
                for axis, place in zip("xyz", montage.positions().T, strict=True)
            },
        },
        {"modality": "eeg"},
    )
    gallery = xr.Dataset({"features": (("image", "feature"), features)}, ids)
    return responses.set_xindex("image_id"), gallery.set_xindex("image_id"), law


class PosteriorEEG:
    """The best decoder of the simulated EEG: the posterior mean, from the simulation's own law.

    Features are normal; responses are their linear map under noise that is normal, an
    autoregression of .9 in time and correlated as exp(-distance / 6 cm) between channels.
    """

    def __init__(self, subject: str, features: np.ndarray, repetitions: int):
        self.mean = features.mean(0)
        self.weights, self.evoked = eeg.linear_map(subject)
        sd, places = eeg.noise_sd(subject), montage.positions()
        distance = np.linalg.norm(places[:, None] - places, axis=-1)
        across = sd[:, None] * np.exp(-distance / 0.06) * sd
        steps = np.arange(eeg.TIMES.size)
        along = 0.9 ** np.abs(steps[:, None] - steps)
        whitened = np.linalg.solve(across, self.weights.reshape(len(sd), -1))
        whitened = whitened.reshape(self.weights.shape).swapaxes(0, 1)
        whitened = np.linalg.solve(along, whitened.reshape(len(along), -1))
        whitened = whitened.reshape(len(along), len(sd), -1).swapaxes(0, 1)
        whitened = whitened.reshape(-1, features.shape[1])
        flat = self.weights.reshape(-1, features.shape[1])
        prior = np.linalg.inv(np.cov(features.T) + 1e-6 * np.eye(features.shape[1]))
        precision = repetitions * whitened.T @ flat + prior
        self.inverse = np.linalg.solve(precision, repetitions * whitened.T)

    def __call__(self, ds: xr.Dataset) -> xr.Dataset:
        """Add ``embedding (image, feature)`` to responses (image, channel, time)."""
        expected = self.evoked + self.weights @ self.mean
        response = ds["response"].transpose("image", "channel", "time").values.astype(np.float64)
        found = self.mean + (response - expected).reshape(len(response), -1) @ self.inverse.T
        return ds.assign(embedding=(("image", "feature"), found.astype(np.float32)))
