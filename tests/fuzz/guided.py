# SPDX-License-Identifier: BSD-3-Clause
"""Run one of the codec's targets with inputs that coverage guides: ``python -m tests.fuzz.guided
TARGET [libFuzzer's options and folders]``.

Needs atheris, which has wheels for some versions of CPython only.
"""

from __future__ import annotations

import random
import sys

import atheris

with atheris.instrument_imports(include=["pyvfio.wire", "pyvfio.uapi", "pyvfio.vectors"]):
    from tests.fuzz.codec import TARGETS
    from tests.fuzz.inputs import MAKERS


def main() -> None:
    """Fuzz until libFuzzer's options say that it is enough."""
    name, options = sys.argv[1], sys.argv[2:]
    make = MAKERS[name]

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        """Half of the time libFuzzer's own mutation, else a message more, or all of it anew."""
        rng = random.Random(seed)
        kind = rng.randrange(4)
        if kind == 0:
            return make(rng)[:max_size]
        if kind == 1:
            return (data + make(rng)[2:])[:max_size]
        mutated: bytes = atheris.Mutate(data, max_size)
        return mutated

    atheris.Setup([sys.argv[0], *options], TARGETS[name], custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
