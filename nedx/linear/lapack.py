"""LAPACK as scipy has it, without the interpreter's lock: threads solve small systems side by side.

scipy's own functions hold the lock, and torch's take half as long again where its library is not
made for the processor.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

_NAMES = {"float32": "sposv", "float64": "dposv"}
_guard = threading.Lock()
# The limits that hold now: of the first who asked, for as long as anybody needs it.
_limits: list[Any] = []
_users = 0


def solve_positive(upper: np.ndarray, right: np.ndarray) -> None:
    """Solve a positive definite system in place (LAPACK's ``posv``).

    Parameters
    ----------
    upper : ndarray of float32 or float64, (k, k)
        By rows, its upper triangle filled; overwritten.
    right : ndarray of the same, (k,)
        The right side, overwritten by the solution.

    Raises
    ------
    numpy.linalg.LinAlgError
        If it is not positive definite.
    """
    count, one, info = ctypes.c_int(len(upper)), ctypes.c_int(1), ctypes.c_int(0)
    size, failed = ctypes.byref(count), ctypes.byref(info)
    # By columns, as LAPACK reads it, the upper triangle is the lower one.
    _posv(upper.dtype.name)(
        b"L", size, ctypes.byref(one), upper.ctypes.data, size, right.ctypes.data, size, failed
    )
    if info.value:
        raise np.linalg.LinAlgError("the matrix is not positive definite")


@contextmanager
def one_core_each() -> Iterator[None]:
    """Keep products and solutions of numpy and scipy to the thread that calls, while it lasts."""
    global _users
    from threadpoolctl import threadpool_limits

    with _guard:
        if not _users:
            _limits.append(threadpool_limits(1, user_api="blas"))
        _users += 1
    try:
        yield
    finally:
        with _guard:
            _users -= 1
            if not _users:
                _limits.pop().restore_original_limits()


@cache
def _posv(dtype: str) -> Callable[..., None]:
    """Return the function of scipy's own LAPACK, which it shows to compiled code."""
    from scipy.linalg import cython_lapack

    capsule = cython_lapack.__pyx_capi__[_NAMES[dtype]]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    place = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    # uplo, n, nrhs, a, lda, b, ldb, info
    kinds = [ctypes.c_char_p, *[ctypes.c_void_p] * 7]
    return ctypes.CFUNCTYPE(None, *kinds)(place)
