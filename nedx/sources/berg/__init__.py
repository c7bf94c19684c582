"""Published by the Brain Encoding Response Generator, formerly NEST and NED."""

from nedx.sources.berg.fwrf import open_fwrf
from nedx.sources.berg.models import open_model
from nedx.sources.berg.responses import import_responses, open_responses

__all__ = ["import_responses", "open_fwrf", "open_model", "open_responses"]
