"""How good reconstructed images are: pixels, structure, features, distributions, categories."""

from nedx.metrics.images.cat_score import cat_score as cat_score
from nedx.metrics.images.distances import clip_similarity as clip_similarity
from nedx.metrics.images.distances import correlation_distance as correlation_distance
from nedx.metrics.images.features import feature_extractor as feature_extractor
from nedx.metrics.images.fid import fid as fid
from nedx.metrics.images.identification import two_way_identification as two_way_identification
from nedx.metrics.images.judgements import annotator_agreement as annotator_agreement
from nedx.metrics.images.judgements import match_by_similarity as match_by_similarity
from nedx.metrics.images.kid import kid as kid
from nedx.metrics.images.pixcorr import pixcorr as pixcorr
from nedx.metrics.images.report import image_metrics as image_metrics
from nedx.metrics.images.ssim import ssim as ssim
