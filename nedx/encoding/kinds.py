"""The kinds of model that encode takes."""

from nedx.encoding.fwrf_model import FwrfEncoder
from nedx.encoding.model import LinearEncoder
from nedx.encoding.realnet_model import ReAlnetModel

Encoder = LinearEncoder | FwrfEncoder | ReAlnetModel
