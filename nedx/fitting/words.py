"""Recipes in YAML: mappings of known words, every fault of which is named at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from nedx.errors import ModelError, close_matches


class Words(BaseModel):
    """A mapping of known words; any other word is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Recipe = TypeVar("Recipe", bound=Words)


def load_recipe(
    kind: type[Recipe], recipe: Recipe | Mapping[str, Any] | str | Path, command: str
) -> Recipe:
    """Read a recipe and check all of it.

    Parameters
    ----------
    kind : type
        The recipe's class.
    recipe : recipe, mapping, str or Path
        The recipe, or the path of a YAML file. Paths inside it are relative to the working folder.
    command : str
        What it is a recipe of, for errors: ``nedx fit``.

    Returns
    -------
    recipe
        Of that class.

    Raises
    ------
    ModelError
        If there is no such file, or anything in it is wrong; every fault is named.
    """
    if isinstance(recipe, kind):
        return recipe
    where = "the recipe"
    if isinstance(recipe, str | Path):
        where = str(recipe)
        try:
            recipe = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ModelError(f"there is no recipe at {where}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ModelError(f"{where} is not YAML: {error}") from error
    try:
        return kind.model_validate(recipe)
    except ValidationError as error:
        faults = "; ".join(_fault(kind, fault) for fault in error.errors())
        raise ModelError(f"{where} is not a recipe of {command}: {faults}") from error


def _fault(kind: type[Words], fault: Any) -> str:
    """Say where a recipe is wrong, and which word may be meant."""
    place = ".".join(str(part) for part in fault["loc"]) or "recipe"
    if fault["type"] == "extra_forbidden":
        *path, word = fault["loc"]
        return f"{place} is no word of it, {close_matches(word, _known_words(kind, path))}"
    return f"{place}: {fault['msg'].removeprefix('Value error, ')}"


def _known_words(kind: type[BaseModel], path: list[Any]) -> list[str]:
    """Return the words of the mapping at a path of a recipe."""
    for step in path:
        field = kind.model_fields.get(str(step))
        # Of a choice of types (str | BackboneRecipe) pydantic names the one that it tried last.
        inner = (
            [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        )
        models = [one for one in inner if isinstance(one, type) and issubclass(one, BaseModel)]
        kind = models[0] if models else kind
    return sorted(kind.model_fields)
