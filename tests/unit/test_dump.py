# SPDX-License-Identifier: BSD-3-Clause
"""Configuration space as text that lspci reads, and decoded: both from bytes laid out here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio.pci import names
from pyvfio.pci.config import ConfigSpace
from pyvfio.pci.dump import NO_ADDRESS, address_of, dump
from pyvfio.pci.registers import Shown, decode_capability, decode_header
from pyvfio.posting import Posting
from pyvfio.uapi.vfio import RegionFlags
from pyvfio.vectors import DeviceIO, RegionInfo

MODERATE = settings(deadline=None, max_examples=60)

HEADER = bytes.fromhex(
    "34 12 e8 11 06 04 10 20 10 00 ff 00 10 20 80 00"
    "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"
    "00 00 00 00 00 00 00 00 00 00 00 00 f4 1a 00 11"
    "00 00 00 00 40 00 00 00 00 00 00 00 0b 02 00 00"
)
"""1234:11e8, memory off, master and INTx disable on, a capability at 0x40, INTB."""


class Recording:
    """The operations on a device of which nothing is left but its configuration space."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def register_messages(self, index: int) -> None:
        return None

    def region_read(self, index: int, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def register_read(self, index: int, offset: int, width: int) -> int:
        return int.from_bytes(self.region_read(index, offset, width), "little")


def recorded_as(data: bytes) -> ConfigSpace:
    """Configuration space that was read before."""
    info = RegionInfo(7, RegionFlags.READ, len(data))
    return ConfigSpace(cast(DeviceIO, Recording(data)), info, "recorded:", Posting(lambda: None))


def recorded(capability: str = "", size: int = 256) -> ConfigSpace:
    """A header with at most one capability: its id, and what stands behind its link."""
    body = bytes.fromhex(capability)
    data = bytearray(HEADER + body[:1] + bytes(len(body) > 0) + body[1:])
    data[0x34] = 0x40 if body else 0
    return recorded_as(bytes(data.ljust(size, b"\0")))


def fields_of(capability: str) -> dict[str, Shown]:
    """What is decoded of the only capability."""
    config = recorded(capability)
    (found,) = config.capabilities()
    return decode_capability(config, found)


# What lspci reads


def read_dump(text: str) -> dict[str, bytes]:
    """Read a dump as strictly as lspci does: addresses of functions, each with its bytes."""
    functions: dict[str, bytearray] = {}
    current: bytearray | None = None
    assert text.endswith("\n")
    for line in text.removesuffix("\n").split("\n"):
        assert len(line.encode()) < 250, "lspci reads lines into 256 bytes"
        title = re.match(r"(?:[0-9a-f]{4,5}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7] ", line)
        row = re.fullmatch(r"([0-9a-f]{2,8}): ((?:[0-9a-f]{2} )*[0-9a-f]{2})", line)
        if title:
            current = functions.setdefault(title[0].strip(), bytearray())
        elif not line:
            current = None
        else:
            assert row, f"malformed: {line!r}"
            assert current is not None
            assert int(row[1], 16) == len(current) < 4096
            current += bytes.fromhex(row[2])
    return {address: bytes(data) for address, data in functions.items()}


def test_the_first_line_has_address_class_and_name() -> None:
    first = dump(recorded(), "0000:03:00.0", 64).splitlines()[0]
    assert first == "0000:03:00.0 Unclassified device: QEMU edu educational device (rev 10)"


def test_the_header_is_four_lines_of_16_bytes() -> None:
    assert dump(recorded(), NO_ADDRESS, 64).splitlines()[1:] == [
        "00: 34 12 e8 11 06 04 10 20 10 00 ff 00 10 20 80 00",
        "10: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
        "20: 00 00 00 00 00 00 00 00 00 00 00 00 f4 1a 00 11",
        "30: 00 00 00 00 00 00 00 00 00 00 00 00 0b 02 00 00",
        "",
    ]


def test_offsets_have_three_digits_behind_the_first_256_bytes() -> None:
    lines = dump(recorded(size=4096), NO_ADDRESS, 4096).splitlines()
    assert len(lines) == 1 + 256 + 1
    assert [line.partition(":")[0] for line in lines[16:18]] == ["f0", "100"]
    assert lines[256].startswith("ff0: ")


@pytest.mark.parametrize(("size", "asked", "printed"), [(256, 4096, 256), (4096, 256, 256)])
def test_no_more_is_printed_than_there_is(size: int, asked: int, printed: int) -> None:
    (data,) = read_dump(dump(recorded(size=size), NO_ADDRESS, asked)).values()
    assert len(data) == printed


@given(data=st.binary(min_size=64, max_size=600), asked=st.sampled_from([64, 256, 4096]))
@MODERATE
def test_what_is_dumped_is_read_back_as_the_same_bytes(data: bytes, asked: int) -> None:
    assert read_dump(dump(recorded_as(data), "0001:02:03.4", asked)) == {
        "0001:02:03.4": data[:asked]
    }


def test_dumps_may_stand_one_behind_the_other() -> None:
    text = "".join(dump(recorded(), f"00:0{slot}.0", 64) for slot in range(3))
    assert list(read_dump(text)) == ["00:00.0", "00:01.0", "00:02.0"]


def test_a_long_name_does_not_make_a_line_that_lspci_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        names, "device_name", lambda *_: "\N{LATIN SMALL LETTER E WITH ACUTE}" * 500
    )
    assert list(read_dump(dump(recorded(), NO_ADDRESS, 64))) == [NO_ADDRESS]


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("vfio:0000:03:00.0", "0000:03:00.0"),
        ("vfio:0000:3A:1f.7?timeout=2", "0000:3A:1f.7"),
        ("vfio:03:00.0", "03:00.0"),
        ("vfio-user:/run/edu.sock", NO_ADDRESS),
        ("vfio-user:/run/0000:03:00.0", NO_ADDRESS),
        ("vfio:0000:03:00.8", NO_ADDRESS),
        ("vfio:/dev/vfio/devices/vfio0", NO_ADDRESS),
    ],
)
def test_the_address_is_that_of_the_uri_if_it_has_one(uri: str, address: str) -> None:
    assert address_of(uri) == address


@pytest.mark.skipif(shutil.which("lspci") is None, reason="pciutils is not installed")
@pytest.mark.parametrize("size", [64, 256, 4096])
def test_lspci_reads_what_is_dumped(tmp_path: Path, size: int) -> None:
    text = dump(recorded(MSI_PLAIN, size=4096), NO_ADDRESS, size)
    (tmp_path / "dump").write_text(text)
    done = subprocess.run(
        ["lspci", "-F", str(tmp_path / "dump"), "-n", "-xxxx"],
        capture_output=True,
        text=True,
        check=True,
    )
    first, *rows = done.stdout.splitlines()
    assert first.startswith("00:00.0 00ff: 1234:11e8 (rev 10)")
    assert rows == text.splitlines()[1:]


# The decoded view


def test_the_header_is_decoded() -> None:
    found = decode_header(recorded())
    assert found["command"] == {"value": 0x0406, "bits": ["memory", "master", "intx_disable"]}
    assert found["status"] == {"value": 0x2010, "bits": ["cap_list", "rec_master_abort"]}
    expected = {
        "vendor": 0x1234,
        "vendor_name": "QEMU",
        "device": 0x11E8,
        "device_name": "edu educational device",
        "subsystem_vendor": 0x1AF4,
        "subsystem": 0x1100,
        "class": 0x00FF00,
        "class_name": "Unclassified device",
        "revision": 0x10,
        "header_type": 0,
        "multi_function": True,
        "cache_line_bytes": 64,
        "latency_timer": 0x20,
        "interrupt_pin": 2,
        "interrupt_line": 0x0B,
    }
    assert {key: found[key] for key in expected} == expected


def test_power_management_is_decoded() -> None:
    assert fields_of("01 03c8 0381") == {
        "version": 3,
        "d1": False,
        "d2": False,
        "wakes_from": "D0 D3hot D3cold",
        "state": "D3",
        "no_soft_reset": False,
        "pme_enable": True,
        "pme_status": True,
    }


def test_power_management_that_does_little_is_decoded() -> None:
    assert fields_of("01 0206 0800") == {
        "version": 2,
        "d1": True,
        "d2": True,
        "wakes_from": "none",
        "state": "D0",
        "no_soft_reset": True,
        "pme_enable": False,
        "pme_status": False,
    }


MSI_PLAIN = "05 2600 0010e0fe 4142"
MSI_64 = "05 8500 0010e0fe 01000000 4142"
MSI_64_MASKABLE = "05 8001 0010e0fe 01000000 4142 0000 0f000000 02000000"


def test_msi_with_32_bits_is_decoded() -> None:
    assert fields_of(MSI_PLAIN) == {
        "enable": False,
        "vectors": 8,
        "vectors_in_use": 4,
        "64bit": False,
        "maskable": False,
        "address": "0xfee01000",
        "data": "0x4241",
    }


def test_msi_with_64_bits_has_its_data_further_back() -> None:
    found = fields_of(MSI_64)
    assert (found["enable"], found["vectors"], found["64bit"]) == (True, 4, True)
    assert (found["address_high"], found["data"]) == ("0x1", "0x4241")
    assert "mask" not in found


def test_msi_with_masks_is_decoded() -> None:
    found = fields_of(MSI_64_MASKABLE)
    assert (found["maskable"], found["mask"], found["pending"]) == (True, "0xf", "0x2")


def test_msix_is_decoded() -> None:
    assert fields_of("11 1fc0 02100000 03200000") == {
        "enable": True,
        "masked": True,
        "vectors": 32,
        "table": "bar2+0x1000",
        "pending": "bar3+0x2000",
    }


def express(kind: int) -> str:
    """A PCI Express capability of a type of port."""
    return f"10 {2 | kind << 4:02x}00 258e0010 3f29 2100 43f84300 0200 1210"


def test_pci_express_is_decoded() -> None:
    found = fields_of(express(0))
    assert (found["version"], found["type"]) == (2, "endpoint")
    assert (found["max_payload_supported"], found["extended_tags"], found["flr"]) == (
        4096,
        True,
        True,
    )
    assert [name for name in found if name.startswith("report") and found[name]] == [
        "report_correctable",
        "report_nonfatal",
        "report_fatal",
        "report_unsupported",
    ]
    assert (found["relaxed_ordering"], found["no_snoop"]) == (True, True)
    assert (found["max_payload"], found["max_read_request"]) == (256, 512)
    assert (found["correctable_error"], found["fatal_error"]) == (True, False)
    assert found["transactions_pending"] is True
    assert (found["max_speed"], found["max_width"]) == ("8GT/s", "x4")
    assert (found["aspm_supported"], found["aspm"]) == ("L1", "L1")
    assert (found["speed"], found["width"]) == ("5GT/s", "x1")


@pytest.mark.parametrize(
    ("kind", "name", "link"),
    [
        (0x0, "endpoint", True),
        (0x1, "legacy endpoint", True),
        (0x9, "root complex integrated endpoint", False),
        (0xA, "root complex event collector", False),
        (0xF, "unknown 0xf", True),
    ],
)
def test_only_ports_with_a_link_show_one(kind: int, name: str, link: bool) -> None:
    found = fields_of(express(kind))
    assert found["type"] == name
    assert ("speed" in found) is link


@pytest.mark.parametrize("capability", ["09 08", "13 06", "42 00", "ff ff"])
def test_other_capabilities_have_no_fields(capability: str) -> None:
    assert fields_of(capability) == {}


@pytest.mark.parametrize("number", ["01", "05", "10", "11"])
@pytest.mark.parametrize("room", [4, 8, 12])
def test_a_capability_that_is_cut_off_by_the_end_is_decoded_as_far_as_it_goes(
    number: str, room: int
) -> None:
    data = bytearray(recorded().read_bytes(0, 256 - room) + b"\xff" * room)
    data[0x34] = 256 - room
    data[256 - room : 258 - room] = bytes.fromhex(number + "00")
    config = recorded_as(bytes(data))
    (found,) = config.capabilities()
    assert decode_capability(config, found)


@given(data=st.binary(min_size=64, max_size=300))
@MODERATE
def test_whatever_a_device_says_is_decoded(data: bytes) -> None:
    config = recorded_as(data.ljust(256, data[-1:]))
    decode_header(config)
    for capability in config.capabilities():
        decode_capability(config, capability)
