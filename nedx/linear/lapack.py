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

_guard = threading.Lock()
# The limits that hold now: of the first who asked, for as long as anybody needs it.
_limits: list[Any] = []
_users = 0


class PositiveSystem:
    """Memory for positive definite systems of one size, which are solved one after the other.

    Parameters
    ----------
    count : int
        How many unknowns, k.
    dtype : numpy dtype
        float32 or float64.

    Attributes
    ----------
    upper : ndarray (k, k)
        By rows, its upper triangle is to be filled before each solution, which overwrites it.
    """

    def __init__(self, count: int, dtype: Any):
        # By columns, as these libraries read it, the upper triangle is the lower one.
        self.upper = np.zeros((count, count), dtype)
        single = self.upper.dtype == np.float32
        self._kind, self._place = "s" if single else "d", self.upper.ctypes.data
        self._exact = np.zeros((count, count)) if single else None
        self._count, self._one, self._info = ctypes.c_int(count), ctypes.c_int(1), ctypes.c_int(0)

    def solve(self, right: np.ndarray) -> None:
        """Solve with the right side ``(k,)`` in place, by Cholesky's factor.

        In float32, the solution is corrected once by its residual in float64 (iterative
        refinement; Higham 2002, Accuracy and Stability of Numerical Algorithms, chapter 12):
        libraries differ by a few times in how they round, and this takes a tenth of the time.

        Raises
        ------
        numpy.linalg.LinAlgError
            If the system is not positive definite.
        """
        if self._exact is None:
            self._factorise()
            self._substitute(right)
            return
        np.copyto(self._exact, self.upper)
        residual = right.astype(np.float64)
        self._factorise()
        self._substitute(right)
        self._subtract_product(right.astype(np.float64), residual)
        correction = residual.astype(np.float32)
        self._substitute(correction)
        right += correction

    def _factorise(self) -> None:
        """LAPACK's ``potrf``: uplo, n, a, lda, info."""
        size, info = ctypes.byref(self._count), ctypes.byref(self._info)
        _function(f"{self._kind}potrf", "cpppp")(b"L", size, self._place, size, info)
        if self._info.value:
            raise np.linalg.LinAlgError("the matrix is not positive definite")

    def _substitute(self, right: np.ndarray) -> None:
        """BLAS's ``trsv``, twice: uplo, trans, diag, n, a, lda, x, 1."""
        size, one = ctypes.byref(self._count), ctypes.byref(self._one)
        call = _function(f"{self._kind}trsv", "cccppppp")
        for transposed in (b"N", b"T"):
            call(b"L", transposed, b"N", size, self._place, size, right.ctypes.data, one)

    def _subtract_product(self, x: np.ndarray, y: np.ndarray) -> None:
        """Subtract the product of the system with ``x`` from ``y``.

        BLAS's ``symv``: uplo, n, alpha, a, lda, x, 1, beta, y, 1.
        """
        assert self._exact is not None
        minus, plus = ctypes.byref(ctypes.c_double(-1)), ctypes.byref(ctypes.c_double(1))
        size, one = ctypes.byref(self._count), ctypes.byref(self._one)
        matrix, vector, out = (array.ctypes.data for array in (self._exact, x, y))
        call = _function("dsymv", "cppppppppp")
        call(b"L", size, minus, matrix, size, vector, one, plus, out, one)


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
def _function(name: str, signature: str) -> Callable[..., None]:
    """Return a function of scipy's own library, which it shows to compiled code.

    The signature has a c for each character, passed by reference as all is, and a p for the rest.
    """
    from scipy.linalg import cython_blas, cython_lapack

    shown = {**cython_blas.__pyx_capi__, **cython_lapack.__pyx_capi__}
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    place = api.PyCapsule_GetPointer(shown[name], api.PyCapsule_GetName(shown[name]))
    kinds = {"c": ctypes.c_char_p, "p": ctypes.c_void_p}
    return ctypes.CFUNCTYPE(None, *map(kinds.__getitem__, signature))(place)
