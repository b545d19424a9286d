# SPDX-License-Identifier: BSD-3-Clause
"""Plain text for people: columns, and numbers as hardware people write them."""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A titled table, columns as wide as their longest cell; a line of dashes below the heads."""
    if not rows:
        return f"{title}: none\n"
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    lines = [heads, ["-" * width for width in widths], *rows]
    text = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join([title, *(f"  {line}" for line in text)]) + "\n"


def size(count: int) -> str:
    """Bytes in the largest unit that divides them."""
    unit = 0
    while count and count % 1024 == 0 and unit < len(_UNITS) - 1:
        count //= 1024
        unit += 1
    return f"{count} {_UNITS[unit]}"


def rounded(count: int) -> str:
    """Bytes in the largest unit of which there is one, with a digit behind the point."""
    unit, value = 0, float(count)
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{count} bytes" if not unit else f"{value:.1f} {_UNITS[unit]}"
