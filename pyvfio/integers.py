# SPDX-License-Identifier: BSD-3-Clause
"""Numbers of a caller as an array."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def integers(numbers: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Numbers from 0 to 2^64-1, the caller's own array if it is one; raises :class:`ValueError`."""
    array = np.asarray(numbers)
    if array.dtype == np.uint64:
        return array
    if array.dtype.kind in "fO" and not isinstance(numbers, np.ndarray):
        # numpy makes floats of 1 and 2^63 together.
        found = np.asarray(numbers, object)
        if all(isinstance(number, int) for number in found.flat):
            return _large(found)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"integers are wanted, not {array.dtype}")
    if array.size and int(array.min()) < 0:
        raise ValueError(f"{int(array.min())} is negative")
    return array.astype(np.uint64)


def _large(array: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    for number in array.flat:
        if not 0 <= number < 1 << 64:
            raise ValueError(f"{number} is not from 0 to 2^64-1")
    return array.astype(np.uint64)
