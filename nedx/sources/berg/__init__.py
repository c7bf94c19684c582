"""The models and metadata of the Brain Encoding Response Generator, formerly NED and NEST."""

from nedx.sources.berg.models import open_model

__all__ = ["open_model"]
