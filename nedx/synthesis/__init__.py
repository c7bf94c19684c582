"""Batch jobs: plan, run, status, finalize, verify."""

from nedx.synthesis.clusters import local_cluster
from nedx.synthesis.jobs import (
    RecomputeReport,
    finalize,
    init,
    run,
    status,
    synthesize,
    verify,
)
from nedx.synthesis.recipe import SynthesisRecipe
from nedx.synthesis.recipes import ImageSetRecipe, load_recipe, open_image_set, recipe_names

__all__ = [
    "ImageSetRecipe",
    "RecomputeReport",
    "SynthesisRecipe",
    "finalize",
    "init",
    "load_recipe",
    "local_cluster",
    "open_image_set",
    "recipe_names",
    "run",
    "status",
    "synthesize",
    "verify",
]
