"""The kinds of model that encode takes."""

from nedx.encoding.fwrf_model import FwrfEncoder
from nedx.encoding.model import LinearEncoder

Encoder = LinearEncoder | FwrfEncoder
