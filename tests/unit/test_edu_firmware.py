# SPDX-License-Identifier: BSD-3-Clause
"""The firmware's bytes are those of its source, and its report is taken apart as it is written."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pyvfio.emulator import edu_firmware
from pyvfio.emulator.edu_firmware import STEPS, Report, Words
from pyvfio.emulator.machine import Machine
from tests.support import ROOT

FOLDER = ROOT / "pyvfio/emulator/firmware"
SOURCE = (FOLDER / "edu.s").read_text()
LAYOUT = (FOLDER / "layout.inc").read_text()


def constant(name: str) -> int:
    """The value of a ``.equ`` of the source."""
    (text,) = re.findall(rf"\.equ\s+{name}, (.+?)(?:\s+#.*)?\n", LAYOUT)
    parts = [int(part, 0) if part[0].isdigit() else constant(part) for part in text.split(" + ")]
    return sum(parts)


def written(**values: int) -> bytearray:
    """A report with some of its words."""
    data = bytearray(edu_firmware.REPORT_SIZE)
    struct.pack_into("<8sI", data, 0, edu_firmware.MAGIC, edu_firmware.VERSION)
    for name, value in values.items():
        struct.pack_into("<I", data, constant(f"R_{name.upper()}") - edu_firmware.REPORT, value)
    return data


@pytest.mark.assembler
def test_the_bytes_are_those_of_the_source(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"#     (as .+)\n#     (ld .+)\n", SOURCE)
    folder = tmp_path / "firmware"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.bin"))
    for command in recipe:
        subprocess.run(command.split(), cwd=folder, check=True)
    assert (folder / "edu.bin").read_bytes() == edu_firmware.image()


def test_the_firmware_is_among_the_examples() -> None:
    assert (ROOT / "examples/firmware/edu.s").read_text() == SOURCE


@pytest.mark.parametrize("name", Words._fields)
def test_each_word_is_where_the_source_has_it(name: str) -> None:
    assert getattr(Report.parse(bytes(written(**{name: 0x0102_0304}))).words, name) == 0x0102_0304


def test_places_and_sizes_are_those_of_the_source() -> None:
    assert constant("REPORT") == edu_firmware.REPORT
    assert constant("REPORT_BYTES") == edu_firmware.REPORT_SIZE
    steps = re.findall(r"\.equ\s+STEP_\w+, (\d+)\n", LAYOUT)
    assert [int(number) for number in steps] == list(range(len(STEPS)))


def test_tables_are_read_to_their_ends() -> None:
    data = written(functions=16)
    struct.pack_into("<4I", data, 0x1E0, 0x18, 0x11E8_1234, 0x00FF_0010, 0x11E8_1234)
    struct.pack_into("<4I", data, 0x250, 0xFFFF_F000, 0x1000, 0xC000_0000, 0)
    data[0x400:0x404], data[0x500:0x504] = b"port", b"ecam"
    report = Report.parse(bytes(data))
    assert len(report.functions) == 15
    assert str(report.functions[-1]) == "03.0 1234:11e8"
    assert [str(bar) for bar in report.bars] == ["BAR 5, 0x1000 bytes, at 0xc0000000"]
    assert (report.config[:4], report.window_config[:4]) == (b"port", b"ecam")
    assert (len(report.config), len(report.window_config)) == (256, 256)


def test_a_step_is_right_not_right_or_not_reached() -> None:
    report = Report.parse(bytes(written(begun=0b111, right=0b101)))
    assert [step.ok for step in report.steps[:4]] == [True, False, True, False]
    assert [step.value == "not reached" for step in report.steps[:4]] == [False] * 3 + [True]
    assert not report.ok
    assert Report.parse(bytes(written(begun=0xFFF, right=0xFFF))).ok


def test_functions_that_the_window_shows_otherwise_are_named() -> None:
    data = written(functions=1)
    struct.pack_into("<4I", data, 0x100, 0x18, 0x11E8_1234, 0, 0xFFFF_FFFF)
    assert Report.parse(bytes(data)).agreement == "not so 03.0 1234:11e8"


@pytest.mark.parametrize("start", [bytes(12), b"pyvfioFW\x02\0\0\0"])
def test_memory_without_a_report_is_refused(start: bytes) -> None:
    with pytest.raises(ValueError, match="the firmware left no report"):
        Report.parse(start + bytes(edu_firmware.REPORT_SIZE))


def test_a_machine_without_the_device_is_told_so() -> None:
    with Machine() as machine:
        result, report = edu_firmware.run(machine, 10)
    assert result.reason == "halted"
    assert [step.value for step in report.steps[:2]] == ["1: 00.0 8086:29c0", "1: the same"]
    assert not report.ok
