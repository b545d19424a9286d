# SPDX-License-Identifier: BSD-3-Clause
"""The codec's targets with inputs from seeds, for where there is no coverage to guide them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.fuzz.codec import TARGETS
from tests.fuzz.inputs import MAKERS
from tests.fuzz.messages import damaged


def made(target: str, corpus: list[bytes], seed: int) -> bytes:
    """One input: new, or one of the corpus with some damage."""
    rng = random.Random(seed)
    if corpus and rng.random() < 0.3:
        return damaged(rng, rng.choice(corpus))
    return MAKERS[target](rng)


def failing(target: str, inputs: Iterator[bytes]) -> Iterator[tuple[bytes, Exception]]:
    """Those of ``inputs`` that the target does not stand."""
    for data in inputs:
        try:
            TARGETS[target](data)
        except Exception as error:
            yield data, error
