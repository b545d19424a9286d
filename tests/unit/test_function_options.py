# SPDX-License-Identifier: BSD-3-Clause
"""What can be chosen for a function, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvfio.emulator import FunctionOptions


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("vendor_id", 0xFFFE),
        ("device_id", 0xFFFF),
        ("subsystem_vendor_id", 0xFFFF),
        ("subsystem_id", 0xFFFF),
        ("class_code", 0xFF_FFFF),
        ("msix_relocation", 5),
    ],
)
def test_a_number_has_its_limits(name: str, most: int) -> None:
    for value in (0, most):
        options: dict[str, Any] = {name: value}
        assert getattr(FunctionOptions(**options), name) == value
    for wrong in (-1, most + 1):
        options = {name: wrong}
        with pytest.raises(ValueError, match=r"possible|there is no"):
            FunctionOptions(**options)


@pytest.mark.parametrize("value", ["8086", 1.5, b"x"])
def test_an_id_that_is_no_number_is_told(value: Any) -> None:
    with pytest.raises(ValueError, match="is no number"):
        FunctionOptions(vendor_id=value)


def test_a_file_may_be_given_by_its_name() -> None:
    name: Any = "edu.rom"
    assert FunctionOptions(rom_file=name).rom_file == Path("edu.rom")


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_time_that_is_none_is_told(seconds: float) -> None:
    with pytest.raises(ValueError, match="cannot stay trapped"):
        FunctionOptions(intx_mmap_seconds=seconds)
