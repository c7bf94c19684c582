"""Make golden cases of L2LiR with the package of its authors.

It needs an environment of its own, since release 0.11 fails with NumPy 2.4::

    python -m venv ENV
    ENV/bin/pip install "numpy<2.4" fastl2lir==0.11
    ENV/bin/python tests/oracles/make_l2lir.py

Each case of ``l2lir.npz`` holds ``x``, ``y``, ``alpha`` and ``n_feat``, and ``W``, ``b`` and the
prediction of ``x`` in float64. ``feature_decoding.npz`` holds responses to training and test
images, trial by trial, features of one layer, and what the published procedure decodes. Nothing of
it is computed by nedx.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from fastl2lir import FastL2LiR

FOLDER = Path(__file__).parent
IMAGES, REPEATS, TEST_IMAGES, TEST_REPEATS, VOXELS, SHAPE = 30, 3, 6, 4, 30, (3, 2, 2)
DECODING = {"alpha": 5.0, "n_feat": 12}


def data(samples, inputs, units, seed, *, standardize=True):
    """Return x (sample, input) and y (sample, unit) that share factors, as float32 numbers."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((samples, 4))
    x = factors @ rng.standard_normal((4, inputs)) + 2 * rng.standard_normal((samples, inputs))
    y = factors @ rng.standard_normal((4, units)) + rng.standard_normal((samples, units))
    if standardize:
        x = (x - x.mean(0)) / x.std(0, ddof=1)
        y = (y - y.mean(0)) / y.std(0, ddof=1)
    else:
        x, y = x + 1.5, y - 0.7
    # As float32, so that both precisions begin with the same numbers, and the file is small.
    return x.astype(np.float32), y.astype(np.float32)


def cases():
    """Yield name, x, y, alpha and n_feat."""
    yield "chosen", *data(50, 45, 6, 0), 1.0, 20
    yield "chosen_alpha", *data(50, 45, 6, 1), 100.0, 7
    yield "not_centred", *data(50, 45, 6, 2, standardize=False), 0.5, 20
    yield "wide", *data(40, 70, 6, 3), 10.0, 30
    yield "all_inputs", *data(50, 45, 6, 4), 1.0, 0
    yield "all_inputs_wide", *data(40, 70, 6, 5), 1.0, 0
    yield "as_many_as_there_are", *data(50, 45, 6, 6), 1.0, 45
    yield "more_than_there_are", *data(50, 45, 6, 7), 1.0, 80
    x, y = data(50, 45, 6, 8)
    x[:, [3, 30]], y[:, 5] = 0, 0
    yield "dead", x, y, 1.0, 20
    # Trials of images that share a target, 5 of each.
    x, y = data(50, 45, 6, 9)
    yield "repeats", x, np.repeat(y[::5], 5, axis=0), 10.0, 20


def decoding():
    """Decode features of test images as Shen et al. 2019 do, from means of trials and from each."""
    rng = np.random.default_rng(20)
    mixing = rng.standard_normal((4, VOXELS)), rng.standard_normal((4, int(np.prod(SHAPE))))

    def study(images, repeats):
        factors = rng.standard_normal((images, 4))
        label = rng.permutation(np.repeat(np.arange(images), repeats))
        response = 2 + factors[label] @ mixing[0] + rng.standard_normal((len(label), VOXELS))
        return label, response.astype(np.float32), (factors @ mixing[1] - 1).astype(np.float32)

    label, response, feature = study(IMAGES, REPEATS)
    test_label, test_response, _ = study(TEST_IMAGES, TEST_REPEATS)
    x, y = response.astype(float), feature.astype(float)
    x_mean, x_norm = x.mean(0), x.std(0, ddof=1)
    # Over the images, not over their trials.
    y_mean, y_norm = y.mean(0), y.std(0, ddof=1)
    z = ((y - y_mean) / y_norm)[label]
    fitted = FastL2LiR().fit((x - x_mean) / x_norm, z, **DECODING)

    def decode(some):
        found = fitted.predict((some - x_mean) / x_norm) * y_norm + y_mean
        return found.reshape(-1, *SHAPE)

    means = [test_response[test_label == i].mean(0, dtype=float) for i in range(TEST_IMAGES)]
    return {
        **{"label": label, "response": response, "feature": feature.reshape(-1, *SHAPE)},
        **{"test_label": test_label, "test_response": test_response},
        **{"decoded": decode(np.array(means)), "decoded_trials": decode(test_response)},
        **DECODING,
    }


def main():
    """Write the files."""
    np.savez_compressed(FOLDER / "feature_decoding.npz", **decoding())
    arrays = {}
    for name, x, y, alpha, n_feat in cases():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = FastL2LiR().fit(x.astype(float), y.astype(float), alpha=alpha, n_feat=n_feat)
        predicted = fitted.predict(x.astype(float))
        found = {"x": x, "y": y, "alpha": alpha, "n_feat": n_feat}
        found |= {"W": fitted.W, "b": fitted.b, "predicted": predicted}
        arrays |= {f"{name}/{key}": np.asarray(value) for key, value in found.items()}
    np.savez_compressed(FOLDER / "l2lir.npz", **arrays)


if __name__ == "__main__":
    main()
