# SPDX-License-Identifier: BSD-3-Clause
"""Reading PCI devices from sysfs: records, selectors, groups, and who uses a device.

The files are a fake host's, in the kernel's layout; nothing is simulated beyond that.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio.backends.ioctl import sysfs
from pyvfio.backends.ioctl.sysfs import HostDevice
from pyvfio.cli import list_devices
from pyvfio.errors import DeviceNotFound
from tests.unit.fake_sysfs import FakeHost, run_verb

NIC, PEER, DISK, PORT = "0000:03:00.0", "0000:03:00.1", "0000:04:00.0", "0000:00:1c.0"


@pytest.fixture
def fake(tmp_path: Path) -> FakeHost:
    """A network card of two functions in one group, a disk in its own, a bridge."""
    fake = FakeHost(tmp_path)
    fake.add_device(NIC, driver="e1000e", group=7)
    fake.add_device(PEER, driver="e1000e", group=7)
    fake.add_device(DISK, ids=(0x144D, 0xA808), class_code=0x01_0802, driver="nvme", group=8)
    fake.add_device(PORT, ids=(0x8086, 0xA338), class_code=0x06_0400, driver="pcieport", group=7)
    return fake


def uses(fake: FakeHost, bdf: str) -> tuple[str, ...]:
    """Who uses a device of the fake host."""
    return sysfs.uses(sysfs.device(bdf, fake.root), fake.root, fake.proc, fake.dev)


# One device


def test_a_device_has_what_its_files_say(fake: FakeHost) -> None:
    folder = fake.add_device(
        "0001:a0:1f.7",
        ids=(0x8086, 0x1520),
        class_code=0x02_0001,
        driver="vfio-pci",
        group=12,
        numa_node="1",
        reset_method="flr bus",
        sriov_totalvfs="64",
    )
    fake.link(folder / "physfn", fake.folder_of(NIC))
    fake.put(folder / "vfio-dev/vfio3/dev", "511:3\n")
    assert sysfs.device("0001:a0:1f.7", fake.root) == HostDevice(
        bdf="0001:a0:1f.7",
        vendor=0x8086,
        device=0x1520,
        subsystem_vendor=0x1AF4,
        subsystem=0x1100,
        class_code=0x02_0001,
        revision=1,
        driver="vfio-pci",
        iommu_group=12,
        numa_node=1,
        reset_methods=("flr", "bus"),
        physical_function=NIC,
        total_vfs=64,
        cdev="vfio3",
    )


def test_what_a_device_does_not_have_is_none_or_empty(fake: FakeHost) -> None:
    fake.add_device("0000:00:04.0")
    found = sysfs.device("00:04.0", fake.root)
    assert (found.driver, found.iommu_group, found.numa_node, found.cdev) == (None,) * 4
    assert (found.reset_methods, found.physical_function, found.total_vfs) == ((), None, 0)
    assert not found.is_virtual_function
    assert not found.has_vfio_driver


def test_an_entry_without_a_number_has_no_node(fake: FakeHost) -> None:
    folder = fake.add_device("0000:05:00.0", driver="vfio-pci", group=9)
    (folder / "vfio-dev/vfio0").mkdir(parents=True)
    assert sysfs.device("5:0.0", fake.root).cdev is None


def test_an_old_kernel_has_fewer_files(fake: FakeHost) -> None:
    folder = fake.add_device("0000:00:04.0")
    for name in ("revision", "numa_node", "subsystem_vendor", "subsystem_device"):
        (folder / name).unlink()
    found = sysfs.device("00:04.0", fake.root)
    assert (found.revision, found.subsystem_vendor, found.subsystem) == (0, 0, 0)


@pytest.mark.parametrize(
    ("class_code", "bridge"), [(0x06_0400, True), (0x06_0900, True), (0x06_0100, False)]
)
def test_a_bridge_is_what_has_a_bus_behind_it(
    fake: FakeHost, class_code: int, bridge: bool
) -> None:
    fake.add_device("0000:00:04.0", class_code=class_code)
    assert sysfs.device("00:04.0", fake.root).is_bridge == bridge


@pytest.mark.parametrize(
    ("driver", "vfio"),
    [("vfio-pci", True), ("mlx5_vfio_pci", True), ("nvgrace-gpu-vfio-pci", True), ("nvme", False)],
)
def test_variants_of_vfio_pci_count_as_vfio(driver: str, vfio: bool) -> None:
    assert sysfs.is_vfio(driver) == vfio


@pytest.mark.parametrize(
    ("text", "bdf"),
    [
        ("03:00.0", "0000:03:00.0"),
        ("3:0.0", "0000:03:00.0"),
        ("0000:3A:1F.7", "0000:3a:1f.7"),
        ("10000:e1:00.0", "10000:e1:00.0"),
    ],
)
def test_an_address_is_written_as_sysfs_writes_it(text: str, bdf: str) -> None:
    assert sysfs.normal_bdf(text) == bdf


@pytest.mark.parametrize(
    "text",
    ["", "03:00", "03:00.8", "03:20.0", "100:00.0", "x:00.0", "0000:03:00.0 ", "../03:00.0",
     "03:00.0\n", ":03:00.0", "-1:00.0", "0x3:0.0", "\u0663:00.0"],
)  # fmt: skip
def test_a_malformed_address_is_a_value_error(fake: FakeHost, text: str) -> None:
    with pytest.raises(ValueError, match="PCI address"):
        sysfs.device(text, fake.root)


@given(st.text(max_size=16))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        bdf = sysfs.normal_bdf(text)
    except ValueError:
        return
    assert sysfs.normal_bdf(bdf) == bdf


def test_no_such_device_says_so(fake: FakeHost) -> None:
    with pytest.raises(DeviceNotFound) as caught:
        sysfs.device("09:00.0", fake.root)
    assert caught.value.uri == "0000:09:00.0"
    assert caught.value.errno == errno.ENOENT
    assert "pyvfio list" in caught.value.hint


# All devices


def test_devices_come_in_the_order_of_their_addresses(fake: FakeHost) -> None:
    for bdf in ("ffff:01:00.0", "10000:01:00.0"):
        fake.add_device(bdf)
    found = [each.bdf for each in sysfs.devices(fake.root)]
    assert found == [PORT, NIC, PEER, DISK, "ffff:01:00.0", "10000:01:00.0"]


def test_what_has_no_address_is_no_device(fake: FakeHost) -> None:
    fake.link(fake.root / "bus/pci/devices/rc0", fake.folder_of(NIC))
    assert len(sysfs.devices(fake.root)) == 4


def test_a_host_without_pci_has_no_devices(tmp_path: Path) -> None:
    assert sysfs.devices(tmp_path) == []


@pytest.mark.parametrize("name", ["vendor", "device", "class"])
def test_a_device_that_loses_its_ids_is_gone(fake: FakeHost, name: str) -> None:
    (fake.folder_of(NIC) / name).unlink()
    assert NIC not in [each.bdf for each in sysfs.devices(fake.root)]
    with pytest.raises(DeviceNotFound):
        sysfs.device(NIC, fake.root)


def test_a_device_unplugged_between_listing_and_reading_is_skipped(fake: FakeHost) -> None:
    fake.link(fake.root / "bus/pci/devices/0000:05:00.0", fake.folder_of("0000:05:00.0"))
    assert len(sysfs.devices(fake.root)) == 4


@pytest.mark.parametrize("last", ["vendor", "class", "iommu_group", "driver", "sriov_totalvfs"])
def test_a_device_unplugged_while_it_is_read_is_gone(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """The moment is simulated: the device goes away when ``last`` has been asked for."""
    kept = {name: getattr(sysfs, name) for name in ("_number", "_link")}

    def unplugging(read: Callable[[Path], object]) -> Callable[[Path], object]:
        def wrapped(path: Path) -> object:
            value = read(path)
            if path.name == last and path.parent.name == NIC and path.parent.exists():
                fake.unplug(NIC)
            return value

        return wrapped

    for name, read in kept.items():
        monkeypatch.setattr(sysfs, name, unplugging(read))
    assert [each.bdf for each in sysfs.devices(fake.root)] == [PORT, PEER, DISK]


def test_an_attribute_that_cannot_be_read_any_more_counts_as_missing(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENODEV, which the kernel gives where a device goes away after its file was opened."""
    real = Path.read_text

    def read_text(path: Path, *args: str, **options: str) -> str:
        if path.name == "class" and path.parent.name == NIC:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert len(sysfs.devices(fake.root)) == 3


def test_what_is_no_number_counts_as_missing(fake: FakeHost) -> None:
    fake.put(fake.folder_of(NIC) / "numa_node", "none\n")
    assert sysfs.device(NIC, fake.root).numa_node is None


# Groups


def test_members_of_a_group(fake: FakeHost) -> None:
    assert sysfs.group_members(7, fake.root) == (PORT, NIC, PEER)
    assert sysfs.group_members(99, fake.root) == ()


def test_what_keeps_a_group_from_being_used_is_named(fake: FakeHost) -> None:
    assert sysfs.blockers(7, fake.root) == ((NIC, "e1000e"), (PEER, "e1000e"))
    assert sysfs.blockers(99, fake.root) == ()


@pytest.mark.parametrize("driver", [None, "vfio-pci", "mlx5_vfio_pci", "pci-stub", "pcieport"])
def test_drivers_that_leave_dma_alone_do_not_block(fake: FakeHost, driver: str | None) -> None:
    if driver is not None:
        fake.add_driver(driver)
    fake.add_device("0000:05:00.0", driver=driver, group=9)
    assert sysfs.blockers(9, fake.root) == ()


def test_a_bridge_blocks_with_a_driver_that_the_kernel_does_not_trust(fake: FakeHost) -> None:
    fake.add_driver("shpchp")
    fake.add_device("0000:00:12.0", class_code=0x06_0400, driver="shpchp", group=9)
    assert sysfs.blockers(9, fake.root) == (("0000:00:12.0", "shpchp"),)


def test_a_member_need_not_be_a_pci_device(fake: FakeHost) -> None:
    folder = fake.root / "devices/platform/fd800000.dma"
    fake.link(folder / "driver", fake.root / "bus/platform/drivers/dma-pl330")
    fake.link(fake.root / "kernel/iommu_groups/9/devices/fd800000.dma", folder)
    assert sysfs.blockers(9, fake.root) == (("fd800000.dma", "dma-pl330"),)


def test_a_member_that_went_away_does_not_block(fake: FakeHost) -> None:
    fake.link(
        fake.root / "kernel/iommu_groups/9/devices/0000:05:00.0", fake.folder_of("0000:05:00.0")
    )
    assert sysfs.blockers(9, fake.root) == ()


def test_nodes_of_a_bound_device(fake: FakeHost) -> None:
    folder = fake.add_device("0000:05:00.0", driver="vfio-pci", group=9)
    assert sysfs.device_nodes(sysfs.device("5:0.0", fake.root), fake.dev) == (fake.dev / "vfio/9",)
    fake.put(folder / "vfio-dev/vfio0/dev", "511:0\n")
    fake.put(fake.dev / "vfio/noiommu-9", "")
    assert sysfs.device_nodes(sysfs.device("5:0.0", fake.root), fake.dev) == (
        fake.dev / "vfio/noiommu-9",
        fake.dev / "vfio/devices/vfio0",
    )


@pytest.mark.parametrize(("text", "on"), [("Y\n", True), ("N\n", False), (None, False)])
def test_no_iommu_mode(fake: FakeHost, text: str | None, on: bool) -> None:
    if text is not None:
        fake.put(fake.root / "module/vfio/parameters/enable_unsafe_noiommu_mode", text)
    assert sysfs.noiommu(fake.root) == on


# Selectors

SLOT = st.tuples(
    st.integers(0, 0x1_0000), st.integers(0, 0xFF), st.integers(0, 0x1F), st.integers(0, 7)
)
IDS = st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 0xFF_FFFF))
SAME_OR_NOT = st.lists(st.sampled_from(["same", "other", "", "*"]), min_size=4, max_size=4)


def some_device(
    slot: tuple[int, int, int, int] = (0, 3, 0, 0), ids: tuple[int, int, int] = (1, 2, 3)
) -> HostDevice:
    """A device that no host has."""
    bdf = "{:04x}:{:02x}:{:02x}.{}".format(*slot)
    return HostDevice(bdf, ids[0], ids[1], 0, 0, ids[2], 0)


@given(SLOT, SAME_OR_NOT)
def test_a_slot_selector_compares_each_part_that_is_there(
    slot: tuple[int, int, int, int], kinds: list[str]
) -> None:
    texts = {"same": "{:x}", "other": "{:x}", "": "", "*": "*"}
    bits = (0x1, 0x1, 0x1, 0x1)
    parts = [
        texts[kind].format(number ^ bit if kind == "other" else number)
        for kind, number, bit in zip(kinds, slot, bits, strict=True)
    ]
    accepts = sysfs.by_slot("{}:{}:{}.{}".format(*parts))
    assert accepts(some_device(slot)) == ("other" not in kinds)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [PORT, NIC, PEER, DISK]),
        ("*", [PORT, NIC, PEER, DISK]),
        ("0", [NIC, PEER, DISK]),
        ("3:", [NIC, PEER]),
        (".1", [PEER]),
        ("0.1", [PEER]),
        ("3:0.1", [PEER]),
        ("*:*.1", [PEER]),
        ("0:3:0.0", [NIC]),
        ("0000:03:00.0", [NIC]),
        ("::1c", [PORT]),
        ("*:*:1C.*", [PORT]),
        ("1::", []),
        ("0x3:", [NIC, PEER]),
    ],
)
def test_slot_selectors_are_those_of_lspci(fake: FakeHost, text: str, expected: list[str]) -> None:
    found = sysfs.devices(fake.root, [sysfs.by_slot(text)])
    assert [each.bdf for each in found] == expected


@pytest.mark.parametrize(
    "text", ["100:", "20", "0.8", "3:0.0.0", "g:", "1:2:3:4", "-1:", "**:", "0. 0", "80000000::"]
)
def test_a_malformed_slot_selector_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        sysfs.by_slot(text)


@given(IDS, SAME_OR_NOT)
def test_an_id_selector_compares_each_part_that_is_there(
    ids: tuple[int, int, int], kinds: list[str]
) -> None:
    numbers = (ids[0], ids[1], ids[2] >> 8, ids[2] & 0xFF)
    texts = {"same": "{:x}", "other": "{:x}", "": "", "*": "*"}
    parts = [
        texts[kind].format(number ^ 1 if kind == "other" else number)
        for kind, number in zip(kinds, numbers, strict=True)
    ]
    accepts = sysfs.by_id(":".join(parts))
    assert accepts(some_device(ids=ids)) == ("other" not in kinds)


@given(IDS, st.lists(st.booleans(), min_size=4, max_size=4))
def test_x_stands_for_any_digit_of_a_class(ids: tuple[int, int, int], hidden: list[bool]) -> None:
    digits = f"{ids[2] >> 8:04x}"
    pattern = "".join("x" if hide else digit for hide, digit in zip(hidden, digits, strict=True))
    assert sysfs.by_id(f"::{pattern}")(some_device(ids=ids))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":", [PORT, NIC, PEER, DISK]),
        ("8086:", [PORT, NIC, PEER]),
        (":a808", [DISK]),
        ("8086:10d3", [NIC, PEER]),
        ("0x8086:*", [PORT, NIC, PEER]),
        ("::0200", [NIC, PEER]),
        ("::06xx", [PORT]),
        ("::0108:02", [DISK]),
        ("144d:a808:01XX:*", [DISK]),
        ("::200", [NIC, PEER]),
        ("1:1", []),
    ],
)
def test_id_selectors_are_those_of_lspci(fake: FakeHost, text: str, expected: list[str]) -> None:
    found = sysfs.devices(fake.root, [sysfs.by_id(text)])
    assert [each.bdf for each in found] == expected


@pytest.mark.parametrize(
    "text", ["", "8086", "18086:", ":x", "::12345", "::zz", "::0200:123", "1:2:3:4:5", "-1:", "x:"]
)
def test_a_malformed_id_selector_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"hexadecimal|selector"):
        sysfs.by_id(text)


@given(st.text(alphabet="0123456789abfxg:.*- ", max_size=12), st.sampled_from(["slot", "id"]))
@settings(max_examples=300)
def test_any_text_is_a_selector_or_a_value_error(text: str, kind: str) -> None:
    try:
        accepts = sysfs.by_slot(text) if kind == "slot" else sysfs.by_id(text)
    except ValueError:
        return
    assert accepts(some_device()) in (True, False)


def test_several_selectors_all_have_to_accept(fake: FakeHost) -> None:
    found = sysfs.devices(fake.root, [sysfs.by_slot("3:"), sysfs.by_slot(".1")])
    assert [each.bdf for each in found] == [PEER]


# Who uses a device


def test_an_idle_device_has_no_users(fake: FakeHost) -> None:
    fake.add_disk(DISK, "nvme0n1", ["nvme0n1p1"])
    fake.add_interface(NIC, "eth0", up=False)
    assert uses(fake, DISK) == ()
    assert uses(fake, NIC) == ()


def test_an_interface_that_is_up(fake: FakeHost) -> None:
    fake.add_interface(NIC, "eth0", up=True)
    fake.put(fake.root / "class/net/bonding_masters", "\n")
    assert uses(fake, NIC) == ("network interface eth0 is up",)
    assert uses(fake, PEER) == ()


def test_a_mounted_partition_by_its_number(fake: FakeHost) -> None:
    disk = fake.add_disk(DISK, "nvme0n1", ["nvme0n1p1", "nvme0n1p2"])
    number = (disk / "nvme0n1p2/dev").read_text().strip()
    fake.mount("/dev/root", "/mnt/with\\040space", number)
    fake.mount("/dev/root", "/a second time", number)
    assert uses(fake, DISK) == ("nvme0n1p2 is mounted on /mnt/with space",)


def test_a_mounted_disk_by_its_name_as_btrfs_has_numbers_of_its_own(fake: FakeHost) -> None:
    fake.add_disk(DISK, "nvme0n1")
    fake.put(fake.dev / "nvme0n1", "")
    fake.link(fake.dev / "disk/by-uuid/1-2", fake.dev / "nvme0n1")
    fake.mount("/dev/disk/by-uuid/1-2", "/home")
    assert uses(fake, DISK) == ("nvme0n1 is mounted on /home",)


def test_a_swap_partition(fake: FakeHost) -> None:
    fake.add_disk(DISK, "nvme0n1", ["nvme0n1p3"])
    with (fake.proc / "swaps").open("a") as file:
        file.write("/swapfile file 1 0 -2\n/dev/nvme0n1p3 partition 1000 0 -2\n")
    assert uses(fake, DISK) == ("nvme0n1p3 is used as swap",)


def test_a_partition_that_is_part_of_a_mapped_device(fake: FakeHost) -> None:
    disk = fake.add_disk(DISK, "nvme0n1", ["nvme0n1p1"])
    for name in ("dm-0", "dm-1"):
        fake.add_block(fake.root / "devices/virtual/block" / name)
    fake.link(disk / "nvme0n1p1/holders/dm-0", fake.root / "devices/virtual/block/dm-0")
    assert uses(fake, DISK) == ("nvme0n1p1 is part of dm-0",)
    fake.link(
        fake.root / "devices/virtual/block/dm-0/holders/dm-1",
        fake.root / "devices/virtual/block/dm-1",
    )
    fake.put(fake.dev / "dm-1", "")
    fake.link(fake.dev / "mapper/vg-root", fake.dev / "dm-1")
    fake.mount("/dev/mapper/vg-root", "/")
    assert uses(fake, DISK) == (
        "nvme0n1p1 is part of dm-0 (dm-0 is part of dm-1 (dm-1 is mounted on /))",
    )


def test_a_disk_of_a_subsystem_belongs_to_each_of_its_controllers(fake: FakeHost) -> None:
    """With several paths the disk hangs below the NVMe subsystem, which links to controllers."""
    subsystem = fake.root / "devices/virtual/nvme-subsystem/nvme-subsys0"
    disk = fake.add_block(subsystem / "nvme0n1", ["nvme0n1p1"])
    (fake.folder_of(DISK) / "nvme/nvme0").mkdir(parents=True)
    fake.link(subsystem / "nvme0", fake.folder_of(DISK) / "nvme/nvme0")
    fake.mount("/dev/root", "/", (disk / "nvme0n1p1/dev").read_text().strip())
    assert uses(fake, DISK) == ("nvme0n1p1 is mounted on /",)
    assert uses(fake, NIC) == ()


def refuse_to_open(node: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Opening a node fails, which plain files do not; the kernel does it for claimed devices."""
    real = os.open

    def refusing(path: Path, flags: int, *rest: int) -> int:
        if path == node:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)


def test_a_disk_that_somebody_opened_exclusively(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add_disk(DISK, "nvme0n1")
    fake.put(fake.dev / "nvme0n1", "")
    refuse_to_open(fake.dev / "nvme0n1", monkeypatch, errno.EBUSY)
    assert uses(fake, DISK) == ("nvme0n1 is opened exclusively by somebody",)


@pytest.mark.parametrize(
    ("node", "number", "used"),
    [
        ("vfio/9", errno.EBUSY, True),
        ("vfio/9", errno.EACCES, False),
        ("vfio/devices/vfio0", errno.EBUSY, False),  # the group's node tells of it as well
    ],
)
def test_a_group_that_a_process_has_open(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch, node: str, number: int, used: bool
) -> None:
    folder = fake.add_device("0000:05:00.0", driver="vfio-pci", group=9)
    fake.put(folder / "vfio-dev/vfio0/dev", "511:0\n")
    refuse_to_open(fake.dev / node, monkeypatch, number)
    assert uses(fake, "5:0.0") == ((f"a process has {fake.dev}/{node} open",) if used else ())


def test_virtual_functions_that_are_enabled(fake: FakeHost) -> None:
    fake.add_device("0000:05:00.0", driver="e1000e", sriov_numvfs="2")
    assert uses(fake, "5:0.0") == ("virtual functions of it are enabled: 2",)


def test_without_proc_nothing_is_known_to_be_mounted(fake: FakeHost) -> None:
    fake.add_disk(DISK, "nvme0n1")
    for name in ("self/mountinfo", "swaps"):
        (fake.proc / name).unlink()
    assert uses(fake, DISK) == ()


def test_this_host_can_be_read() -> None:
    """No fake: whatever devices the machine of the tests has, also none."""
    for found in sysfs.devices():
        assert sysfs.device(found.bdf) == found


# The verb


def listed(fake: FakeHost, *words: str) -> int:
    """``pyvfio list`` on the fake host."""
    return run_verb(list_devices, fake.host, "list", *words)


def test_list_prints_a_line_for_each_device(
    fake: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.add_device("0000:05:00.0", ids=(0x1234, 0x11E8), class_code=0xFF_0000)
    assert listed(fake) == 0
    printed = capsys.readouterr()
    lines = [line.split(maxsplit=5) for line in printed.out.splitlines()[3:]]
    assert [line[:5] for line in lines] == [
        [PORT, "8086:a338", "pcieport", "7", "no"],
        [NIC, "8086:10d3", "e1000e", "7", "no"],
        [PEER, "8086:10d3", "e1000e", "7", "no"],
        [DISK, "144d:a808", "nvme", "8", "no"],
        ["0000:05:00.0", "1234:11e8", "-", "-", "-"],
    ]
    assert lines[-1][5].endswith("QEMU edu educational device")
    assert printed.err == ""


def test_list_takes_the_selectors_of_lspci(
    fake: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(fake, "-s", "3:", "-d", "::02xx", "-s", ".1") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:]] == [PEER]
    assert listed(fake, "-s", "3:0.0", "-d", "8086:") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:]] == [NIC]
    assert listed(fake, "-d", "1:") == 0
    assert capsys.readouterr().out == "PCI devices: none\n"


@pytest.mark.parametrize("words", [("-s", "x"), ("-d", "8086")])
def test_list_refuses_a_malformed_selector(
    fake: FakeHost, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        listed(fake, *words)
    assert caught.value.code == 2
    assert repr(words[1]) in capsys.readouterr().err


def test_list_as_json_says_all_to_scripts(
    fake: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(fake, "-o", "json") == 0
    records = {record["bdf"]: record for record in json.loads(capsys.readouterr().out)}
    assert list(records) == [PORT, NIC, PEER, DISK]
    nic = records[NIC]
    assert (nic["vendor"], nic["class"], nic["class_name"]) == (
        0x8086,
        0x02_0000,
        "Network controller",
    )
    assert (nic["iommu_group"], nic["viable"]) == (7, False)
    assert nic["blockers"] == [[NIC, "e1000e"], [PEER, "e1000e"]]


def test_list_verbose_says_why_a_group_is_not_viable(
    fake: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fake.add_device(
        "0000:05:00.0",
        driver="vfio-pci",
        group=9,
        numa_node="1",
        reset_method="flr bus",
        sriov_totalvfs="8",
    )
    fake.link(folder / "physfn", fake.folder_of(NIC))
    assert listed(fake, "-v", "-s", "3:0.0") == 0
    printed = capsys.readouterr().out
    assert f"IOMMU group 7, with {PORT}, {PEER}" in printed
    assert f"not viable: {NIC} is bound to e1000e; {PEER} is bound to e1000e" in printed
    assert listed(fake, "-v", "-s", "5:") == 0
    printed = capsys.readouterr().out
    for expected in (
        "IOMMU group 9, with no other device\n  viable\n",
        f"nodes {fake.dev}/vfio/9",
        "NUMA node 1",
        "reset by flr, bus",
        f"virtual function of {NIC}",
        "can have 8 virtual functions",
    ):
        assert expected in printed


@pytest.mark.parametrize("words", [(), ("-v",), ("-o", "json")])
def test_list_says_what_to_do_where_there_is_no_group_at_all(
    tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeHost(tmp_path)
    fake.add_device(NIC, driver="e1000e")
    assert listed(fake, *words) == 0
    printed = capsys.readouterr()
    assert NIC in printed.out
    assert "pyvfio doctor" in printed.err
