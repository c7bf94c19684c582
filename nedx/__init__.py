"""The labelled, streaming, verifiable layer for image-evoked brain responses.

Public names are imported when they are first used: ``import nedx`` imports neither torch nor any
cloud library, and registers the accessors ``Dataset.ned`` and ``DataTree.ned``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nedx import accessor as accessor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nedx.accessor import ned
    from nedx.by_name import cite, verify
    from nedx.catalog.listing import describe, list, search
    from nedx.catalog.pulling import pull
    from nedx.catalog.resolving import open
    from nedx.conversion.content_loss import ContentLossConverter
    from nedx.conversion.convert import convert
    from nedx.conversion.eeg import EEGConverter
    from nedx.conversion.hyperalignment import HyperalignmentConverter
    from nedx.conversion.optimal_transport import OptimalTransportConverter
    from nedx.conversion.procrustes import ProcrustesConverter
    from nedx.conversion.published import import_converter
    from nedx.conversion.ridge import RidgeConverter
    from nedx.decoding.decode import decode
    from nedx.decoding.estimator import EEGDecoder
    from nedx.decoding.feature_decoder import FeatureDecoder
    from nedx.decoding.protocols import neuralbench_retrieval
    from nedx.decoding.published import import_decoder
    from nedx.decoding.retrieval import class_centres, retrieve
    from nedx.encoding.encode import encode
    from nedx.encoding.estimators.banded import BandedRidgeEncoder
    from nedx.encoding.estimators.l2lir import L2LiREncoder
    from nedx.encoding.estimators.ols import OLSEncoder
    from nedx.encoding.estimators.ridge import RidgeEncoder
    from nedx.encoding.features import encode_features
    from nedx.encoding.fwrf_ridge import FwrfRidgeEncoder
    from nedx.encoding.fwrf_training import FwrfTrainer
    from nedx.encoding.model import LinearEncoder, load_model
    from nedx.encoding.realnet import ReAlnetEncoder
    from nedx.encoding.realnet_published import import_realnet
    from nedx.encoding.text_features import encode_text
    from nedx.fitting import fit
    from nedx.insilico import channel_experiment, channel_importance, time_importance
    from nedx.insilico.perturb import perturb
    from nedx.metrics.conversion_accuracy import conversion_accuracy
    from nedx.metrics.identification import image_identification, pairwise_identification
    from nedx.metrics.images import cat_score, image_metrics
    from nedx.metrics.noise_ceiling import noise_ceiling
    from nedx.metrics.permutation_ceiling import permutation_ceiling
    from nedx.metrics.profiles import (
        pattern_correlation,
        profile_correlation,
        training_statistics,
    )
    from nedx.metrics.retrieval_scores import retrieval_scores
    from nedx.metrics.rsa import compare_rdms, pairwise_decoding, rdm, searchlight_rdm
    from nedx.metrics.scoring import score
    from nedx.reconstruction.inversion import FeatureInversion
    from nedx.reconstruction.latents import encode_latents
    from nedx.reconstruction.low_level import LowLevelDecoder
    from nedx.reconstruction.prior import apply_prior
    from nedx.reconstruction.prior_training import DiffusionPrior
    from nedx.reconstruction.reconstruct import reconstruct
    from nedx.schema import parse, validate
    from nedx.simulation.drawing import simulate_eeg
    from nedx.sources.importing import import_source
    from nedx.stimuli import open_images
    from nedx.store.opening import open_store
    from nedx.store.writing import to_zarr
    from nedx.synthesis import synthesize

__version__ = "0.1.0"

_MODULES = {
    "BandedRidgeEncoder": "nedx.encoding.estimators.banded",
    "ContentLossConverter": "nedx.conversion.content_loss",
    "DiffusionPrior": "nedx.reconstruction.prior_training",
    "EEGConverter": "nedx.conversion.eeg",
    "EEGDecoder": "nedx.decoding.estimator",
    "FeatureDecoder": "nedx.decoding.feature_decoder",
    "FeatureInversion": "nedx.reconstruction.inversion",
    "FwrfRidgeEncoder": "nedx.encoding.fwrf_ridge",
    "FwrfTrainer": "nedx.encoding.fwrf_training",
    "HyperalignmentConverter": "nedx.conversion.hyperalignment",
    "L2LiREncoder": "nedx.encoding.estimators.l2lir",
    "LinearEncoder": "nedx.encoding.model",
    "LowLevelDecoder": "nedx.reconstruction.low_level",
    "OLSEncoder": "nedx.encoding.estimators.ols",
    "OptimalTransportConverter": "nedx.conversion.optimal_transport",
    "ProcrustesConverter": "nedx.conversion.procrustes",
    "ReAlnetEncoder": "nedx.encoding.realnet",
    "RidgeConverter": "nedx.conversion.ridge",
    "RidgeEncoder": "nedx.encoding.estimators.ridge",
    "apply_prior": "nedx.reconstruction.prior",
    "cat_score": "nedx.metrics.images",
    "channel_experiment": "nedx.insilico",
    "channel_importance": "nedx.insilico",
    "cite": "nedx.by_name",
    "class_centres": "nedx.decoding.retrieval",
    "compare_rdms": "nedx.metrics.rsa",
    "conversion_accuracy": "nedx.metrics.conversion_accuracy",
    "convert": "nedx.conversion.convert",
    "decode": "nedx.decoding.decode",
    "describe": "nedx.catalog.listing",
    "encode": "nedx.encoding.encode",
    "encode_features": "nedx.encoding.features",
    "encode_latents": "nedx.reconstruction.latents",
    "encode_text": "nedx.encoding.text_features",
    "fit": "nedx.fitting",
    "image_identification": "nedx.metrics.identification",
    "image_metrics": "nedx.metrics.images",
    "import_converter": "nedx.conversion.published",
    "import_decoder": "nedx.decoding.published",
    "import_realnet": "nedx.encoding.realnet_published",
    "import_source": "nedx.sources.importing",
    "list": "nedx.catalog.listing",
    "load_model": "nedx.encoding.model",
    "ned": "nedx.accessor",
    "neuralbench_retrieval": "nedx.decoding.protocols",
    "noise_ceiling": "nedx.metrics.noise_ceiling",
    "open": "nedx.catalog.resolving",
    "open_images": "nedx.stimuli",
    "open_store": "nedx.store.opening",
    "pairwise_decoding": "nedx.metrics.rsa",
    "pairwise_identification": "nedx.metrics.identification",
    "parse": "nedx.schema",
    "pattern_correlation": "nedx.metrics.profiles",
    "permutation_ceiling": "nedx.metrics.permutation_ceiling",
    "perturb": "nedx.insilico.perturb",
    "profile_correlation": "nedx.metrics.profiles",
    "pull": "nedx.catalog.pulling",
    "rdm": "nedx.metrics.rsa",
    "reconstruct": "nedx.reconstruction.reconstruct",
    "retrieval_scores": "nedx.metrics.retrieval_scores",
    "retrieve": "nedx.decoding.retrieval",
    "score": "nedx.metrics.scoring",
    "search": "nedx.catalog.listing",
    "searchlight_rdm": "nedx.metrics.rsa",
    "simulate_eeg": "nedx.simulation.drawing",
    "synthesize": "nedx.synthesis",
    "time_importance": "nedx.insilico",
    "to_zarr": "nedx.store.writing",
    "training_statistics": "nedx.metrics.profiles",
    "validate": "nedx.schema",
    "verify": "nedx.by_name",
}

__all__ = [
    "BandedRidgeEncoder",
    "ContentLossConverter",
    "DiffusionPrior",
    "EEGConverter",
    "EEGDecoder",
    "FeatureDecoder",
    "FeatureInversion",
    "FwrfRidgeEncoder",
    "FwrfTrainer",
    "HyperalignmentConverter",
    "L2LiREncoder",
    "LinearEncoder",
    "LowLevelDecoder",
    "OLSEncoder",
    "OptimalTransportConverter",
    "ProcrustesConverter",
    "ReAlnetEncoder",
    "RidgeConverter",
    "RidgeEncoder",
    "__version__",
    "apply_prior",
    "cat_score",
    "channel_experiment",
    "channel_importance",
    "cite",
    "class_centres",
    "compare_rdms",
    "conversion_accuracy",
    "convert",
    "decode",
    "describe",
    "encode",
    "encode_features",
    "encode_latents",
    "encode_text",
    "fit",
    "image_identification",
    "image_metrics",
    "import_converter",
    "import_decoder",
    "import_realnet",
    "import_source",
    "list",
    "load_model",
    "ned",
    "neuralbench_retrieval",
    "noise_ceiling",
    "open",
    "open_images",
    "open_store",
    "pairwise_decoding",
    "pairwise_identification",
    "parse",
    "pattern_correlation",
    "permutation_ceiling",
    "perturb",
    "profile_correlation",
    "pull",
    "rdm",
    "reconstruct",
    "retrieval_scores",
    "retrieve",
    "score",
    "search",
    "searchlight_rdm",
    "simulate_eeg",
    "synthesize",
    "time_importance",
    "to_zarr",
    "training_statistics",
    "validate",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'nedx' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> Sequence[str]:
    return sorted({*globals(), *__all__})
