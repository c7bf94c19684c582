"""``Dataset.ned`` and ``DataTree.ned``: one line a verb, nothing kept.

An accessor travels with the pickle of its Dataset, so it holds the Dataset and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import xarray as xr

from nedx import repr as _repr
from nedx import schema, selection
from nedx.errors import SchemaError, StoreError
from nedx.export.accessor import Exports
from nedx.selection import Names, Subjects, Times

if TYPE_CHECKING:
    from nedx.catalog.listing import CitationText
    from nedx.store.location import Location
    from nedx.store.verifying import VerifyReport


@xr.register_dataset_accessor("ned")
class DatasetNed(Exports):
    """The verbs of nedx on a Dataset; each returns a new Dataset."""

    def __init__(self, ds: xr.Dataset):
        self._obj = ds

    @property
    def neuroid_dim(self) -> str | None:
        """The neuroid axis: vertex, voxel, parcel, channel or unit."""
        return schema.neuroid_dim(self._obj)

    @property
    def sample_dim(self) -> str:
        """The dimension of the samples: image or trial."""
        return schema.sample_dim(self._obj)

    def sel(
        self,
        *,
        subject: Subjects | None = None,
        roi: Names | None = None,
        channel: Names | None = None,
        time: Times | None = None,
    ) -> xr.Dataset:
        """Select subjects, ROIs, channels and times; see `nedx.selection.select`."""
        return selection.select(self._obj, subject=subject, roi=roi, channel=channel, time=time)

    def roi(self, name: Names) -> xr.Dataset:
        """Select the neuroids of a ROI, in any of the subjects."""
        return selection.select(self._obj, roi=name)

    def select(self, expression: str) -> xr.Dataset:
        """Select neuroids by ``"ROI_V1 + ROI_V2"``; see `nedx.sources.bdata.select`."""
        from nedx.sources.bdata.select import select_expression

        return select_expression(self._obj, expression)

    def roi_mean(self, name: Names) -> xr.Dataset:
        """Average over each subject's own neuroids of a ROI; see `nedx.selection.roi_mean`."""
        return selection.roi_mean(self._obj, name)

    def roi_response(self, roi: Names | None = None) -> xr.Dataset:
        """Average every ROI of all subjects; see `nedx.encoding.roi_response`."""
        from nedx.encoding.roi_response import roi_response

        return roi_response(self._obj, roi)

    def encode(self, model: Any, **options: Any) -> xr.Dataset | xr.DataTree:
        """Predict responses to these images, lazily; see `nedx.encode`."""
        from nedx.encoding.encode import encode

        return encode(self._obj, model, **options)

    def decode(self, model: Any, **options: Any) -> xr.Dataset:
        """Make embeddings or features of these responses, lazily; see `nedx.decode`."""
        from nedx.decoding.decode import decode

        return decode(self._obj, model, **options)

    def convert(self, model: Any, **options: Any) -> xr.Dataset | xr.DataTree:
        """Turn these responses into another subject's, lazily; see `nedx.convert`."""
        from nedx.conversion.convert import convert

        return convert(self._obj, model, **options)

    def retrieve(self, gallery: xr.Dataset, k: int = 5, **options: Any) -> xr.Dataset:
        """Find the images of a gallery that come closest, lazily; see `nedx.retrieve`."""
        from nedx.decoding.retrieval import retrieve

        return retrieve(self._obj, gallery, k, **options)

    def apply_prior(self, prior: Any, **options: Any) -> xr.Dataset:
        """Turn decoded embeddings into those of images, lazily; see `nedx.apply_prior`."""
        from nedx.reconstruction.prior import apply_prior

        return apply_prior(self._obj, prior, **options)

    def reconstruct(self, generator: Any, **options: Any) -> xr.Dataset:
        """Make pictures of embeddings, latents or features, lazily; see `nedx.reconstruct`."""
        from nedx.reconstruction.reconstruct import reconstruct

        return reconstruct(self._obj, generator, **options)

    def score(self, **options: Any) -> xr.Dataset:
        """Compare predicted with measured responses; see `nedx.score`."""
        from nedx.metrics.scoring import score

        return score(self._obj, **options)

    def noise_ceiling(self, **options: Any) -> xr.DataArray:
        """Estimate the noise ceiling from the repeats; see `nedx.metrics.noise_ceiling`."""
        from nedx.metrics.noise_ceiling import noise_ceiling

        return noise_ceiling(self._obj, **options)

    def image_metrics(self, stimuli: xr.Dataset | None = None, **options: Any) -> xr.Dataset:
        """Say how good reconstructed images are, lazily; see `nedx.image_metrics`."""
        from nedx.metrics.images import image_metrics

        return image_metrics(self._obj, stimuli, **options)

    def rdm(self, method: Any = "correlation", **options: Any) -> xr.DataArray:
        """Compare the patterns of all pairs of images, lazily; see `nedx.rdm`."""
        from nedx.metrics.rsa import rdm

        return rdm(self._obj, method, **options)

    def pairwise_decoding(self, **options: Any) -> xr.DataArray:
        """Decode all pairs of images at all times; see `nedx.pairwise_decoding`."""
        from nedx.metrics.rsa import pairwise_decoding

        return pairwise_decoding(self._obj, **options)

    def searchlight_rdm(self, neighbours: Any = None, **options: Any) -> xr.DataArray:
        """Compare the patterns around every voxel, lazily; see `nedx.searchlight_rdm`."""
        from nedx.metrics.rsa import searchlight_rdm

        return searchlight_rdm(self._obj, neighbours, **options)

    def perturb(self, **options: Any) -> xr.Dataset:
        """Put noise in the place of channels, lazily; see `nedx.perturb`."""
        from nedx.insilico.perturb import perturb

        return perturb(self._obj, **options)

    def trusted(self, **thresholds: float) -> xr.Dataset:
        """Keep the neuroids that are predicted well enough; see `nedx.metrics.trusted`."""
        from nedx.metrics.trusted import trusted

        return trusted(self._obj, **thresholds)

    def zscore(self, scope: Any = "session", **options: Any) -> xr.Dataset:
        """Standardise by session, run or training set; see `nedx.preprocessing.zscore`."""
        from nedx.preprocessing.zscore import zscore

        return zscore(self._obj, scope, **options)

    def block_averages(self, **options: Any) -> xr.Dataset:
        """Average the volumes of each block or event; see `nedx.preprocessing.blocks`."""
        from nedx.preprocessing.blocks import block_averages

        return block_averages(self._obj, **options)

    def whiten(self, **options: Any) -> xr.Dataset:
        """Normalise by the covariance of the noise; see `nedx.preprocessing.whitening`."""
        from nedx.preprocessing.whitening import whiten

        return whiten(self._obj, **options)

    def stack_repetitions(self, count: int | None = None) -> xr.Dataset:
        """Turn trials into images and repetitions; see `nedx.preprocessing.repetitions`."""
        from nedx.preprocessing.repetitions import stack_repetitions

        return stack_repetitions(self._obj, count)

    def average_repetitions(self) -> xr.Dataset:
        """Average the repetitions of each image; see `nedx.preprocessing.repetitions`."""
        from nedx.preprocessing.repetitions import average_repetitions

        return average_repetitions(self._obj)

    def to_bdata(self, place: str | Path | Location, **options: Any) -> Location:
        """Write the responses as a BData file; see `nedx.sources.bdata.writing`."""
        from nedx.sources.bdata.writing import to_bdata

        return to_bdata(self._obj, place, **options)

    def to_zarr(self, place: str | Path | Location, **options: Any) -> Location:
        """Write a store that can be resumed and verified; see `nedx.to_zarr`."""
        from nedx.store.writing import to_zarr

        return to_zarr(self._obj, place, **options)

    def synthesize(self, model: Any, place: str | Path | Location, **options: Any) -> Any:
        """Write the responses of a model to these images; see `nedx.synthesize`."""
        from nedx.synthesis import synthesize

        return synthesize(self._obj, model, place, **options)

    def parse(self, kind: str | None = None) -> xr.Dataset:
        """Make it obey the schema where that is safe; see `nedx.parse`."""
        return schema.parse(self._obj, kind)

    def validate(self, kind: str | None = None) -> None:
        """Raise one error with every fault against the schema; see `nedx.validate`."""
        schema.validate(self._obj, kind)

    def verify(self, **options: Any) -> VerifyReport:
        """Check the hashes of the store it was opened from; see `nedx.verify`."""
        return _verify(self._obj.encoding, options)

    def cite(self) -> CitationText:
        """Say how to cite it; see `nedx.cite`."""
        from nedx.by_name import cite

        return cite(self._obj)

    def __repr__(self) -> str:
        return _repr.as_text(_repr.describe(self._obj))

    def __rich__(self) -> Any:
        return _repr.as_rich(_repr.describe(self._obj))

    def _repr_html_(self) -> str:
        return _repr.as_html(_repr.describe(self._obj))


@xr.register_datatree_accessor("ned")
class DataTreeNed(Exports):
    """The verbs of nedx on a DataTree of subjects with neuroids of their own."""

    def __init__(self, tree: xr.DataTree):
        self._obj = tree

    def sel(
        self,
        *,
        subject: Subjects | None = None,
        roi: Names | None = None,
        channel: Names | None = None,
        time: Times | None = None,
    ) -> xr.DataTree:
        """Select children by subject, and in each; see `nedx.selection.select_tree`."""
        return selection.select_tree(
            self._obj, subject=subject, roi=roi, channel=channel, time=time
        )

    def roi(self, name: Names) -> xr.DataTree:
        """Select the neuroids of a ROI in every subject."""
        return selection.select_tree(self._obj, roi=name)

    def select(self, expression: str) -> xr.DataTree:
        """Select neuroids of every subject by ``"ROI_V1 + ROI_V2"``."""
        from nedx.sources.bdata.select import select_expression

        return selection.map_nodes(self._obj, lambda ds: select_expression(ds, expression))

    def roi_mean(self, name: Names) -> xr.DataTree:
        """Average over the neuroids of a ROI in every subject."""
        return selection.map_nodes(self._obj, lambda ds: selection.roi_mean(ds, name))

    def roi_response(self, roi: Names | None = None) -> xr.Dataset:
        """Average every ROI of all subjects; see `nedx.encoding.roi_response`."""
        from nedx.encoding.roi_response import roi_response

        return roi_response(self._obj, roi)

    def encode(self, model: Any, **options: Any) -> xr.Dataset | xr.DataTree:
        """Predict responses to the images of every subject, lazily; see `nedx.encode`."""
        from nedx.encoding.encode import encode

        return encode(self._obj, model, **options)

    def decode(self, model: Any, **options: Any) -> xr.DataTree:
        """Decode features of each subject with its own decoder, lazily; see `nedx.decode`."""
        from nedx.decoding.decode import decode

        return decode(self._obj, model, **options)

    def convert(self, model: Any, **options: Any) -> xr.Dataset | xr.DataTree:
        """Turn responses of every subject into those of one, lazily; see `nedx.convert`."""
        from nedx.conversion.convert import convert

        return convert(self._obj, model, **options)

    def reconstruct(self, generator: Any, **options: Any) -> xr.DataTree:
        """Make pictures of what every subject saw, lazily; see `nedx.reconstruct`."""
        from nedx.reconstruction.reconstruct import reconstruct

        return reconstruct(self._obj, generator, **options)

    def score(self, **options: Any) -> xr.DataTree:
        """Compare predicted with measured responses in every subject; see `nedx.score`."""
        from nedx.metrics.scoring import score

        return selection.map_nodes(self._obj, lambda ds: score(ds, **options))

    def noise_ceiling(self, **options: Any) -> xr.DataTree:
        """Estimate the noise ceiling of every subject; see `nedx.metrics.noise_ceiling`."""
        from nedx.metrics.noise_ceiling import noise_ceiling

        return selection.map_nodes(self._obj, lambda ds: noise_ceiling(ds, **options).to_dataset())

    def rdm(self, method: Any = "correlation", **options: Any) -> xr.DataTree:
        """Compare the patterns of all pairs of images in every subject; see `nedx.rdm`."""
        from nedx.metrics.rsa import rdm

        return selection.map_nodes(self._obj, lambda ds: rdm(ds, method, **options).to_dataset())

    def perturb(self, **options: Any) -> xr.DataTree:
        """Put noise in the place of channels in every subject; see `nedx.perturb`."""
        from nedx.insilico.perturb import perturb

        return selection.map_nodes(self._obj, lambda ds: perturb(ds, **options))

    def average_repetitions(self) -> xr.DataTree:
        """Average the repetitions of each image in every subject."""
        from nedx.preprocessing.repetitions import average_repetitions

        return selection.map_nodes(self._obj, average_repetitions)

    def trusted(self, **thresholds: float) -> xr.DataTree:
        """Keep the neuroids of every subject that are predicted well enough."""
        from nedx.metrics.trusted import trusted

        return selection.map_nodes(self._obj, lambda ds: trusted(ds, **thresholds))

    def to_zarr(self, place: str | Path | Location, **options: Any) -> Location:
        """Write a store with a group a subject; see `nedx.to_zarr`."""
        from nedx.store.writing import to_zarr

        return to_zarr(self._obj, place, **options)

    def parse(self, kind: str | None = None) -> xr.DataTree:
        """Make every group obey the schema where that is safe; see `nedx.parse`."""
        return schema.parse(self._obj, kind)

    def validate(self, kind: str | None = None) -> None:
        """Raise one error with every fault of every group; see `nedx.validate`."""
        schema.validate(self._obj, kind)

    def verify(self, **options: Any) -> VerifyReport:
        """Check the hashes of the store it was opened from; see `nedx.verify`."""
        opened = (node.encoding for node in self._obj.subtree if "source" in node.encoding)
        return _verify(next(opened, {}), options)

    def cite(self) -> CitationText:
        """Say how to cite it; see `nedx.cite`."""
        from nedx.by_name import cite

        return cite(self._obj)

    def __repr__(self) -> str:
        return _repr.as_text(_repr.describe(self._obj))

    def __rich__(self) -> Any:
        return _repr.as_rich(_repr.describe(self._obj))

    def _repr_html_(self) -> str:
        return _repr.as_html(_repr.describe(self._obj))


@overload
def ned(obj: xr.Dataset) -> DatasetNed: ...
@overload
def ned(obj: xr.DataTree) -> DataTreeNed: ...
def ned(obj: xr.Dataset | xr.DataTree) -> DatasetNed | DataTreeNed:
    """Return ``obj.ned`` as a type that editors can complete.

    Parameters
    ----------
    obj : Dataset or DataTree
        Responses, stimuli or features.

    Returns
    -------
    DatasetNed or DataTreeNed

    Raises
    ------
    SchemaError
        If it is neither.
    """
    if isinstance(obj, xr.DataTree):
        return DataTreeNed(obj)
    if not isinstance(obj, xr.Dataset):
        raise SchemaError(
            f"a {type(obj).__name__}",
            ["the verbs work on Datasets and DataTrees; images: type nedx.open_images(array)"],
        )
    return DatasetNed(obj)


def _verify(encoding: Mapping[Any, Any], options: dict[str, Any]) -> VerifyReport:
    """Verify the place that a Dataset was opened from."""
    source = encoding.get("source")
    if source is None:
        raise StoreError("this was not opened from a store; type nedx.verify(place)")
    from nedx.store.verifying import verify

    return verify(str(source), **options)
