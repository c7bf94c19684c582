import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from rsatoolbox.data.noise import prec_from_residuals
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.svm import SVC

from nedx.errors import SchemaError
from nedx.metrics.rsa import pairwise_decoding, rdm
from nedx.metrics.rsa.classifiers import lda, svm
from tests.laziness import computes_at_most
from tests.rsa.responses import as_trials, repeated


def support_vectors(cost=1.0):
    return SVC(kernel="linear", C=cost, tol=1e-8)


def discriminant(shrinkage=0.1):
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)


def one_by_one(values, make, n_folds=None):
    """Fit and score scikit-learn's classifier for every pair of (image, repetition, channel)."""
    images, repetitions, _ = values.shape
    found = np.full((images, images), np.nan)
    groups = np.array_split(np.arange(repetitions), n_folds or repetitions)
    for i in range(images):
        for j in range(i + 1, images):
            scores = []
            for test in groups:
                train = np.setdiff1d(np.arange(repetitions), test)
                fitted = make().fit(*pair(values[i, train], values[j, train]))
                scores.append(fitted.score(*pair(values[i, test], values[j, test])))
            found[i, j] = found[j, i] = np.mean(scores)
    return found


def pair(a, b):
    return np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])


CLASSIFIERS = [("svm", support_vectors), ("lda", discriminant)]


@pytest.mark.parametrize(("classifier", "make"), CLASSIFIERS)
@pytest.mark.parametrize("channels", [2, 5, 30])
def test_every_pair_at_every_time_is_decoded_as_scikit_learn_does(classifier, make, channels):
    responses = repeated(images=6, channels=channels, times=4)
    found = pairwise_decoding(responses, classifier=classifier)
    assert found.dims == ("image", "image_2", "time")
    for t in range(4):
        np.testing.assert_allclose(
            found[..., t], one_by_one(responses.values[..., t], make), rtol=1e-6
        )


@pytest.mark.parametrize("cost", [1e-3, 0.05, 1.0, 10.0])
@pytest.mark.parametrize("length", [2, 8, 40])
@pytest.mark.parametrize("each", [2, 3, 9])
def test_decision_values_of_many_machines_equal_libsvm(cost, length, each):
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((20, 2, each + 1, length))
    patterns[:, 1] += 0.5
    trials = patterns.reshape(20, -1, length)
    train, test = np.arange(each), np.array([each])
    found = svm(trials @ trials.swapaxes(-1, -2), train, test, cost)
    for problem, values in enumerate(patterns):
        fitted = support_vectors(cost).fit(*pair(*values[:, :each]))
        expected = fitted.decision_function(values[:, each])
        np.testing.assert_allclose(
            found[problem], expected, atol=1e-5 * max(1, abs(expected).max())
        )


@pytest.mark.parametrize("shrinkage", [0.01, 0.5, 0.99])
def test_decision_values_of_many_discriminants_have_the_sign_of_scikit_learn(shrinkage):
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((50, 2, 5, 12))
    trials = patterns.reshape(50, -1, 12)
    ridge = shrinkage / (12 * (1 - shrinkage))
    found = lda(trials @ trials.swapaxes(-1, -2), np.arange(3), np.array([3, 4]), ridge)
    for problem, values in enumerate(patterns):
        fitted = discriminant(shrinkage).fit(*pair(*values[:, :3]))
        expected = fitted.decision_function(values[:, 3:].reshape(-1, 12))
        ratio = found[problem] / expected
        assert ratio.min() > 0
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


@pytest.mark.parametrize(("classifier", "make"), CLASSIFIERS)
def test_folds_may_hold_several_repetitions(classifier, make):
    responses = repeated(images=4, repetitions=7, times=1)
    found = pairwise_decoding(responses, classifier=classifier, n_folds=3)
    expected = one_by_one(responses.values[..., 0], make, n_folds=3)
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-6)


def test_pseudotrials_are_means_of_random_repetitions():
    responses = repeated(images=5, repetitions=9, times=1)
    found = pairwise_decoding(responses, pseudotrials=3, seed=4)
    order = np.random.default_rng(4).permutation(9).reshape(3, 3)
    means = np.stack([responses.values[..., 0][:, group].mean(axis=1) for group in order], axis=1)
    np.testing.assert_allclose(found[..., 0], one_by_one(means, support_vectors), rtol=1e-6)


def test_noise_is_whitened_before_decoding():
    responses = repeated(images=6, channels=4, times=1)
    found = pairwise_decoding(responses, noise="shrinkage")
    values = responses.values[..., 0]
    residuals = (values - values.mean(axis=1, keepdims=True)).reshape(-1, 4)
    precision = prec_from_residuals(residuals, dof=6 * 3, method="shrinkage_eye")
    expected = one_by_one(values @ np.linalg.cholesky(precision), support_vectors)
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-6)


def test_sessions_of_trials_are_folds():
    responses = repeated(images=5)
    found = pairwise_decoding(as_trials(responses), folds="session")
    np.testing.assert_array_equal(found, pairwise_decoding(responses))


@given(
    block_size=st.integers(1, 8),
    chunks=st.tuples(*[st.integers(1, 7)] * 4),
    classifier=st.sampled_from(["svm", "lda"]),
)
@settings(max_examples=8)
def test_any_chunking_gives_the_same_and_nothing_is_computed_before(block_size, chunks, classifier):
    responses = repeated()
    lazy = responses.chunk(dict(zip(responses.dims, chunks, strict=True)))
    with computes_at_most(0):
        found = pairwise_decoding(lazy, classifier=classifier, block_size=block_size)
    expected = pairwise_decoding(responses, classifier=classifier)
    np.testing.assert_array_equal(found.compute(scheduler="sync"), expected)


def test_noise_alone_is_decoded_at_chance_and_distinct_images_perfectly():
    noise = repeated(images=30, channels=20, times=1, seed=3)
    noise = noise.copy(data=np.random.default_rng(5).standard_normal(noise.shape))
    above = np.triu_indices(30, 1)
    # Pairs share images: the deviation of the mean is at most that of 30 images' own.
    chance = pairwise_decoding(noise).values[..., 0][above]
    assert chance.mean() == pytest.approx(0.5, abs=0.05)
    signal = noise + 100 * np.random.default_rng(6).standard_normal((30, 1, 20, 1))
    assert (pairwise_decoding(signal).values[..., 0][above] == 1).all()


def test_it_is_a_dissimilarity():
    responses = repeated()
    found = rdm(responses, "decoding", classifier="lda", shrinkage=0.3)
    assert found.name == "rdm"
    assert found.attrs["classifier"] == "lda"
    expected = pairwise_decoding(responses, classifier="lda", shrinkage=0.3)
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(np.diagonal(found)).all()


@pytest.mark.parametrize("classifier", ["svm", "lda"])
def test_equal_trials_are_on_the_boundary(classifier):
    same = xr.ones_like(repeated(images=3))
    found = pairwise_decoding(same, classifier=classifier)
    assert (found.values[~np.eye(3, dtype=bool)] == 0.5).all()


def test_what_cannot_be_decoded_is_said_first():
    responses = repeated()
    with pytest.raises(SchemaError, match="1 repetitions or pseudotrials"):
        pairwise_decoding(responses.isel(repetition=[0]))
    with pytest.raises(SchemaError, match="no repeats"):
        pairwise_decoding(responses.isel(repetition=0))
    with pytest.raises(SchemaError, match="4 repetitions cannot be averaged in 5"):
        pairwise_decoding(responses, pseudotrials=5)
    with pytest.raises(SchemaError, match="in 9 folds"):
        pairwise_decoding(responses, n_folds=9)
    with pytest.raises(ValueError, match="classifier is 'svm' or 'lda'"):
        pairwise_decoding(responses, classifier="tree")
    with pytest.raises(ValueError, match="shrinkage lies between 0 and 1"):
        pairwise_decoding(responses, classifier="lda", shrinkage=1.0)
    responses[1, 2, 0, 0] = np.nan
    with pytest.raises(SchemaError, match="1 of 7 patterns hold NaN"):
        pairwise_decoding(responses).compute(scheduler="sync")
