"""Images whose features in a network come closest to features that were decoded."""

from __future__ import annotations

from nedx.reconstruction.inversion.dists import Dists
from nedx.reconstruction.inversion.encoders import FeatureEncoder, vgg19_encoder
from nedx.reconstruction.inversion.feature_inversion import FeatureInversion
from nedx.reconstruction.inversion.generator_descent import GeneratorDescent
from nedx.reconstruction.inversion.image_generators import (
    ImageGenerator,
    deepsim_generator,
    read_activation_range,
)
from nedx.reconstruction.inversion.lbfgs import LBFGS
from nedx.reconstruction.inversion.objective import layer_weights
from nedx.reconstruction.inversion.pixels import CAFFE
from nedx.reconstruction.inversion.scaling import FeatureScaling

__all__ = [
    "CAFFE",
    "LBFGS",
    "Dists",
    "FeatureEncoder",
    "FeatureInversion",
    "FeatureScaling",
    "GeneratorDescent",
    "ImageGenerator",
    "deepsim_generator",
    "layer_weights",
    "read_activation_range",
    "vgg19_encoder",
]
