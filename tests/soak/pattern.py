# SPDX-License-Identifier: BSD-3-Clause
"""Blocks of which every word says where it belongs: its stream, its number, its place.

So a block that was lost, sent twice, put elsewhere, or mixed of two, is seen for what it is.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyvfio.uapi.layout import Buffer

BLOCK = 64 << 10
"""Bytes of a block."""

Words: TypeAlias = npt.NDArray[np.uint64]

_PLACES = np.arange(BLOCK // 8, dtype=np.uint64)
_PLACE_BITS, _STREAM_SHIFT = 13, 56


class WrongData(Exception):
    """A block is not what it must be."""


def block(stream: int, number: int) -> Words:
    """Block ``number`` of a stream."""
    return np.uint64(stream << _STREAM_SHIFT | number << _PLACE_BITS) + _PLACES


def check(found: Buffer, stream: int, number: int) -> None:
    """Compare every word of a block; raises :class:`WrongData`, which says what was found."""
    words = np.frombuffer(found, np.uint64)
    expected = block(stream, number)
    if words.shape != expected.shape:
        raise WrongData(f"{words.nbytes} bytes for block {number} of stream {stream}")
    wrong = np.flatnonzero(words != expected)
    if len(wrong):
        word = int(words[wrong[0]])
        raise WrongData(
            f"block {number} of stream {stream} differs in {len(wrong)} words, from {wrong[0]} to"
            f" {wrong[-1]}; the first is word {word & (1 << _PLACE_BITS) - 1} of block"
            f" {(word & (1 << _STREAM_SHIFT) - 1) >> _PLACE_BITS}"
            f" of stream {word >> _STREAM_SHIFT}"
        )
