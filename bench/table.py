# SPDX-License-Identifier: BSD-3-Clause
"""Results as tables: for a terminal, and for the documentation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from bench.result import Report, Result

HEADS = ("what", "beside", "target", "reached", "quartiles", "", "takes", "beside takes")
BEGIN, END = "<!-- last run -->\n", "<!-- end of last run -->\n"
"""Where the tables are in the page."""
_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
_VERDICTS = {True: "yes", False: "NO", None: ""}


def cells(result: Result) -> tuple[str, ...]:
    """The cells of a result."""
    off = f", {result.off}=0" if result.off else ""
    ratio = result.ratio
    return (
        f"{result.what}{off}",
        result.baseline_is,
        result.target,
        f"{ratio.median:.2f}",
        f"{ratio.low:.2f} - {ratio.high:.2f}",
        _VERDICTS[result.reached],
        duration(result.subject.median),
        duration(result.baseline.median),
    )


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    name, unit = next((u for u in _UNITS if abs(seconds) >= u[1]), _UNITS[-1])
    return f"{seconds / unit:.3g} {name}"


def for_terminal(results: Sequence[Result]) -> str:
    """Columns, below a line for each group."""
    lines = [(result.group, cells(result)) for result in results]
    widths = widths_of([HEADS, *(row for _, row in lines)])
    text = [padded(HEADS, widths)]
    for group, members in itertools.groupby(lines, key=lambda line: line[0]):
        text += ["", group, *(padded(row, widths) for _, row in members)]
    return "\n".join(text)


def widths_of(rows: Sequence[Sequence[str]]) -> list[int]:
    """How wide columns are."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def padded(row: Iterable[str], widths: Sequence[int]) -> str:
    """A line of columns."""
    columns = zip(row, widths, strict=True)
    return "  ".join(cell.ljust(width) for cell, width in columns).rstrip()


def for_documentation(report: Report) -> str:
    """The tables in Markdown, below what was measured where."""
    about = report.about
    text = [
        f"Commit {about['commit']}, {about['date']}; {about['machine']}; Python {about['python']};"
        f" {about['placement']}."
    ]
    for group, results in itertools.groupby(report.rows, key=lambda result: result.group):
        text += ["", f"### {group[0].upper()}{group[1:]}", "", *_markdown(list(results))]
    return "\n".join(text)


def with_table(text: str, table: str) -> str:
    """A page with another table.

    :raises SystemExit: the page does not say where it is.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"the page has no {BEGIN.strip()} and {END.strip()}")
    return f"{before}{begin}{table}\n{end}{after}"


def _markdown(results: Sequence[Result]) -> list[str]:
    rows = [HEADS, ("---",) * len(HEADS), *map(cells, results)]
    return [f"| {' | '.join(row)} |" for row in rows]
