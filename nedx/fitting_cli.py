"""The commands ``nedx fit`` and ``nedx decode``: from recordings to a model, by one recipe."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_fit(verbs: Any, say: Callable[[str], None]) -> None:
    """Add the command.

    Parameters
    ----------
    verbs : argparse's subparsers
        Of the command ``nedx``.
    say : callable (str)
        Tells the person what is done now; results go to standard output.
    """
    text = "fit an encoding model to recordings by a recipe, test it, and write its card"
    verb = verbs.add_parser("fit", help=text, description=text)
    verb.add_argument("recipe", help="a YAML file; see nedx.fitting.FitRecipe")
    verb.add_argument("--overwrite", action="store_true", help="replace what is in its output")
    verb.add_argument("--quiet", action="store_true", help="no progress")
    verb.set_defaults(command=lambda arguments: _fit(arguments, say))


def add_decode(verbs: Any, say: Callable[[str], None]) -> None:
    """Add the command; takes what `add_fit` takes."""
    text = "train a decoder by a recipe, find held-out images again, see which channels carry them"
    verb = verbs.add_parser("decode", help=text, description=text)
    verb.add_argument("recipe", help="a YAML file; see nedx.fitting.DecodingRecipe")
    verb.add_argument("--overwrite", action="store_true", help="replace what is in its output")
    verb.add_argument("--quiet", action="store_true", help="no progress")
    verb.set_defaults(command=lambda arguments: _decode(arguments, say))


def _decode(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    from nedx.fitting import run_decoding

    progress = None if arguments.quiet else say
    result = run_decoding(arguments.recipe, overwrite=arguments.overwrite, progress=progress)
    say(result.report)
    say(f"all of it lies in {result.folder}")


def _fit(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    from nedx.fitting import fit

    progress = None if arguments.quiet else say
    result = fit(arguments.recipe, overwrite=arguments.overwrite, progress=progress)
    say(str(result))
    say(f"to predict responses to images, type: nedx synth init IMAGES {result.place} OUT.zarr")
