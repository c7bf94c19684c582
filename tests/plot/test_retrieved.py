"""Retrieved images are drawn where they belong, and the true one has the frame."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgba

import nedx
from nedx.errors import SchemaError, SelectionError


@pytest.fixture(autouse=True)
def _pyplot_keeps_nothing():
    yield
    assert plt.get_fignums() == []


@pytest.fixture
def images() -> xr.Dataset:
    """Return ten images of one grey each, with features that are far apart."""
    pixels = np.broadcast_to(np.arange(0, 200, 20)[:, None, None, None], (10, 8, 8, 3))
    return xr.Dataset(
        {
            "pixels": (("image", "y", "x", "rgb"), pixels.astype(np.uint8)),
            "features": (("image", "feature"), np.eye(10, dtype=np.float32)),
        },
        {
            "image_id": ("image", [f"t:{i}" for i in range(10)]),
            "category": ("image", list("aabbccddee")),
        },
    )


@pytest.fixture
def decoded(images) -> xr.Dataset:
    """Return embeddings (subject, image, feature) of images 3, 7 and 1; the last is taken for 4."""
    values = np.eye(10, dtype=np.float32)[[3, 7, 1]]
    values[2, 4] = 2
    ds = images[["category"]].isel(image=[3, 7, 1])
    return ds.assign(embedding=(("subject", "image", "feature"), values[None]))


def test_images_lie_where_they_belong_and_the_true_one_is_framed(decoded, images):
    found = decoded.ned.retrieve(images, 2, device="cpu")
    ax = found.ned.plot.retrieved(images)
    drawn = {}
    for image in ax.images:
        left, _, _, top = image.get_extent()
        drawn[round(top - 0.05), left] = int(image.get_array()[0, 0, 0]) // 20
    columns = sorted({left for _, left in drawn})
    shown = [[drawn[row, column] for column in columns] for row in range(3)]
    assert shown == [[3, 3, 0], [7, 7, 0], [1, 4, 1]]
    green = [patch for patch in ax.patches if patch.get_edgecolor() == to_rgba("tab:green")]
    framed = [(round(p.get_y() - 0.05), columns.index(p.get_x())) for p in green]
    assert framed == [(0, 1), (1, 1), (2, 2)]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["rank 1", "rank 1", "rank 2"]


def test_concepts_are_names(decoded, images):
    found = decoded.ned.retrieve(nedx.class_centres(images), 1, device="cpu")
    ax = found.ned.plot.retrieved(images)
    assert [text.get_text() for text in ax.texts] == ["b", "d", "c"]
    assert len(ax.images) == 3


def test_what_cannot_be_drawn_is_told(decoded, images):
    found = decoded.ned.retrieve(images, 2, device="cpu")
    with pytest.raises(SchemaError, match="no variable 'pixels'"):
        found.ned.plot.retrieved()
    with pytest.raises(SchemaError, match="'candidate_id' and 'rank'"):
        decoded.ned.plot.retrieved(images)
    with pytest.raises(SchemaError, match="no coordinate 'image_id': nothing is joined"):
        found.ned.plot.retrieved(images.drop_vars("image_id"))
    concepts = decoded.drop_vars("image_id").ned.retrieve(nedx.class_centres(images), 1)
    with pytest.raises(SchemaError, match="no coordinate 'image_id' of the images seen"):
        concepts.ned.plot.retrieved(images)
    two = xr.concat([found, found], "subject")
    with pytest.raises(SelectionError, match=r"found\.isel\(subject=0\)"):
        two.ned.plot.retrieved(images)
    many = found.isel(image=np.zeros(30, dtype=int))
    with pytest.raises(SelectionError, match="30 images; at most 24"):
        many.ned.plot.retrieved(images)
