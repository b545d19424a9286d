# SPDX-License-Identifier: BSD-3-Clause
"""Operands and options of the verbs: what each form means, and what each mistake is told."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio.cli import config, irq, peek
from pyvfio.cli.config import Operand, parse_operand
from pyvfio.cli.peek import REGIONS, Location, Value, parse_location, parse_write
from pyvfio.pci.registers import PLACES, Place
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID, ExtendedCapabilityID

MODERATE = settings(deadline=None, max_examples=200)

COMMAND, CAP_PM = PLACES["COMMAND"], PLACES["CAP_PM"]


def at(offset: int) -> Place:
    """A bare address."""
    return Place(offset=offset)


# config: what each form means

FORMS: dict[str, Operand] = {
    "COMMAND": Operand(COMMAND, 0, 2),
    "command": Operand(COMMAND, 0, 2),
    "COMMAND.l": Operand(COMMAND, 0, 4),
    "VENDOR_ID+1.b": Operand(PLACES["VENDOR_ID"], 1, 1),
    "VENDOR_ID+2": Operand(PLACES["VENDOR_ID"], 2, 2),
    "BASE_ADDRESS_5": Operand(PLACES["BASE_ADDRESS_5"], 0, 4),
    "4.w": Operand(at(4), 0, 2),
    "0x4.w": Operand(at(4), 0, 2),
    "b.B": Operand(at(0xB), 0, 1),
    "10+0x4.L": Operand(at(0x10), 4, 4),
    "ffc.l": Operand(at(0xFFC), 0, 4),
    "CAP_PM+2.w": Operand(CAP_PM, 2, 2),
    "cap_pm+2.W": Operand(CAP_PM, 2, 2),
    "CAP05+2.w": Operand(Place("CAP5", capability=5), 2, 2),
    "cap0x9.b": Operand(Place("CAP9", capability=9), 0, 1),
    "ECAP_AER+4.l": Operand(PLACES["ECAP_AER"], 4, 4),
    "ECAP108.l": Operand(Place("ECAP108", capability=0x108, extended=True), 0, 4),
    "CAP_VNDR+2.b@1": Operand(PLACES["CAP_VNDR"], 2, 1, number=1),
    "CAP9.b@a": Operand(Place("CAP9", capability=9), 0, 1, number=10),
    "COMMAND=7": Operand(COMMAND, 0, 2, values=(Value(7),)),
    "COMMAND=0x7": Operand(COMMAND, 0, 2, values=(Value(7),)),
    "COMMAND=4:4": Operand(COMMAND, 0, 2, values=(Value(4, 4),)),
    "COMMAND=0:FfFf": Operand(COMMAND, 0, 2, values=(Value(0, 0xFFFF),)),
    "3c.b=1,2": Operand(at(0x3C), 0, 1, values=(Value(1), Value(2))),
    "3c.b=1:3,2,0x4:0x7": Operand(at(0x3C), 0, 1, values=(Value(1, 3), Value(2), Value(4, 7))),
    "CAP_VNDR+2.b@1=ff:f": Operand(PLACES["CAP_VNDR"], 2, 1, 1, (Value(0xFF, 0xF),)),
    "BASE_ADDRESS_0=ffffffff": Operand(PLACES["BASE_ADDRESS_0"], 0, 4, 0, (Value(0xFFFF_FFFF),)),
}


@pytest.mark.parametrize(("text", "meant"), FORMS.items(), ids=FORMS)
def test_each_form_means_one_register(text: str, meant: Operand) -> None:
    assert parse_operand(text) == meant


# config: what each mistake is told

MISTAKES: dict[str, tuple[int, str]] = {
    "": (1, "a register"),
    "COMMANDD": (1, "a register"),
    "0x.w": (1, "a register"),
    "+4.w": (1, "a register"),
    "CAP100.w": (1, "a register"),
    "ECAP.l": (1, "a register"),
    "ECAP10000.l": (1, "a register"),
    "COMMAND .w": (1, "a register"),
    "4": (2, "a width (.b, .w, .l)"),
    "40=5": (3, "a width"),
    "CAP_PM+2": (9, "a width"),
    "CAP_VNDR@1": (9, "a width"),
    "COMMAND.": (9, "one of b, w, l"),
    "COMMAND.q": (9, "one of b, w, l"),
    "COMMAND.w+2": (9, "one of b, w, l"),
    "COMMAND+": (9, "an offset in hexadecimal"),
    "COMMAND+zz.w": (9, "an offset in hexadecimal"),
    "COMMAND+-2": (9, "an offset in hexadecimal"),
    "COMMAND+1000": (9, "an offset in hexadecimal, at most fff"),
    "COMMAND+2:3": (9, "an offset in hexadecimal"),
    "COMMAND@1": (8, "'=' or the end (@ counts capabilities)"),
    "CAP_PM.b@": (10, "the number of the capability, from 0"),
    "CAP_PM.b@x": (10, "the number of the capability, from 0"),
    "COMMAND=": (9, "a value in hexadecimal, at most ffff"),
    "COMMAND=-1": (9, "a value"),
    "COMMAND=10000": (9, "a value in hexadecimal, at most ffff"),
    "COMMAND=4 ": (9, "a value"),
    "COMMAND=4:": (11, "a mask in hexadecimal, at most ffff"),
    "COMMAND=4:10000": (11, "a mask"),
    "COMMAND=4:4:4": (11, "a mask"),
    "COMMAND=4,,5": (11, "a value"),
    "COMMAND=4:4,g": (13, "a value"),
    "5.w": (1, "a place at a multiple of the width, 2 bytes"),
    "COMMAND+1": (9, "a place at a multiple of the width, 2 bytes"),
    "DEVICE_ID.l": (1, "a place at a multiple of the width, 4 bytes"),
    "CAP_PM+2.l": (8, "a place at a multiple of the width, 4 bytes"),
    "1000.b": (1, "a place in configuration space, at most fff"),
    "ffffffffffffffffff.b": (1, "a place in configuration space, at most fff"),
    "ffe.l": (1, "a place in configuration space, at most ffc"),
    "COMMAND+ffe": (9, "a place in configuration space, at most ffe,"),
    "ffe.w=1,2": (1, "a place in configuration space, at most ffc"),
}


@pytest.mark.parametrize(("text", "told"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_told_with_its_position_and_what_was_expected(
    text: str, told: tuple[int, str]
) -> None:
    position, expected = told
    with pytest.raises(ValueError, match="expected") as caught:
        parse_operand(text)
    message = str(caught.value)
    assert message.startswith(f"{text!r}: expected {expected}")
    found = repr(text[position - 1 :]) if position <= len(text) else "the end"
    assert message.endswith(f" at position {position}, found {found}")


# peek and poke

LOCATIONS: dict[str, Location] = {
    "bar0+0x10": Location("bar0", 0x10, 4),
    "bar0+10": Location("bar0", 0x10, 4),
    "BAR5+10.L": Location("bar5", 0x10, 4),
    "bar2+7.b": Location("bar2", 7, 1),
    "bar2+6.w": Location("bar2", 6, 2),
    "bar2+8.q": Location("bar2", 8, 8),
    "config+4.w": Location("config", 4, 2),
    "rom+0": Location("rom", 0, 4),
}


@pytest.mark.parametrize(("text", "meant"), LOCATIONS.items(), ids=LOCATIONS)
def test_each_location_means_one_register(text: str, meant: Location) -> None:
    assert parse_location(text) == meant


LOCATION_MISTAKES: dict[str, tuple[int, str]] = {
    "": (1, "one of bar0, "),
    "bar6+0": (1, "one of bar0, "),
    "bar+0": (1, "one of bar0, "),
    "10.l": (1, "one of bar0, "),
    "bar0": (5, "'+' and an offset"),
    "bar0.l": (5, "'+' and an offset"),
    "bar0+": (6, "an offset in hexadecimal"),
    "bar0+g": (6, "an offset in hexadecimal"),
    "bar0+10000000000000000": (6, "an offset in hexadecimal, at most ffffffffffffffff"),
    "bar0+10.x": (9, "one of b, w, l, q"),
    "bar0+10.": (9, "one of b, w, l, q"),
    "config+8.q": (10, "one of b, w, l "),
    "bar0+2": (6, "an offset that is a multiple of the width, 4 bytes,"),
    "bar0+4.q": (6, "an offset that is a multiple of the width, 8 bytes,"),
    "bar0+4=1": (7, "the end"),
}


@pytest.mark.parametrize(("text", "told"), LOCATION_MISTAKES.items(), ids=LOCATION_MISTAKES)
def test_a_wrong_location_is_told_with_its_position(text: str, told: tuple[int, str]) -> None:
    position, expected = told
    with pytest.raises(ValueError, match=f"at position {position}, found") as caught:
        parse_location(text)
    assert str(caught.value).startswith(f"{text!r}: expected {expected}")


def test_a_write_has_a_value_and_maybe_a_mask() -> None:
    place = Location("bar0", 0x10, 1)
    assert parse_write("bar0+10.b=0xff") == (place, Value(0xFF))
    assert parse_write("bar0+10.b=1:3") == (place, Value(1, 3))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bar0+10", "expected '=' at position 8, found the end"),
        ("bar0+10.b=", "expected a value in hexadecimal, at most ff, at position 11"),
        ("bar0+10.b=100", "expected a value in hexadecimal, at most ff, at position 11"),
        ("bar0+10.b=1:", "expected a mask in hexadecimal, at most ff, at position 13"),
        ("bar0+10.b=1,2", "expected the end at position 12, found ',2'"),
        ("bar0+10.b=1:1,2", "expected the end at position 14, found ',2'"),
    ],
)
def test_a_wrong_write_is_told_with_its_position(text: str, told: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        parse_write(text)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("value", "old", "new"),
    [
        (Value(0x12), 0xFF, 0x12),
        (Value(0x12, 0x0F), 0xF0, 0xF2),
        (Value(0xFF, 0x01), 0x10, 0x11),
        (Value(0x00, 0x81), 0xFF, 0x7E),
        (Value(0x5A, 0xFF), 0xFF, 0x5A),
        (Value(0x5A, 0x00), 0xA5, 0xA5),
    ],
)
def test_only_bits_of_the_mask_are_changed(value: Value, old: int, new: int) -> None:
    assert value.merged(old) == new


@pytest.mark.parametrize(
    ("value", "width", "all_of_it"),
    [
        (Value(0), 1, True),
        (Value(0, 0xFF), 1, True),
        (Value(0, 0xFF), 2, False),
        (Value(0, 0xFFFF_FFFF), 4, True),
        (Value(0, 0), 1, False),
    ],
)
def test_a_mask_of_all_bits_needs_no_read(value: Value, width: int, all_of_it: bool) -> None:
    assert value.replaces_all(width) is all_of_it


# There and back


def values_of(width: int) -> st.SearchStrategy[Value]:
    number = st.integers(0, (1 << 8 * width) - 1)
    return st.builds(Value, number, st.none() | number)


PLACE = st.one_of(
    st.sampled_from(list(PLACES.values())),
    st.builds(at, st.integers(0, 0x800)),
    st.integers(0, 0xFF).map(lambda n: Place(f"CAP{n:X}", capability=n)),
    st.integers(0, 0xFFFF).map(lambda n: Place(f"ECAP{n:X}", capability=n, extended=True)),
)


@st.composite
def operands(draw: st.DrawFn) -> Operand:
    place, width = draw(PLACE), draw(st.sampled_from([1, 2, 4]))
    offset = draw(st.integers(0, 0x200)) * width + -place.offset % width
    number = 0 if place.capability is None else draw(st.integers(0, 0xFFFF))
    values = tuple(draw(st.lists(values_of(width), max_size=4)))
    return Operand(place, offset % 0x700, width, number, values)


@given(operand=operands())
@MODERATE
def test_what_is_formatted_is_parsed_to_the_same_operand(operand: Operand) -> None:
    assert parse_operand(str(operand)) == operand


@given(
    location=st.sampled_from([1, 2, 4]).flatmap(
        lambda width: st.builds(
            Location,
            st.sampled_from(REGIONS),
            st.integers(0, 1 << 40).map(lambda offset: offset * width),
            st.just(width),
        )
    )
)
@MODERATE
def test_what_is_formatted_is_parsed_to_the_same_location(location: Location) -> None:
    assert parse_location(str(location)) == location


ALMOST = st.text(alphabet="COMANDPECVR_01afgxbwlq+.@=:,- ", max_size=24)


@given(text=ALMOST | st.text(max_size=24))
@pytest.mark.parametrize("parse", [parse_operand, parse_location])
@MODERATE
def test_any_text_has_a_meaning_or_an_error_that_names_it(
    parse: Callable[[str], Operand | Location], text: str
) -> None:
    try:
        meant = parse(text)
    except ValueError as error:
        assert str(error).startswith(f"{text!r}: expected ")  # noqa: PT017 - most texts are wrong
        return
    assert parse(str(meant)) == meant


# The names

SAME_NAME = [name for name in PLACES if isinstance(getattr(pci, name, None), pci.Register)]
SAME_CAPABILITY = [c for c in CapabilityID if f"CAP_{c.name}" in PLACES]
SAME_EXTENDED = [c for c in ExtendedCapabilityID if f"ECAP_{c.name}" in PLACES]


def test_there_are_as_many_names_as_setpci_has() -> None:
    headers = [p for p in PLACES.values() if p.capability is None]
    extended = [p for p in PLACES.values() if p.extended]
    assert (len(headers), len(PLACES) - len(headers) - len(extended), len(extended)) == (65, 20, 42)


@pytest.mark.parametrize("name", SAME_NAME)
def test_registers_stand_where_the_headers_of_the_kernel_say(name: str) -> None:
    assert (PLACES[name].offset, PLACES[name].width) == getattr(pci, name)


def test_capabilities_have_the_ids_that_the_headers_of_the_kernel_say() -> None:
    assert len(SAME_CAPABILITY) == 18
    assert all(PLACES[f"CAP_{c.name}"].capability == c for c in SAME_CAPABILITY)
    assert len(SAME_EXTENDED) > 20
    assert all(PLACES[f"ECAP_{c.name}"].capability == c for c in SAME_EXTENDED)


def test_named_registers_are_aligned_and_within_their_header() -> None:
    for place in PLACES.values():
        if place.width:
            assert place.offset % place.width == 0
            assert place.offset + place.width <= (0x48 if place.headers == (2,) else 0x40)


@pytest.mark.skipif(shutil.which("setpci") is None, reason="pciutils is not installed")
def test_setpci_has_no_name_that_is_missing_or_means_something_else() -> None:
    done = subprocess.run(["setpci", "--dumpregs"], capture_output=True, text=True, check=True)
    letters = {0: "-", 1: "B", 2: "W", 4: "L"}
    for line in done.stdout.splitlines()[1:]:
        *number, offset, letter, name = line.split()
        place = PLACES[name]
        assert (f"{place.offset:02x}", letters[place.width]) == (offset, letter)
        assert place.capability == (int(number[0], 16) if number else None)


# What is refused before a device is opened


def run(*arguments: str) -> int:
    """Run a verb, on nothing that could be opened."""
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    for module in (config, irq, peek):
        module.add_parser(verbs)
    args = parser.parse_args(arguments)
    status: int = args.run(args)
    return status


@pytest.mark.parametrize(
    "line",
    [
        "config NONE: COMMANDD",
        "config NONE: COMMAND=4 4",
        "config -x NONE: COMMAND",
        "config -x -o json NONE:",
        "config -o json NONE: COMMAND",
        "peek NONE: bar0",
        "peek NONE: bar0+0 0",
        "peek NONE: bar0+0 g",
        "peek NONE: bar0+0 1.5",
        "peek NONE: bar0+0 -- -1",
        "poke NONE: bar0+0.l=1 bar0+4.l",
        "irq NONE: --trigger 2 --vectors 2",
    ],
)
def test_usage_errors_are_told_before_the_device_is_opened(line: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        run(*line.split())


@pytest.mark.parametrize(
    "line",
    [
        "config",
        "config -o yaml NONE:",
        "peek NONE:",
        "poke NONE:",
        *(f"peek --watch={seconds} NONE: bar0+0" for seconds in ("0", "-1", "nan", "1e7", "soon")),
        *(f"irq --timeout={seconds} NONE:" for seconds in ("-1", "nan", "1e7", "soon")),
        "irq --count=0 NONE:",
        "irq --vectors=0 NONE:",
        "irq --trigger=-1 NONE:",
        "irq --kind=nmi NONE:",
    ],
)
def test_senseless_options_are_refused(line: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*line.split())
    assert ended.value.code == 2


def test_dumpregs_needs_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("config", "--dumpregs")
    lines = capsys.readouterr().out.splitlines()
    assert not ended.value.code
    assert lines[:2] == ["cap pos w name", "     00 W VENDOR_ID"]
    assert "  05 00 - CAP_MSI" in lines
    assert "0001 00 - ECAP_AER" in lines
    assert len(lines) == 1 + len(PLACES)
