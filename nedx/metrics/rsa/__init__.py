"""Representational similarity analysis: RDMs, their comparison, searchlights, pairwise decoding."""

from nedx.metrics.rsa.dissimilarity import rdm as rdm
from nedx.metrics.rsa.pairwise import pairwise_decoding as pairwise_decoding
