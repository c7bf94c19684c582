"""From recordings to a published encoding model, by one recipe."""

from nedx.fitting.card import model_card
from nedx.fitting.recipe import FitRecipe, load_fit_recipe
from nedx.fitting.run import FitResult, fit

__all__ = ["FitRecipe", "FitResult", "fit", "load_fit_recipe", "model_card"]
