"""encode_text: embeddings of what images show, in words, lazily and with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from string import Formatter
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from nedx.compute import cache
from nedx.compute.devices import check_device, forward_slot, resolve_device
from nedx.compute.references import ModelRef
from nedx.errors import ModelError, StimulusError, require
from nedx.schema import parse, sample_dim

PREFIX = "transformers:"
LOADER = "nedx.encoding.text_features:load_reader"
CONCEPTS = ("things_concept", "category")
"""Coordinates that may say what an image shows, the first that is there."""

_BLOCK = 512


def encode_text(
    concepts: Sequence[str] | xr.Dataset,
    model: str,
    prompt: str = "This picture is {}",
    *,
    device: str = "auto",
    batch_size: int = 64,
) -> xr.Dataset:
    """Compute the text embeddings of concepts with the half of CLIP that reads.

    Parameters
    ----------
    concepts : sequence of str or Dataset
        Concepts, each once; or images with the coordinate ``things_concept`` or ``category``
        along ``image``, whose concepts are then read once each.
    model : str
        ``"transformers:<folder or repo>"`` of a whole CLIP, with ``@revision`` where that is
        wanted.
    prompt : str
        What is read, with ``{}`` in the place of the concept: ``"This picture is {}"`` (ATM,
        NECOMIMI) or ``"This is a {}."`` (UBP).
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    batch_size : int
        Texts in one forward pass.

    Returns
    -------
    Dataset
        ``features``, float32, lazily: projected into the space of the images, not L2-normalised.
        Of a sequence ``(category, feature)``, a gallery of concepts; of images
        ``(image, feature)``, with their coordinates.

    Raises
    ------
    ModelError
        If there is no such model or it has no text half; when computed: if a text is too long.
    StimulusError
        If concepts are missing or there twice, or the prompt has no place for them.
    """
    check_device(device)
    if batch_size < 1:
        raise ModelError(f"batch_size is 1 or more, not {batch_size}")
    texts, labels = _concepts(concepts)
    _check_prompt(prompt)
    recipe = _recipe(model, batch_size)
    names, rows = np.unique(texts, return_inverse=True)
    values = _embeddings([prompt.format(name) for name in names], recipe, device)
    if not np.array_equal(rows, np.arange(names.size)):
        values = values[rows]
    attrs = {
        "long_name": "text embedding",
        "units": "1",
        "model": model,
        "layers": ["text_embeds"],
        "prompt": prompt,
        "l2_normalized": "false",
        "batch_size": batch_size,
        "compute_dtype": "float32",
        "torch_version": version("torch"),
        "code_version": version("nedx"),
    }
    if "category" in labels.dims:
        return labels.assign(features=(("category", "feature"), values, attrs))
    return parse(labels.assign(features=(("image", "feature"), values, attrs)))


def _concepts(concepts: Sequence[str] | xr.Dataset) -> tuple[np.ndarray, xr.Dataset]:
    """Return the concept of each row, and the labels of the rows."""
    if isinstance(concepts, xr.Dataset):
        dim = sample_dim(concepts)
        name = next((one for one in CONCEPTS if one in concepts.coords), None)
        if name is None or concepts[name].dims != (dim,) or dim != "image":
            raise StimulusError(
                "what images show is said by a coordinate 'category (image)' or "
                "'things_concept (image)', and there is none. Type: "
                "ds.assign_coords(category=('image', names))"
            )
        labels = concepts.coords.to_dataset()
        kept = [n for n, c in labels.variables.items() if set(c.dims) <= {"image"}]
        return concepts[name].values.astype(str), labels[kept].drop_attrs(deep=False)
    if isinstance(concepts, str) or not len(concepts):
        raise StimulusError(f"concepts are a list of names, such as ['aardvark'], not {concepts!r}")
    names = np.array([str(one) for one in concepts])
    unique, counts = np.unique(names, return_counts=True)
    if (counts > 1).any():
        raise StimulusError(f"the concept {str(unique[counts > 1][0])!r} is there twice")
    return names, xr.Dataset(coords={"category": names.astype(object)})


def _check_prompt(prompt: str) -> None:
    try:
        fields = [field for _, field, _, _ in Formatter().parse(prompt) if field is not None]
    except ValueError:
        fields = []
    if fields != [""]:
        raise StimulusError(f"a prompt has one {{}} for the concept, unlike {prompt!r}")


@dataclass(frozen=True)
class TextRecipe:
    """The half of CLIP that reads.

    Parameters
    ----------
    place : str
        A folder or repository, with ``@revision`` where that is wanted.
    width : int
        Of the space shared with images.
    longest : int
        Tokens that it reads at most, the first and the last among them.
    batch_size : int
        Texts in one forward pass.
    """

    place: str
    width: int
    longest: int
    batch_size: int


def _recipe(model: str, batch_size: int) -> TextRecipe:
    """Read the config of a model: its kind and sizes."""
    from nedx.backbones.published import half_of, read_config

    if not model.startswith(PREFIX):
        raise ModelError(f"text is read by '{PREFIX}<folder or repo>' of a CLIP, not {model!r}")
    place = model.removeprefix(PREFIX)
    config = read_config(place)
    if config.model_type not in ("clip", "clip_text_model"):
        raise ModelError(
            f"{model} is a model of the kind {config.model_type!r}, which has no text half; give "
            "a CLIP"
        )
    half = half_of(config, "text_config")
    return TextRecipe(place, half.projection_dim, half.max_position_embeddings, batch_size)


def _embeddings(texts: list[str], recipe: TextRecipe, device: str) -> da.Array:
    """Return the embeddings of texts (text, feature), a block for each 512 of them."""
    lines = da.from_array(np.array(texts, object), chunks=_BLOCK)
    return da.map_blocks(
        _read_texts,
        lines,
        recipe,
        device,
        new_axis=1,
        chunks=(lines.chunks[0], (recipe.width,)),
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
    )


def _read_texts(texts: np.ndarray, recipe: TextRecipe, device: str) -> np.ndarray:
    """Embed texts (text,), float32 (text, feature)."""
    import torch

    where = resolve_device(device)
    reader: Reader = cache.get(ModelRef(LOADER, None, recipe.place, ""), where)
    out = np.empty((len(texts), recipe.width), np.float32)
    for start in range(0, len(texts), recipe.batch_size):
        part = texts[start : start + recipe.batch_size].tolist()
        tokens = reader.tokenizer(part)["input_ids"]
        for text, ids in zip(part, tokens, strict=True):
            if len(ids) > recipe.longest:
                raise ModelError(
                    f"{text!r} has {len(ids)} tokens, {recipe.place} reads {recipe.longest}: "
                    "shorten the prompt"
                )
        # All are as long as the longest that the model reads, so that no text shapes another's.
        batch = reader.tokenizer(
            part, padding="max_length", max_length=recipe.longest, return_tensors="pt"
        )
        with forward_slot(where), torch.inference_mode():
            found = reader.model(**{k: v.to(where) for k, v in batch.items()})
            out[start : start + len(part)] = found.text_embeds.float().cpu().numpy()
    return out


@dataclass(frozen=True, eq=False)
class Reader:
    """A tokenizer and the model that reads its tokens."""

    tokenizer: Any
    model: Any

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in self.model.parameters())


def load_reader(ref: ModelRef, device: str, part: object) -> Reader:
    """Load tokenizer and model; the loader that references to them name."""
    from nedx.backbones.published import half_of, hub_options, load_trained, read_config

    transformers: Any = require("transformers", "transformers")
    repo, options = hub_options(ref.recipe)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(repo, **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"{repo} holds no tokenizer: {error}") from error
    config = half_of(read_config(ref.recipe), "text_config")
    kind = transformers.CLIPTextModelWithProjection
    model, _ = load_trained(kind, ref.recipe, config)
    return Reader(tokenizer, model.float().to(device).eval())
