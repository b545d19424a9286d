# SPDX-License-Identifier: BSD-3-Clause
"""The verbs config, peek, poke, irq and reset: what they print, and what the device sees of them.

The scratch register of the test device counts its accesses and keeps the width of the last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest

import pyvfio
from pyvfio.cli import config, irq, peek, reset
from pyvfio.errors import IRQError, RegionError, UnsupportedError, VFIOTimeout
from tests.conformance.devices import VECTORS, Dev
from tests.support import ServerProcess

WIDTHS = {"b": 1, "w": 2, "l": 4, "q": 8}

Verb: TypeAlias = Callable[..., list[str]]


def reset_device(uri: str) -> None:
    """Registers to their defaults; the command register is left alone by a reset."""
    with pyvfio.open(uri) as dev:
        dev.reset()
        dev.bus_master = False


@pytest.fixture
def testdev(testdev_server: ServerProcess) -> Iterator[str]:
    """A URI: the test device, freshly reset and left so."""
    reset_device(testdev_server.uri)
    yield testdev_server.uri
    reset_device(testdev_server.uri)


@pytest.fixture
def edu(edu_server: ServerProcess) -> Iterator[str]:
    """A URI: an edu device, freshly reset and left so."""
    reset_device(edu_server.uri)
    yield edu_server.uri
    reset_device(edu_server.uri)


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str]) -> Verb:
    """Run a verb until it ends or is interrupted; returns the lines that it printed."""
    parser = argparse.ArgumentParser(prog="pyvfio")
    verbs = parser.add_subparsers(required=True)
    for module in (config, peek, irq, reset):
        module.add_parser(verbs)

    def run(*arguments: str) -> list[str]:
        args = parser.parse_args(arguments)
        with contextlib.suppress(KeyboardInterrupt):
            assert args.run(args) == 0
        return capsys.readouterr().out.splitlines()

    return run


def accesses(verb: Verb, uri: str) -> tuple[int, int]:
    """How often the scratch register was accessed, and the width of the last access."""
    count, width = (verb("peek", uri, f"bar0+{place:x}")[0] for place in (Dev.ACCESSES, Dev.WIDTH))
    return int(count, 16), int(width, 16)


# config: registers


def test_config_reads_registers_in_the_order_given(verb: Verb, edu: str) -> None:
    printed = verb("config", edu, "DEVICE_ID", "VENDOR_ID", "VENDOR_ID+1.b", "0.l")
    assert printed == ["11e8", "1234", "12", "11e81234"]


def test_config_reads_within_capabilities(verb: Verb, testdev: str) -> None:
    registers = {
        "CAP_PM.b": "01",
        "CAP01+2.w": "0003",
        "CAP_PM+6.w": "0000",
        "CAP_MSIX+70.l": "00000000",
        "ECAP_DSN+8.l": "01234567",
        "ECAP_VNDR.l": "0001000b",
        "ECAPB.l@0": "0001000b",
    }
    assert verb("config", testdev, *registers) == list(registers.values())


def test_config_changes_only_the_bits_of_a_mask(verb: Verb, testdev: str) -> None:
    printed = verb(
        "config", testdev, "COMMAND=0", "COMMAND=ffff:4", "COMMAND", "COMMAND=3:7", "4.w"
    )
    assert printed == ["0004", "0003"]


def test_config_writes_a_list_to_one_register_after_the_other(verb: Verb, testdev: str) -> None:
    assert verb("config", testdev, "CACHE_LINE_SIZE=11,22") == []
    assert verb("config", testdev, "CACHE_LINE_SIZE", "LATENCY_TIMER") == ["11", "22"]
    verb("config", testdev, "CACHE_LINE_SIZE=ff:f,ff:f0")
    assert verb("config", testdev, "CACHE_LINE_SIZE", "LATENCY_TIMER") == ["1f", "f2"]


def test_config_writes_within_a_capability(verb: Verb, edu: str) -> None:
    verb("config", edu, "CAP_MSI+4.l=fee00000", "CAP_MSI+c.w=4041")
    assert verb("config", edu, "CAP_MSI+4.l", "CAP_MSI+c.w") == ["fee00000", "4041"]


def test_a_dry_run_shows_what_it_would_write_and_writes_nothing(verb: Verb, testdev: str) -> None:
    before = verb("config", "-xxxx", testdev)
    printed = verb(
        "config", "-D", testdev, "COMMAND=4:4", "CACHE_LINE_SIZE=1,2", "CAP_MSIX+2.w=8000"
    )
    assert printed == [
        "COMMAND.w @04: 0003 -> 0007",
        "CACHE_LINE_SIZE.b @0c: 00 -> 01",
        "CACHE_LINE_SIZE.b @0d: 00 -> 02",
        "CAP_MSIX+2.w @8e: 001f -> 8000",
    ]
    assert verb("config", "-xxxx", testdev) == before


NOT_THERE = {
    "CAP_VPD.b": (UnsupportedError, "no CAP_VPD.*it has CAP_MSI"),
    "CAP_MSI.b@1": (UnsupportedError, "1 CAP_MSI, counted from @0"),
    "CAP_MSI+c0.l": (RegionError, r"outside of configuration space, which is at 0 to ff"),
    "ECAP_AER.l": (UnsupportedError, "no ECAP_AER.*no capability of this sort"),
    "PRIMARY_BUS": (UnsupportedError, "a header of type 0 has no such register"),
    "100.l": (RegionError, "outside of configuration space, which is at 0 to ff"),
    "fc.l=1,2": (RegionError, "outside of configuration space"),
}


@pytest.mark.parametrize(("operand", "told"), NOT_THERE.items(), ids=NOT_THERE)
def test_a_register_that_is_not_there_is_an_error_and_nothing_is_written(
    verb: Verb, edu: str, operand: str, told: tuple[type[Exception], str]
) -> None:
    kind, reason = told
    with pytest.raises(kind, match=reason):
        verb("config", edu, "CACHE_LINE_SIZE=77", operand)
    assert verb("config", edu, "CACHE_LINE_SIZE") == ["00"]


@pytest.mark.parametrize(
    ("operand", "room"),
    [("CAP_PM+8.w", "40 to 47"), ("CAP_MSIX+74.l", "8c to ff"), ("ECAP_AER+48.l", "100 to 147")],
)
def test_a_register_behind_its_capability_is_an_error(
    verb: Verb, testdev: str, operand: str, room: str
) -> None:
    with pytest.raises(RegionError, match=f"outside of the capability, which is at {room}"):
        verb("config", testdev, operand)


# config: all of it


@pytest.mark.parametrize(("option", "rows"), [("-x", 4), ("-xxx", 16), ("-xxxx", 256)])
def test_hexdumps_have_three_sizes(verb: Verb, testdev: str, option: str, rows: int) -> None:
    first, *lines, last = verb("config", option, testdev)
    assert first == "00:00.0 Unclassified device: Red Hat PCI test device (rev 01)"
    assert (len(lines), last) == (rows, "")
    assert lines[0].startswith("00: 36 1b 05 00 ")


def test_the_decoded_view_has_ids_bits_bars_and_capabilities(verb: Verb, testdev: str) -> None:
    printed = "\n".join(verb("config", testdev))
    for fact in (
        "1b36:0005  Red Hat PCI test device  (rev 01)",
        "class 00ff00 Unclassified device, subsystem 1af4:1100",
        "command 0003  io memory",
        "status  0010  cap_list",
        "interrupt INTA",
        "bar2  0x0      64 MiB    64-bit memory, prefetchable",
        "[040] 01 Power Management",
        "version 3, d1-, d2-, wakes_from none, state D0, no_soft_reset+",
        "version 2, type endpoint",
        "enable-, masked-, vectors 32, table bar1+0x0, pending bar1+0x800",
        "[100] 0001 Advanced Error Reporting v2",
    ):
        assert fact in printed
    assert all(len(line) <= 100 for line in printed.splitlines())


def test_the_decoded_view_as_json_says_the_same_to_scripts(verb: Verb, edu: str) -> None:
    verb("config", edu, "COMMAND=6", "CAP_MSI+4.l=fee00000", "10.l=fe000000")
    found = json.loads("\n".join(verb("config", "-o", "json", edu)))
    assert (found["vendor"], found["device"], found["revision"]) == (0x1234, 0x11E8, 0x10)
    assert found["command"] == {"value": 6, "bits": ["memory", "master"]}
    (bar,) = found["bars"]
    assert (bar["number"], bar["address"], bar["size"]) == (0, 0xFE00_0000, 1 << 20)
    assert (bar["type"], bar["prefetchable"]) == ("32-bit memory", False)
    (msi,) = found["capabilities"]
    assert (msi["offset"], msi["id"], msi["name"]) == (0x40, 5, "MSI")
    assert (msi["fields"]["vectors"], msi["fields"]["address"]) == (1, "0xfee00000")


def test_addresses_of_64_bits_have_both_halves(verb: Verb, testdev: str) -> None:
    verb("config", testdev, "BASE_ADDRESS_2=c0000000,12", "BASE_ADDRESS_4=c001")
    bars = json.loads("\n".join(verb("config", "-o", "json", testdev)))["bars"]
    assert {b["number"]: b["address"] for b in bars} == {0: 0, 1: 0, 2: 0x12_C000_0000, 4: 0xC000}


# peek and poke


@pytest.mark.parametrize(("letter", "width"), WIDTHS.items())
def test_peek_makes_one_access_of_its_width_for_each(
    verb: Verb, testdev: str, letter: str, width: int
) -> None:
    assert verb("peek", testdev, f"bar0+10.{letter}") == ["0" * 2 * width]
    assert accesses(verb, testdev) == (1, width)
    verb("peek", testdev, f"bar0+10.{letter}", f"{8 // width}")
    assert accesses(verb, testdev) == (1 + 8 // width, width)


def test_peek_of_a_count_prints_lines_of_16_bytes(verb: Verb, testdev: str) -> None:
    verb("poke", testdev, "bar0+10.q=1122334455667788")
    assert verb("peek", testdev, "bar0+8.w", "0xc") == [
        "0008: 0000 0000 0000 0000 7788 5566 3344 1122",
        "0018: 0000 0000 0000 0000",
    ]


@pytest.mark.parametrize("place", ["bar2+2000000.q", "bar2+1000000.q", "bar4+8.w", "bar0+10.b"])
def test_peek_reads_what_poke_wrote_mapped_or_not(verb: Verb, testdev: str, place: str) -> None:
    value = "123456789abcdef0"[: 2 * WIDTHS[place[-1]]]
    assert verb("poke", testdev, f"{place}={value}") == []
    assert verb("peek", testdev, place) == [value]
    verb("poke", testdev, f"{place}=0")


def test_peek_and_poke_reach_configuration_space(verb: Verb, testdev: str) -> None:
    verb("poke", testdev, "config+c.b=0x20", "config+d.b=ff:0f")
    assert verb("peek", testdev, "config+c.w") == ["0f20"]
    assert verb("peek", testdev, "config+0.w", "2") == ["0000: 1b36 0005"]


@pytest.mark.parametrize(("letter", "width"), WIDTHS.items())
def test_poke_makes_one_access_of_its_width(
    verb: Verb, testdev: str, letter: str, width: int
) -> None:
    verb("poke", testdev, f"bar0+10.{letter}=5a")
    assert accesses(verb, testdev) == (1, width)


@pytest.mark.parametrize(("operand", "count"), [("=f0:ff", 1), ("=f0:fe", 2), ("=ff:0", 2)])
def test_poke_reads_only_where_a_mask_leaves_bits(
    verb: Verb, testdev: str, operand: str, count: int
) -> None:
    verb("poke", testdev, f"bar0+10.b{operand}")
    assert accesses(verb, testdev) == (count, 1)


def test_poke_writes_in_order_and_only_the_bits_of_a_mask(verb: Verb, testdev: str) -> None:
    verb("poke", testdev, "bar0+10.l=12345678", "bar0+10.l=ffff0000:00ff0f00", "bar0+13.b=9")
    assert verb("peek", testdev, "bar0+10.l") == ["09ff5078"]


WRONG_PLACES = {
    "bar3+0": "does not implement",
    "rom+0": "no expansion ROM",
    "bar0+1000": "outside of the region, which has 0x1000 bytes",
    "bar0+fffffffffffffff8.q": "outside of the region",
    "config+1000.b": "outside of the region",
}


@pytest.mark.parametrize(("place", "reason"), WRONG_PLACES.items(), ids=WRONG_PLACES)
def test_a_place_that_is_not_there_is_an_error_and_nothing_is_written(
    verb: Verb, testdev: str, place: str, reason: str
) -> None:
    with pytest.raises(RegionError, match=reason):
        verb("peek", testdev, place)
    with pytest.raises(RegionError, match=reason):
        verb("poke", testdev, "bar0+10.l=1", f"{place}=1")
    assert accesses(verb, testdev)[0] == 0


def test_a_count_beyond_the_region_is_an_error_before_the_first_access(
    verb: Verb, testdev: str
) -> None:
    with pytest.raises(RegionError, match=r"bar0\+10.b, 0xff1 in a row"):
        verb("peek", testdev, "bar0+10.b", "ff1")
    assert accesses(verb, testdev)[0] == 0


def ticking(sleeps: int) -> SimpleNamespace:
    """A clock of which every sleep takes no time, and the last one is interrupted."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == sleeps:
            raise KeyboardInterrupt

    return SimpleNamespace(monotonic=lambda: sum(slept), sleep=sleep)


def test_watch_prints_only_changes(
    verb: Verb, testdev: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The scratch register, read twice a round, and behind it the number of its accesses.
    monkeypatch.setattr(peek, "time", ticking(3))
    assert verb("peek", "--watch", "0.5", testdev, "bar0+10", "6") == [
        "     0.000  0010: 00000000 00000000 00000000 00000000",
        "     0.000  0020: 00000002 00000004",
        "     0.500  0020: 00000004 00000004",
        "     1.000  0020: 00000006 00000004",
    ]


def test_watch_of_what_does_not_change_prints_it_once(
    verb: Verb, testdev: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peek, "time", ticking(3))
    assert verb("peek", "--watch", "9", testdev, "bar0+10.b") == ["     0.000  00"]
    assert accesses(verb, testdev) == (3, 1)


# irq


def vectors_of(lines: list[str]) -> list[str]:
    """Vector and count of the lines, without the time."""
    return [" ".join(line.split()[:4]) for line in lines]


@pytest.mark.parametrize(
    ("options", "vector"), [("--kind msix", VECTORS - 1), ("--kind intx", 0), ("", 5)]
)
def test_irq_shows_what_it_triggers(verb: Verb, testdev: str, options: str, vector: int) -> None:
    (line,) = verb("irq", testdev, "--trigger", f"{vector}", *options.split())
    assert vectors_of([line]) == [f"vector {vector} count 1"]


def test_irq_triggers_as_often_as_it_counts(verb: Verb, edu: str) -> None:
    printed = verb("irq", edu, "--trigger", "0", "--count", "5")
    assert vectors_of(printed) == ["vector 0 count 1"] * 5


def test_irq_unmasks_the_pin_after_each_interrupt(verb: Verb, testdev: str) -> None:
    verb("poke", testdev, f"bar0+{Dev.PIN:x}=1")
    printed = verb("irq", testdev, "--kind", "intx", "--count", "4", "--timeout", "5")
    assert vectors_of(printed) == ["vector 0 count 1"] * 4


def test_irq_stops_when_the_time_is_over_whatever_still_comes(verb: Verb, testdev: str) -> None:
    verb("poke", testdev, f"bar0+{Dev.PIN:x}=1")
    assert verb("irq", testdev, "--kind", "intx", "--timeout", "0.05")


def test_irq_as_json_is_an_object_a_line(verb: Verb, testdev: str) -> None:
    printed = verb("irq", testdev, "-o", "json", "--trigger", "2", "--count", "2")
    events: list[dict[str, Any]] = [json.loads(line) for line in printed]
    assert [(event["vector"], event["count"]) for event in events] == [(2, 1), (2, 1)]
    assert 0 <= events[0]["ms"] <= events[1]["ms"]


@pytest.mark.parametrize(("options", "wanted"), [("", 1), ("--kind intx --count 3", 3)])
def test_irq_is_a_time_out_where_fewer_came(
    verb: Verb, testdev: str, options: str, wanted: int
) -> None:
    with pytest.raises(VFIOTimeout, match=f"0 of {wanted} interrupts within 0.02 s"):
        verb("irq", testdev, "--timeout", "0.02", *options.split())


def test_irq_leaves_the_device_with_interrupts_off(verb: Verb, testdev: str) -> None:
    verb("irq", testdev, "--kind", "msix", "--trigger", "0")
    assert verb("config", testdev, "CAP_MSIX+2.w") == ["001f"]


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        (["--kind", "msix"], UnsupportedError, "no MSIX"),
        (["--vectors", "2"], IRQError, "vectors"),
    ],
)
def test_irq_refuses_what_the_device_has_not(
    verb: Verb, edu: str, options: list[str], kind: type[Exception], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        verb("irq", edu, "--timeout", "0", *options)


# reset


def test_reset_puts_registers_back_but_command_and_says_nothing(verb: Verb, testdev: str) -> None:
    verb("poke", testdev, "bar0+10.l=12345678", "config+4.w=6", "config+c.b=10")
    assert verb("reset", testdev) == []
    assert verb("peek", testdev, "bar0+10.l") == ["00000000"]
    assert verb("config", testdev, "COMMAND=6:4", "CACHE_LINE_SIZE", "COMMAND.b") == ["00", "07"]
