"""From recordings to a published encoding model, or to a decoder, by one recipe."""

from nedx.fitting.card import model_card
from nedx.fitting.decoding_recipe import DecodingRecipe, load_decoding_recipe
from nedx.fitting.decoding_run import DecodingResult, run_decoding
from nedx.fitting.recipe import FitRecipe, load_fit_recipe
from nedx.fitting.run import FitResult, fit

__all__ = [
    "DecodingRecipe",
    "DecodingResult",
    "FitRecipe",
    "FitResult",
    "fit",
    "load_decoding_recipe",
    "load_fit_recipe",
    "model_card",
    "run_decoding",
]
