"""Estimators: encoding models fitted to responses, with the manners of scikit-learn."""

from nedx.encoding.estimators.banded import BandedRidgeEncoder
from nedx.encoding.estimators.base import EncoderEstimator
from nedx.encoding.estimators.l2lir import L2LiREncoder
from nedx.encoding.estimators.ols import OLSEncoder
from nedx.encoding.estimators.ridge import RidgeEncoder

__all__ = ["BandedRidgeEncoder", "EncoderEstimator", "L2LiREncoder", "OLSEncoder", "RidgeEncoder"]
