# SPDX-License-Identifier: BSD-3-Clause
"""Names of vendors and devices: from a ``pci.ids`` file, or what is built in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvfio.pci import names

IDS = """\
# A comment.
8086  Intel Corporation
\t100e  82540EM Gigabit Ethernet Controller
\t\t8086 001e  PRO/1000 MT Desktop Adapter
1234  Somebody Else
\t11e8  another name
C 02  Network controller
\t00  Ethernet controller
"""

Install = Callable[[str | bytes], None]


@pytest.fixture(autouse=True)
def no_file(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file names anything, whatever the machine has; nothing is remembered."""
    monkeypatch.delenv(names.ENVIRONMENT, raising=False)
    monkeypatch.setattr(names, "FILES", ())
    names._names.cache_clear()
    yield
    names._names.cache_clear()


@pytest.fixture
def ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Write the file that the environment variable names."""

    def install(text: str | bytes) -> None:
        path = tmp_path / "pci.ids"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.setenv(names.ENVIRONMENT, str(path))

    return install


def test_devices_of_this_package_have_built_in_names() -> None:
    assert (names.vendor_name(0x1234), names.device_name(0x1234, 0x11E8)) == (
        "QEMU",
        "edu educational device",
    )


def test_an_unknown_vendor_is_its_number() -> None:
    assert names.vendor_name(0x00AB) == "vendor 00ab"


def test_an_unknown_device_is_its_number() -> None:
    assert names.device_name(0x1234, 0x00CD) == "device 00cd"


def test_a_file_names_a_vendor(ids: Install) -> None:
    ids(IDS)
    assert names.vendor_name(0x8086) == "Intel Corporation"


def test_a_file_names_a_device(ids: Install) -> None:
    ids(IDS)
    assert names.device_name(0x8086, 0x100E) == "82540EM Gigabit Ethernet Controller"


def test_subsystems_are_no_devices(ids: Install) -> None:
    ids(IDS)
    assert names.device_name(0x8086, 0x001E) == "device 001e"


def test_classes_are_no_vendors(ids: Install) -> None:
    ids(IDS)
    assert names.device_name(0x1234, 0x0000) == "device 0000"


def test_a_file_goes_before_what_is_built_in(ids: Install) -> None:
    ids(IDS)
    assert names.device_name(0x1234, 0x11E8) == "another name"


def test_what_the_file_lacks_is_built_in(ids: Install) -> None:
    ids(IDS)
    assert names.device_name(0x1B36, 0x0005) == "PCI test device"


def test_the_environment_goes_before_the_files_of_the_system(
    ids: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system.ids"
    system.write_text("8086  The System\n")
    monkeypatch.setattr(names, "FILES", (str(system),))
    ids("8086  The Environment\n")
    assert names.vendor_name(0x8086) == "The Environment"


def test_a_file_of_the_system_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "system.ids"
    system.write_text("8086  The System\n")
    monkeypatch.setattr(names, "FILES", ("/nowhere/pci.ids", str(system)))
    assert names.vendor_name(0x8086) == "The System"


@pytest.mark.parametrize("text", [b"", b"no number  at all\n", b"\t11e8\n", bytes(range(256))])
def test_a_file_that_is_none_leaves_the_built_in_names(ids: Install, text: bytes) -> None:
    ids(text)
    assert names.vendor_name(0x1B36) == "Red Hat"


def test_a_name_that_is_no_utf8_is_shown_somehow(ids: Install) -> None:
    ids(b"8086  Int\xe9l\n")
    assert names.vendor_name(0x8086) == "Int\ufffdl"


@pytest.mark.parametrize(
    ("code", "name"),
    [(0x020000, "Network controller"), (0x00FF00, "Unclassified device"), (0x420000, "class 42")],
)
def test_a_class_is_named_after_its_base_class(code: int, name: str) -> None:
    assert names.class_name(code) == name
