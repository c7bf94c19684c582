"""Representational similarity analysis: RDMs, their comparison, searchlights, pairwise decoding."""

from nedx.metrics.rsa.comparison import compare_rdms as compare_rdms
from nedx.metrics.rsa.comparison import rdm_noise_ceiling as rdm_noise_ceiling
from nedx.metrics.rsa.dissimilarity import rdm as rdm
from nedx.metrics.rsa.pairwise import pairwise_decoding as pairwise_decoding
from nedx.metrics.rsa.permutation import rdm_permutation_test as rdm_permutation_test
from nedx.metrics.rsa.searchlight import searchlight_rdm as searchlight_rdm
from nedx.metrics.rsa.searchlight import sphere_neighbours as sphere_neighbours
