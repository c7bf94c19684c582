"""The exports and plots that `Dataset.ned` and `DataTree.ned` share: one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    import mne
    import nibabel
    import pandas as pd

    from nedx.export.torch import SampleStream
    from nedx.plot.accessor import Plots


class Exports:
    """Verbs that hand data to other tools; of a tree, those of one subject."""

    _obj: Any

    @property
    def plot(self) -> Plots:
        """Figures; see `nedx.plot.accessor.Plots`."""
        from nedx.plot.accessor import Plots

        return Plots(self._obj)

    def to_mne(self, *args: Any, **options: Any) -> mne.EpochsArray | list[mne.EvokedArray]:
        """Return Epochs or Evokeds of MNE; see `nedx.export.mne.to_mne`."""
        from nedx.export.mne import to_mne

        return to_mne(self._obj, *args, **options)

    def to_nifti(self, *args: Any, **options: Any) -> nibabel.Nifti1Image:
        """Return the voxels as volumes; see `nedx.export.nifti.to_nifti`."""
        from nedx.export.nifti import to_nifti

        return to_nifti(self._obj, *args, **options)

    def to_gifti(self, *args: Any, **options: Any) -> dict[str, nibabel.GiftiImage]:
        """Return the vertices as maps on a surface; see `nedx.export.gifti.to_gifti`."""
        from nedx.export.gifti import to_gifti

        return to_gifti(self._obj, *args, **options)

    def to_brainio(self, *args: Any, **options: Any) -> xr.DataArray:
        """Return an assembly of BrainIO, lazily; see `nedx.export.brainio.to_brainio`."""
        from nedx.export.brainio import to_brainio

        return to_brainio(self._obj, *args, **options)

    def to_torch(self, *args: Any, **options: Any) -> SampleStream:
        """Return a stream of samples for torch; see `nedx.export.torch.to_torch`."""
        from nedx.export.torch import to_torch

        return to_torch(self._obj, *args, **options)

    def to_dataframe(self, *args: Any, **options: Any) -> pd.DataFrame:
        """Return a tidy table; see `nedx.export.dataframe.to_dataframe`."""
        from nedx.export.dataframe import to_dataframe

        return to_dataframe(self._obj, *args, **options)
