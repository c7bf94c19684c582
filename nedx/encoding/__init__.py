"""Image -> response: linear encoding models, and `encode`.

Importing this package does not import torch.
"""

# At once rather than lazily: the submodule `encode` would else hide the function of its name.
from nedx.encoding.encode import encode
from nedx.encoding.features import encode_features
from nedx.encoding.model import LinearEncoder, load_model
from nedx.encoding.recipe import EncoderRecipe

__all__ = [
    "EncoderRecipe",
    "LinearEncoder",
    "encode",
    "encode_features",
    "load_model",
]
