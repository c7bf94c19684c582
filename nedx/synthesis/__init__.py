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

__all__ = [
    "RecomputeReport",
    "SynthesisRecipe",
    "finalize",
    "init",
    "local_cluster",
    "run",
    "status",
    "synthesize",
    "verify",
]
