"""How well the other subjects predict one."""

from __future__ import annotations

import xarray as xr

from nedx.errors import SchemaError
from nedx.metrics.correlation import pearson_r
from nedx.metrics.repeats import averaged, response_of
from nedx.schema import role_dim


def leave_one_subject_out(responses: xr.DataArray | xr.Dataset) -> xr.Dataset:
    """Correlate each subject with the mean of the others, and with the mean of all; lazily.

    The mean of the others misses what the mean of endless subjects would hold, so that a model
    can be better (lower bound); the mean of all holds the subject itself, so that no model can
    be better for all subjects (upper bound, biased: 1/sqrt(n) of pure noise in n subjects). Nili
    et al. 2014, PLoS Computational Biology 10:e1003553, on responses instead of RDMs.

    Parameters
    ----------
    responses : DataArray or Dataset
        ``(subject, image[, repetition], ...)`` or ``(subject, trial, ...)``; repeats are averaged
        first. Of a Dataset, ``response``.

    Returns
    -------
    Dataset
        ``lower`` and ``upper (subject, ...)``: float32, Pearson r over images, "1"; average them
        over ``subject``. NaN of constant neuroids, and for all subjects where one holds a NaN.

    Raises
    ------
    SchemaError
        If there are fewer than two subjects on one ``subject`` dim.
    """
    array = response_of(responses)
    subject = role_dim(array, "subject")
    n_subjects = 0 if subject is None else array.sizes[subject]
    if subject is None or n_subjects < 2:
        raise SchemaError(
            f"{array.name or 'the array'} of dims {array.dims}",
            [
                f"{n_subjects or 'no'} subject on a dim 'subject': expected at least 2 with the "
                "same neuroids; open several, for example subject=[1, 2], or average ROIs first: "
                "ds.ned.roi_response()"
            ],
        )
    mean, sample = averaged(array)
    # r does not know scale, so that sums serve as means.
    everyone = mean.sum(subject, skipna=False)
    about = {"units": "1", "metric": "pearson_r", "method": "leave_one_subject_out"}
    long_names = {
        "lower": "correlation of each subject with the mean of the others",
        "upper": "correlation of each subject with the mean of all (biased)",
    }
    bias = f"the subject is part of the mean of all: {n_subjects**-0.5:.2f} of pure noise, not 0"
    found = {}
    for name, other in (("lower", everyone - mean), ("upper", everyone)):
        r = pearson_r(mean, other, sample).astype("f4")
        attrs = {**about, "long_name": long_names[name], "n_subjects": n_subjects}
        found[name] = r.assign_attrs(attrs | ({"bias": bias} if name == "upper" else {}))
    return xr.Dataset(found)
