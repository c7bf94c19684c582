"""BData files, MATLAB arrays, feature trees, decoders and converters as others write them.

Written with h5py and scipy alone, by the published layout; values have known origins.
"""

from __future__ import annotations

import h5py
import numpy as np
from scipy.io import savemat

TEXT = h5py.string_dtype()
SPARSE = "__bdpy_sparse_arrray"
VOXELS, TRIALS, IMAGES = 12, 15, 5


def bdata_parts(voxels=VOXELS, trials=TRIALS, seed=0):
    """Return the matrix, keys, descriptions, values and value maps of one file.

    Columns: Run, image_index, stimulus_name, then voxels, then two of MotionParameter and a
    Label whose two columns have keys of their own.
    """
    rng = np.random.default_rng(seed)
    labels = np.column_stack(
        [
            1 + np.arange(trials) // 5,
            1 + np.arange(trials) % IMAGES,
            np.arange(trials) % IMAGES,
        ]
    ).astype(float)
    labels[0, 1] = 2
    labels[0, 2] = 1
    response = rng.standard_normal((trials, voxels))
    extra = rng.standard_normal((trials, 4))
    matrix = np.hstack([labels, response, extra])
    columns = matrix.shape[1]
    block = slice(3, 3 + voxels)
    keys, descriptions, values = [], [], []

    def add(key, description, where, row):
        keys.append(key)
        descriptions.append(description)
        whole = np.full(columns, np.nan)
        whole[where] = row
        values.append(whole)

    add("Run", "1 = Run", 0, 1)
    add("image_index", "1 = image_index", 1, 1)
    add("stimulus_name", "1 = stimulus_name", 2, 1)
    add("VoxelData", "1 = VoxelData", block, 1)
    add("MotionParameter", "1 = MotionParameter", [-4, -3], 1)
    add("Label", "1 = Label", [-2, -1], 1)
    add("Label_face", "1 = Label_face", -2, 1)
    add("Label_house", "1 = Label_house", -1, 1)
    number = np.arange(voxels)
    flags = {
        "ROI_VC": number >= 0,
        "ROI_V1": number < 4,
        "ROI_V2": (number >= 3) & (number < 8),
        "ROI_HVC": number >= 8,
        "ROI_LH_VC": number % 2 == 0,
        "ROI_RH_VC": number % 2 == 1,
        "hcp180_V1": number < 3,
        "ROI_none": number < 0,
    }
    for key, flag in flags.items():
        add(key, f"1 = {key}", block, flag.astype(float))
    for axis, (row, step) in zip("xyz", [(-1.5, 3), (2, 1), (0.25, 2)], strict=True):
        add(f"voxel_{axis}", f"{axis} of a voxel", block, row + step * number)
    for axis in "ijk":
        add(f"voxel_{axis}", f"index {axis}", block, number % 7)
    add("nc_singletrial", "a measure", block, number / 7)
    names = {float(n): f"n0144{n}_{n}" for n in range(IMAGES)}
    return matrix, keys, descriptions, np.array(values), {"stimulus_name": names}, flags


def write_bdata(path, parts=None, *, legacy=False, callstack=True):
    """Write HDF5 as bdpy does; `legacy` has the old names and strings of fixed width."""
    matrix, keys, descriptions, values, vmaps, _ = parts or bdata_parts()
    with h5py.File(path, "w") as file:
        file["dataSet" if legacy else "dataset"] = matrix
        group = file.create_group("metaData" if legacy else "metadata")
        for name, texts in (("key", keys), ("description", descriptions)):
            if legacy:
                group[name] = np.array([text.encode() for text in texts])
            else:
                group.create_dataset(name, data=[text.encode() for text in texts], dtype=TEXT)
        group["value"] = values
        if legacy:
            return path
        for key, names in vmaps.items():
            for number, text in names.items():
                file[f"vmap/{key}/{number}"] = text.encode()
        file["header/ctime"] = "Sat Nov 21 17:00:00 2026"
        file["header/ctime_epoch"] = 1.0
        if callstack:
            file["header/callstack"] = ["/home/someone/secret_script.py"]
            file["header/callstack_code"] = ["SECRET = 'source text of the program'" * 100]
    return path


def write_bdata_mat(path, parts=None):
    """Write MATLAB 5, with keys in cells."""
    matrix, keys, descriptions, values, _, _ = parts or bdata_parts()
    cells = {
        "key": np.array(keys, dtype=object)[None],
        "description": np.array(descriptions, dtype=object)[None],
        "value": values,
    }
    savemat(path, {"dataSet": matrix, "metaData": cells})
    return path


def write_dense(path, name, array, *, python=True):
    """Write a v7.3 array: transposed, behind 512 bytes of the user's."""
    array = np.asarray(array)
    with h5py.File(path, "w", userblock_size=512) as file:
        file[name] = array.T
        file[name].attrs["MATLAB_class"] = np.bytes_(
            "single" if array.dtype == np.float32 else "double"
        )
        if python:
            file[name].attrs["Python.Shape"] = np.array(array.shape, np.uint64)
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM")


def write_sparse(path, name, array, *, writer="cells"):
    """Write a sparse array as one of its writers: cells of references, or plain arrays."""
    index = np.nonzero(array)
    value = array[index]
    with h5py.File(path, "w", userblock_size=512) as file:
        group = file.create_group(name)
        group[SPARSE] = np.array([[1]], np.uint8)
        group["background"] = np.array([[0.0]])
        if writer == "cells":
            group["value"] = value[None].T
            for key, cells in (("index", index), ("shape", array.shape)):
                references = np.empty((array.ndim, 1), h5py.ref_dtype)
                for axis, cell in enumerate(cells):
                    held = file.create_dataset(
                        f"#refs#/{name}_{key}_{axis}", data=np.atleast_2d(cell).T.astype(np.int64)
                    )
                    references[axis, 0] = held.ref
                group.create_dataset(key, data=references, dtype=h5py.ref_dtype)
        else:
            group["index"] = np.array(index)
            group["value"] = value[None]
            group["shape"] = np.array(array.shape)[None]
