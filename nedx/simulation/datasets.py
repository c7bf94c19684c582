"""The simulated data with their labels and their truth, in memory, before they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from nedx.schema import CONVENTIONS, SCHEMA_VERSION
from nedx.simulation import cortex, montage
from nedx.simulation import eeg as evoked
from nedx.simulation.concepts import SEED
from nedx.simulation.energy import concept_axes, contrast_energy, make_features, pool
from nedx.simulation.grids import N_VERTICES, SPHERE_MM, icosphere, native_voxels, surface
from nedx.simulation.images import DEGREES, make_images
from nedx.simulation.retinotopy import ROIS, Patches

FSAVERAGE5_REPETITIONS = 3

_LABELS = ("image_id", "category", "partition", "stimulus_set")
_ZSCORED = {"units": "1", "normalization": "zscore", "normalization_scope": "train"}
_METHODS = (
    "Receptive fields: Horton & Hoyt 1991, doi:10.1001/archopht.1991.01080060080030; Harvey & "
    "Dumoulin 2011, doi:10.1523/JNEUROSCI.2572-11.2011; compression: Kay et al. 2013, "
    "doi:10.1371/journal.pcbi.1003079; images: Lee, Mumford & Huang 2001, "
    "doi:10.1023/A:1011109015675"
)


def images() -> xr.DataTree:
    """Return the images, and in ``truth`` the 64 ``features`` of each."""
    ds = make_images()
    train = ds["partition"].values == "train"
    axes = concept_axes(ds["concept_parameters"].values, ds["shape_family"].values)
    energy = contrast_energy(ds["pixels"].values)
    ds.attrs = {
        **dataset_attrs("Simulated images (dead leaves) of parametric concepts", None),
        "stimulus_type": "image",
        "visual_degrees": DEGREES,
    }
    features = make_features(energy, axes, train)
    gabor = {"units": "1", "long_name": "features of the default Gabor backbone"}
    truth = xr.Dataset(
        {
            "features": (("image", "feature"), features, {"units": "1", "source": "synthetic"}),
            "gabor": (("image", "gabor_feature"), pool(energy, 8), gabor),
            "concept_axes": (("image", "axis"), axes.astype(np.float32), {"units": "1"}),
        },
        coords={label: ds[label] for label in _LABELS},
        attrs=dataset_attrs("Truth behind the simulated images", None),
    )
    return _tree({"/": ds, "/truth": truth})


def dataset_attrs(title: str, modality: str | None) -> dict[str, Any]:
    """Return the attributes of a simulated Dataset."""
    attrs: dict[str, Any] = {
        "Conventions": CONVENTIONS,
        "nedx_schema_version": SCHEMA_VERSION,
        "title": title,
        "summary": "Simulated, not measured: made by nedx.simulation from a seed.",
        "source": "synthetic",
        "dataset": "sim",
        "license": "CC0-1.0",
        "references": _METHODS,
        "seed": SEED,
    }
    if modality is not None:
        attrs |= {"modality": modality, "species": "none (simulated)", "stimulus_type": "image"}
    return attrs


def _tree(groups: dict[str, xr.Dataset]) -> xr.DataTree:
    # Without indexes nothing is inherited, and each group keeps labels of its own on disk.
    return xr.DataTree.from_dict(
        {k: ds.drop_indexes(list(ds.xindexes)) for k, ds in groups.items()}
    )


def _shown(train_each: int, test_each: int) -> xr.Dataset:
    """Open the truth of the images, for the first few images of each concept."""
    from nedx.simulation.stores import open_group

    truth = open_group("sim-images", "truth")
    truth = truth.drop_vars("gabor").load()
    number = np.array([int(str(i).rsplit("_", 1)[1]) for i in truth["image_id"].values])
    most = np.where(truth["partition"].values == "train", train_each, test_each)
    return truth.isel(image=np.flatnonzero(number < most))


def _energy(truth: xr.Dataset) -> np.ndarray:
    from nedx.simulation.stores import open_group

    stimuli = open_group("sim-images")
    positions = stimuli.indexes["image_id"].get_indexer(truth["image_id"].values)
    return contrast_energy(stimuli["pixels"].isel(image=positions).values)


def _image_labels(truth: xr.Dataset) -> dict[str, Any]:
    return {label: ("image", truth[label].values) for label in _LABELS}


def _features(truth: xr.Dataset) -> tuple[tuple[str, str], np.ndarray, dict[str, str]]:
    attrs = {"units": "1", "source": "synthetic", "long_name": "target of decoding"}
    return ("image", "feature"), truth["features"].values, attrs


def _train(truth: xr.Dataset) -> np.ndarray:
    return np.asarray(truth["partition"].values == "train")


def _roi_coords() -> dict[str, Any]:
    return {
        "roi": ("roi", np.array(list(ROIS), dtype=object)),
        "roi_group": ("roi", np.array([group for group, *_ in ROIS.values()], dtype=object)),
    }


class _Subject:
    """One subject's patches, what they answer, and the truth about them."""

    def __init__(
        self, patches: Patches, subject: str, purpose: int, energy: np.ndarray, truth: xr.Dataset
    ):
        self.patches, self.train = patches, _train(truth)
        seed = cortex.subject_seed(subject, purpose)
        self.tuning = cortex.draw_tuning(patches, np.random.default_rng([*seed, 0]))
        self.rng = np.random.default_rng([*seed, 1])
        axes = truth["concept_axes"].values
        self.signal = cortex.noise_free(energy, axes, patches, self.tuning, self.train)
        self.noise_sd = np.sqrt(1 - self.tuning.reliability).astype(np.float32)
        self.map = cortex.linear_map(truth["features"].values, self.signal, self.train)

    def trials(self, repetitions: int) -> np.ndarray:
        """Return single trials, float32 (image, repetition, patch)."""
        return cortex.add_noise(self.signal, self.tuning.reliability, repetitions, self.rng)

    def ceiling(self, repetitions: int) -> np.ndarray:
        """Return the true ceiling of the mean of the repetitions, over the test images."""
        return cortex.ceiling(self.signal[~self.train], self.noise_sd, repetitions)

    def truth(self, dim: str, repetitions: int) -> xr.Dataset:
        """Return all but the noise-free response and the maps of pairs."""
        weights, intercept, r2 = self.map
        degrees = {"units": "degree"}
        per_patch: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
            "noise_sd": (self.noise_sd, {"units": "1", "long_name": "noise of one trial"}),
            "noise_ceiling": (self.ceiling(repetitions), _ceiling_attrs(repetitions)),
            "reliability": (self.tuning.reliability, {"units": "1"}),
            "rf_x": (self.patches.x, degrees),
            "rf_y": (self.patches.y, degrees),
            "rf_size": (self.patches.size, {**degrees, "long_name": "sigma"}),
            "preferred_orientation": (self.tuning.orientation, {"units": "rad"}),
            "preferred_frequency": (self.tuning.frequency, {"units": "degree-1"}),
            "exponent": (self.tuning.exponent, {"units": "1"}),
            "linear_map_intercept": (intercept, {"units": "1"}),
            "linear_map_r2": (r2, {"units": "1", "long_name": "on the test images"}),
        }
        ds = xr.Dataset(
            {k: (dim, np.asarray(v, dtype=np.float32), a) for k, (v, a) in per_patch.items()}
        )
        ds["linear_map"] = ((dim, "feature"), weights, {"long_name": "from features to noise_free"})
        return ds


def _ceiling_attrs(repetitions: int) -> dict[str, Any]:
    return {
        "units": "1",
        "long_name": "true noise ceiling, fraction of variance over the test images",
        "n_repetitions": repetitions,
        "method": "truth",
    }


def _signal_attrs(modality_attrs: dict[str, str]) -> dict[str, str]:
    return {**modality_attrs, "source": "synthetic", "long_name": "response without noise"}


def fmri() -> xr.DataTree:
    """Return sim-fmri: a group for each subject, with voxels of its own, and the truth."""
    shown = _shown(99, 99)
    energy = _energy(shown)
    labels, repetitions = _image_labels(shown), cortex.FMRI_REPETITIONS
    attrs = dataset_attrs("Simulated fMRI responses, each subject with its own voxels", "fmri")
    attrs["subject_ids"] = list(cortex.ANATOMIES)
    subjects = {}
    groups = {"/": xr.Dataset(attrs={**attrs, "nedx_kind": "ragged"})}
    for name, anatomy in cortex.ANATOMIES.items():
        voxels = native_voxels(anatomy)
        subject = subjects[name] = _Subject(voxels.patches, name, 3, energy, shown)
        coords = {**labels, **_voxel_coords(voxels), **_roi_coords()}
        coords["repetition"] = ("repetition", np.arange(repetitions, dtype=np.int16))
        coords["roi_mask"] = (("roi", "voxel"), voxels.patches.roi_mask())
        response = subject.trials(repetitions)
        groups[f"/{name}"] = xr.Dataset(
            {"response": (("image", "repetition", "voxel"), response, {**_ZSCORED, **_SOURCE})},
            coords=coords,
            attrs={**attrs, "subject": name},
        )
    groups["/truth"] = xr.Dataset({"features": _features(shown)}, labels, _truth_attrs(attrs))
    into, out_of = cortex.shared_space([s.signal for s in subjects.values()], _train(shown))
    for i, (name, subject) in enumerate(subjects.items()):
        ds = subject.truth("voxel", repetitions)
        ds["noise_free"] = (("image", "voxel"), subject.signal, _signal_attrs(_ZSCORED))
        ds["pair_into"] = (("voxel", "latent"), into[i], _INTO)
        ds["pair_out_of"] = (("latent", "voxel"), out_of[i], _OUT_OF)
        ds = ds.assign_coords({**labels, "voxel": groups[f"/{name}"]["voxel"]})
        groups[f"/truth/{name}"] = ds.assign_attrs(_truth_attrs(attrs))
    return _tree(groups)


_SOURCE = {"source": "synthetic", "long_name": "simulated response"}
_INTO = {"long_name": "from this subject's noise-free response to the space that subjects share"}
_OUT_OF = {"long_name": "from the space that subjects share to this subject's noise-free response"}


def _truth_attrs(attrs: dict[str, Any]) -> dict[str, Any]:
    return {
        **attrs,
        "title": f"Truth behind: {attrs['title']}",
        "comment": "The map from subject a to b is pair_into of a, times pair_out_of of b.",
    }


def _voxel_coords(voxels: Any) -> dict[str, Any]:
    space = {
        "space": "sim",
        "volume_shape": list(voxels.shape),
        "affine": voxels.affine.ravel().tolist(),
        "comment": "hemispheres are smooth balls, no anatomy",
    }
    count = len(voxels.index)
    coords: dict[str, Any] = {
        "voxel": ("voxel", np.arange(count, dtype=np.int32), {"nedx_role": "neuroid", **space}),
        "hemisphere": ("voxel", voxels.patches.hemisphere),
    }
    for axis, name in enumerate("ijk"):
        coords[name] = ("voxel", voxels.index[:, axis])
    for axis, name in enumerate("xyz"):
        coords[name] = ("voxel", voxels.position[:, axis], {"units": "mm"})
    return coords


def fmri_fsaverage5() -> xr.DataTree:
    """Return sim-fmri-fsaverage5: all subjects on 20,484 vertices, trials averaged."""
    shown = _shown(2, 1)
    energy, train = _energy(shown), _train(shown)
    repetitions = FSAVERAGE5_REPETITIONS
    attrs = dataset_attrs("Simulated fMRI responses on a grid of the size of fsaverage5", "fmri")
    attrs["subject_ids"] = list(cortex.ANATOMIES)
    subjects = [
        _Subject(surface(anatomy), name, 7, energy, shown)
        for name, anatomy in cortex.ANATOMIES.items()
    ]
    response = np.empty((len(subjects), shown.sizes["image"], 2 * N_VERTICES), dtype=np.float16)
    for row, subject in zip(response, subjects, strict=True):
        for start in range(0, len(row), 100):
            row[start : start + 100] = _mean_trials(subject, start, repetitions)
    shared = _vertex_coords() | _image_labels(shown) | {"subject": _subject_coord(cortex.ANATOMIES)}
    ceilings = np.stack([s.ceiling(repetitions) for s in subjects])
    masks = np.stack([s.patches.roi_mask() for s in subjects])
    mean_attrs = {**_ZSCORED, **_SOURCE, "n_repetitions": repetitions, "cell_methods": "mean"}
    ds = xr.Dataset(
        {"response": (("subject", "image", "vertex"), response, mean_attrs)},
        coords={
            **shared,
            **_roi_coords(),
            "roi_mask": (("subject", "roi", "vertex"), masks),
            "noise_ceiling": (("subject", "vertex"), ceilings, _ceiling_attrs(repetitions)),
        },
        attrs=attrs,
    )
    truth = xr.concat([s.truth("vertex", repetitions) for s in subjects], "subject")
    signals = np.stack([s.signal for s in subjects]).astype(np.float16)
    into, out_of = cortex.shared_space([s.signal for s in subjects], train)
    truth["noise_free"] = (("subject", "image", "vertex"), signals, _signal_attrs(_ZSCORED))
    truth["pair_into"] = (("subject", "vertex", "latent"), np.stack(into), _INTO)
    truth["pair_out_of"] = (("subject", "latent", "vertex"), np.stack(out_of), _OUT_OF)
    truth["features"] = _features(shown)
    truth = truth.assign_coords(shared).assign_attrs(_truth_attrs(attrs))
    return _tree({"/": ds, "/truth": truth})


def _mean_trials(subject: _Subject, start: int, repetitions: int) -> np.ndarray:
    """Return the mean of the trials of 100 images: its noise is smaller by the root of their n."""
    signal = subject.signal[start : start + 100]
    noise = subject.rng.standard_normal(signal.shape, dtype=np.float32)
    return signal + noise * (subject.noise_sd / np.float32(np.sqrt(repetitions)))


def _subject_coord(names: Any) -> tuple[str, np.ndarray, dict[str, str]]:
    return "subject", np.array(list(names), dtype=object), {"nedx_role": "subject"}


def _vertex_coords() -> dict[str, Any]:
    grid = {
        "nedx_role": "neuroid",
        "space": "fsaverage",
        "density": "10k",
        "n_vertices_lh": N_VERTICES,
        "comment": (
            "as many vertices as fsaverage5, at x, y, z on the sphere; they are numbered as an "
            "icosahedron divided by nedx, not as FreeSurfer numbers them"
        ),
    }
    index = np.arange(N_VERTICES, dtype=np.int32)
    sphere = np.tile(SPHERE_MM * icosphere(), (2, 1)).astype(np.float32)
    sides = np.repeat(np.array(["L", "R"], dtype=object), N_VERTICES)
    coords: dict[str, Any] = {
        "vertex": ("vertex", np.arange(2 * N_VERTICES, dtype=np.int32), grid),
        "hemisphere": ("vertex", sides),
        "vertex_index": ("vertex", np.tile(index, 2)),
    }
    for axis, name in enumerate("xyz"):
        coords[name] = ("vertex", sphere[:, axis], {"units": "mm", "long_name": "on the sphere"})
    return coords


def eeg() -> xr.DataTree:
    """Return sim-eeg: single trials of all subjects at 63 channels."""
    shown = _shown(3, 1)
    features, test = shown["features"].values, ~_train(shown)
    names, repetitions = evoked.SUBJECTS, evoked.EEG_REPETITIONS
    shape = (
        len(names),
        shown.sizes["image"],
        repetitions,
        len(montage.CHANNELS),
        evoked.TIMES.size,
    )
    response = np.empty(shape, dtype=np.float16)
    signals, sds, ceilings = [], [], []
    for row, name in zip(response, names, strict=True):
        signal, sd = evoked.noise_free(features, name), evoked.noise_sd(name)
        rng = np.random.default_rng(cortex.subject_seed(name, 8))
        for start in range(0, len(row), 50):
            part = slice(start, start + 50)
            row[part] = evoked.add_noise(signal[part], sd, repetitions, rng)
        signals.append(signal.astype(np.float16))
        sds.append(sd)
        ceilings.append(cortex.ceiling(signal[test], sd[:, None], repetitions))
    shared = eeg_coords() | _image_labels(shown)
    attrs = {**dataset_attrs("Simulated EEG responses", "eeg"), "subject_ids": list(names)}
    volts = {"units": "uV"}
    coords = {**shared, "repetition": ("repetition", np.arange(repetitions, dtype=np.int16))}
    dims = ("subject", "image", "repetition", "channel", "time")
    ds = xr.Dataset({"response": (dims, response, {**volts, **_SOURCE})}, coords, attrs)
    evoking = ("subject", "channel", "time")
    maps, intercepts = zip(*(evoked.linear_map(name) for name in names), strict=True)
    into, out_of = evoked.pair_maps(names)
    truth = xr.Dataset(
        {
            "noise_free": (
                ("subject", "image", "channel", "time"),
                np.stack(signals),
                _signal_attrs(volts),
            ),
            "noise_sd": (("subject", "channel"), np.stack(sds), volts),
            "noise_ceiling": (evoking, np.stack(ceilings), _ceiling_attrs(repetitions)),
            "linear_map": ((*evoking, "feature"), np.stack(maps), volts),
            "linear_map_intercept": (evoking, np.stack(intercepts), volts),
            "pair_into": (("subject", "channel", "latent"), np.stack(into), _INTO),
            "pair_out_of": (("subject", "latent", "channel"), np.stack(out_of), _OUT_OF),
            "features": _features(shown),
        },
        shared,
        _truth_attrs(attrs),
    )
    return _tree({"/": ds, "/truth": truth})


def eeg_coords() -> dict[str, Any]:
    """Return the subjects, channels and times of the simulated EEG with their labels."""
    place = {"units": "m", "long_name": "head frame, RAS"}
    described = {
        "nedx_role": "neuroid",
        "montage": "10-10 on a sphere of 0.095 m (BESA angles)",
        "reference": "average",
    }
    coords: dict[str, Any] = {
        "subject": _subject_coord(evoked.SUBJECTS),
        "channel": ("channel", np.array(montage.CHANNELS, dtype=object), described),
        "channel_type": ("channel", np.array(["eeg"] * len(montage.CHANNELS), dtype=object)),
        "region": ("channel", montage.regions()),
        "hemisphere": ("channel", montage.hemispheres()),
        "time": (
            "time",
            evoked.TIMES,
            {
                "units": "s",
                "long_name": "time from stimulus onset",
                "sampling_frequency": evoked.SAMPLING_FREQUENCY,
            },
        ),
    }
    for axis, name in enumerate("xyz"):
        coords[name] = ("channel", montage.positions()[:, axis], place)
    return coords
