# SPDX-License-Identifier: BSD-3-Clause
"""Each access of mapped memory touches it once, with the width that was asked for, in order.

The accesses are in watched.py, how touches are seen in watcher.c.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.unit.watched import BLOCK, FILLING, PAGE, VALUE, WIDTHS, places

pytestmark = pytest.mark.watcher

Watched = dict[str, dict[str, Any]]
HALF = 2 * PAGE - 4

EACH_WIDTH = pytest.mark.parametrize("width", WIDTHS)
EACH_PLACE = pytest.mark.parametrize("place", ["first", "last"])


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """What became of each access, by its name."""
    library = tmp_path_factory.mktemp("watcher") / "watcher.so"
    source = Path(__file__).with_name("watcher.c")
    compile_it = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-o"]
    subprocess.run([*compile_it, str(library), str(source)], check=True)
    command = [sys.executable, "-m", "tests.unit.watched", str(library)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60)
    found: Watched = json.loads(done.stdout)
    return found


def contents(at: int, size: int) -> int:
    """What was in the memory."""
    return int.from_bytes(FILLING[at : at + size], "little")


def written(at: int, data: bytes) -> dict[str, int]:
    """The bytes that a write changes."""
    old = FILLING[at : at + len(data)]
    pairs = enumerate(zip(data, old, strict=True), at)
    return {str(place): new for place, (new, before) in pairs if new != before}


def value(width: int) -> bytes:
    """What is written with a width."""
    return VALUE.to_bytes(8, "little")[:width]


@EACH_PLACE
@EACH_WIDTH
@pytest.mark.parametrize("kind", ["raw read", "read", "step read", "poll"])
def test_a_read_touches_its_bytes_once(watched: Watched, kind: str, width: int, place: str) -> None:
    at = places(width)[place]
    found, result = watched[f"{kind} {width} {place}"], contents(at, width)
    assert found["touches"] == [["read", at, width]]
    assert found["result"] == ([result] if kind == "step read" else result)
    assert found["changed"] == {}


@EACH_PLACE
@EACH_WIDTH
@pytest.mark.parametrize("kind", ["raw write", "write", "step write"])
def test_a_write_touches_its_bytes_once(
    watched: Watched, kind: str, width: int, place: str
) -> None:
    at = places(width)[place]
    found = watched[f"{kind} {width} {place}"]
    assert found["touches"] == [["write", at, width]]
    assert found["changed"] == written(at, value(width))


@EACH_PLACE
@EACH_WIDTH
def test_a_modification_is_a_read_and_a_write(watched: Watched, width: int, place: str) -> None:
    at = places(width)[place]
    found = watched[f"step modify {width} {place}"]
    assert found["touches"] == [["read", at, width], ["write", at, width]]
    assert found["result"] == [contents(at, width)]
    assert found["changed"] == written(at, value(width))


# Halves


@pytest.mark.parametrize(("order", "places"), [("lo hi", (0, 4)), ("hi lo", (4, 0))])
@pytest.mark.parametrize("kind", ["", "step "])
def test_halves_are_touched_in_their_order(
    watched: Watched, kind: str, order: str, places: tuple[int, int]
) -> None:
    reading, writing = watched[f"{kind}read {order}"], watched[f"{kind}write {order}"]
    result = contents(HALF, 8)
    assert reading["touches"] == [["read", HALF + at, 4] for at in places]
    assert reading["result"] == ([result] if kind else result)
    assert writing["touches"] == [["write", HALF + at, 4] for at in places]
    assert writing["changed"] == written(HALF, value(8))


# Blocks


@EACH_WIDTH
@pytest.mark.parametrize("kind", ["block", "bytes"])
def test_a_block_is_read_in_steps_of_its_width(watched: Watched, kind: str, width: int) -> None:
    at = 2 * PAGE - BLOCK
    found = watched[f"{kind} read {width}"]
    assert found["touches"] == [["read", at + n, width] for n in range(0, BLOCK, width)]
    assert found["result"] == FILLING[at : at + BLOCK].hex()


@EACH_WIDTH
def test_a_block_is_written_in_steps_of_its_width(watched: Watched, width: int) -> None:
    at = 2 * PAGE - BLOCK
    found = watched[f"block write {width}"]
    assert found["touches"] == [["write", at + n, width] for n in range(0, BLOCK, width)]
    assert found["changed"] == written(at, bytes(BLOCK))


@pytest.mark.parametrize("verb", ["read", "write"])
def test_a_block_of_no_width_is_touched_with_64_bits_where_it_is_aligned(
    watched: Watched, verb: str
) -> None:
    ahead, behind = range(3, 8), range(16, 23)
    found = watched[f"any width {verb}"]
    assert found["touches"] == [
        *([verb, PAGE + at, 1] for at in ahead),
        [verb, PAGE + 8, 8],
        *([verb, PAGE + at, 1] for at in behind),
    ]


# Programs


def test_steps_are_carried_out_once_and_in_their_order(watched: Watched) -> None:
    found = watched["many steps"]
    assert found["touches"] == [
        ["write", PAGE, 4],
        ["read", PAGE + 8, 2],
        ["read", PAGE + 4, 1],
        ["write", PAGE + 4, 1],
        ["write", PAGE, 4],
    ]
    assert found["result"] == [0, 0, contents(PAGE + 8, 2), 0, contents(PAGE + 4, 1), 0, 0]


# The watcher sees what there is


def test_two_looks_are_seen_as_two(watched: Watched) -> None:
    assert watched["two looks"]["touches"] == [["read", PAGE, 4]] * 2


def test_a_read_that_leaves_its_page_is_seen_in_both(watched: Watched) -> None:
    assert [touch[1] for touch in watched["two pages"]["touches"]] == [2 * PAGE - 2, 2 * PAGE]
