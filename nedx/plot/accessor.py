"""``ds.ned.plot``: one line a figure, nothing kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Plots:
    """The figures of nedx; each takes ``ax=`` and returns the matplotlib Axes it drew on.

    Without ``ax`` a new figure is made that pyplot knows nothing of: in a notebook, end the cell
    with ``.figure``; in a script, save it with ``.figure.savefig("figure.png")``.
    """

    def __init__(self, obj: xr.Dataset | xr.DataTree):
        self._obj = obj

    def accuracy_scatter(self, *args: Any, **options: Any) -> Axes:
        """Draw r2 against noise ceiling; see `nedx.plot.accuracy.plot_accuracy_scatter`."""
        from nedx.plot.accuracy import plot_accuracy_scatter

        return plot_accuracy_scatter(self._obj, *args, **options)

    def accuracy_histogram(self, *args: Any, **options: Any) -> Axes:
        """Draw explained variances; see `nedx.plot.accuracy.plot_accuracy_histogram`."""
        from nedx.plot.accuracy import plot_accuracy_histogram

        return plot_accuracy_histogram(self._obj, *args, **options)

    def accuracy_bars(self, *args: Any, **options: Any) -> Axes:
        """Draw ROIs by subject; see `nedx.plot.accuracy.plot_accuracy_bars`."""
        from nedx.plot.accuracy import plot_accuracy_bars

        return plot_accuracy_bars(self._obj, *args, **options)

    def timecourse(self, *args: Any, **options: Any) -> Axes:
        """Draw means over time, with intervals; see `nedx.plot.timecourse.plot_timecourse`."""
        from nedx.plot.timecourse import plot_timecourse

        return plot_timecourse(self._obj, *args, **options)

    def waveforms(self, *args: Any, **options: Any) -> Axes:
        """Draw predicted beside measured; see `nedx.plot.waveforms.plot_waveforms`."""
        from nedx.plot.waveforms import plot_waveforms

        return plot_waveforms(self._obj, *args, **options)

    def topomap(self, *args: Any, **options: Any) -> Axes:
        """Draw a map of the scalp; see `nedx.plot.topomap.plot_topomap`."""
        from nedx.plot.topomap import plot_topomap

        return plot_topomap(self._obj, *args, **options)

    def importance(self, **options: Any) -> Axes:
        """Draw what is lost with each channel; see `nedx.plot.importance.plot_importance`."""
        from nedx.plot.importance import plot_importance

        return plot_importance(self._obj, **options)

    def surface(self, *args: Any, **options: Any) -> Axes:
        """Draw the inflated cortex; see `nedx.plot.surface.plot_surface`."""
        from nedx.plot.surface import plot_surface

        return plot_surface(self._obj, *args, **options)

    def rdm(self, method: str = "correlation", **options: Any) -> Axes:
        """Draw the dissimilarities of all pairs of images; see `nedx.plot.rdm.plot_rdm_of`."""
        from nedx.plot.rdm import plot_rdm_of

        return plot_rdm_of(self._obj, method, **options)

    def images(self, *args: Any, **options: Any) -> Axes:
        """Draw responses beside their images; see `nedx.plot.images.plot_images`."""
        from nedx.plot.images import plot_images

        return plot_images(self._obj, *args, **options)

    def retrieved(self, stimuli: xr.Dataset | None = None, **options: Any) -> Axes:
        """Draw retrieved beside seen images; see `nedx.plot.retrieved.plot_retrieved`."""
        from nedx.plot.retrieved import plot_retrieved

        return plot_retrieved(self._obj, stimuli, **options)
