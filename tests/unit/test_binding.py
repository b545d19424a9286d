# SPDX-License-Identifier: BSD-3-Clause
"""Binding, unbinding and restoring: all or nothing, and never without a way back.

The host is made of plain files.  Simulated is what the kernel does when an attribute is written
(:mod:`tests.unit.fake_sysfs` says how); failures are injected there as well.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio.backends.ioctl import binding, sysfs
from pyvfio.cli import bind as verbs
from pyvfio.errors import AccessDenied, BindError, DeviceBusy, DeviceNotFound, OperationError
from tests.unit.fake_sysfs import FakeHost, Snapshot, run_verb

NIC, PEER, PORT, ISA = "0000:03:00.0", "0000:03:00.1", "0000:00:1c.0", "0000:00:1f.0"
DISK, FREE = "0000:04:00.0", "0000:05:00.0"
EVERY = (NIC, PEER, PORT, ISA, DISK, FREE)

Change = Callable[..., list[str]]


def make(folder: Path) -> FakeHost:
    """A network card of two functions in a group with two bridges, a disk, an idle device."""
    fake = FakeHost(folder)
    fake.add_device(NIC, driver="e1000e", group=7)
    fake.add_device(PEER, driver="e1000e", group=7, override="e1000e")
    fake.add_device(PORT, class_code=0x06_0400, driver="pcieport", group=7)
    fake.add_device(ISA, class_code=0x06_0100, group=7)
    fake.add_device(DISK, class_code=0x01_0802, driver="nvme", group=8)
    fake.add_device(FREE, group=9)
    fake.add_driver("uio_pci_generic")
    return fake


@pytest.fixture
def fake(tmp_path: Path) -> FakeHost:
    return make(tmp_path)


def record(fake: FakeHost, bdf: str) -> Path:
    """Where the binding of a device before its first change is kept."""
    return fake.host.state / f"{bdf}.json"


def device_of(fake: FakeHost, bdf: str) -> sysfs.HostDevice:
    return sysfs.device(bdf, fake.root)


# Binding


def test_bind_overrides_unbinds_and_probes(fake: FakeHost) -> None:
    lines = binding.bind(NIC, host=fake.host)
    assert fake.writes == [
        f"vfio-pci > bus/pci/devices/{NIC}/driver_override",
        f"{NIC} > bus/pci/drivers/e1000e/unbind",
        f"{NIC} > bus/pci/drivers_probe",
    ]
    assert lines == [f"echo {write}".replace("> ", f"> {fake.root}/") for write in fake.writes]
    assert (fake.driver(NIC), fake.override(NIC)) == ("vfio-pci", "vfio-pci")
    assert fake.driver(PEER) == "e1000e"


def test_a_device_without_a_driver_has_nothing_to_unbind(fake: FakeHost) -> None:
    assert len(binding.bind("5:0.0", host=fake.host)) == 2
    assert fake.driver(FREE) == "vfio-pci"


def test_another_driver_can_be_named(fake: FakeHost) -> None:
    binding.bind(NIC, "uio_pci_generic", host=fake.host)
    assert (fake.driver(NIC), fake.override(NIC)) == ("uio_pci_generic", "uio_pci_generic")


@pytest.mark.parametrize("driver", ["", "..", "../e1000e", "a/b", "a b", "a\n", "-x"])
def test_what_is_no_name_of_a_driver_is_a_value_error(fake: FakeHost, driver: str) -> None:
    with pytest.raises(ValueError, match="driver"):
        binding.bind(NIC, driver, host=fake.host)
    assert fake.writes == []


def test_bind_again_writes_nothing(fake: FakeHost) -> None:
    binding.bind(NIC, host=fake.host)
    before = fake.snapshot()
    assert binding.bind(NIC, host=fake.host) == []
    assert fake.snapshot() == before


def test_what_is_bound_by_hand_is_left_alone_and_not_recorded(fake: FakeHost) -> None:
    fake.add_device("0000:06:00.0", driver="vfio-pci", group=10)
    assert binding.bind("6:0.0", host=fake.host) == []
    assert not record(fake, "0000:06:00.0").exists()


def test_several_devices_are_bound_at_once_each_once(fake: FakeHost) -> None:
    binding.bind([NIC, FREE, "03:00.0"], host=fake.host)
    assert (fake.driver(NIC), fake.driver(FREE)) == ("vfio-pci", "vfio-pci")
    assert len(fake.writes) == 5


def test_group_binds_the_endpoints_and_leaves_bridges(fake: FakeHost) -> None:
    binding.bind(NIC, group=True, host=fake.host)
    assert [fake.driver(bdf) for bdf in EVERY] == [
        "vfio-pci", "vfio-pci", "pcieport", None, "nvme", None
    ]  # fmt: skip
    assert sysfs.blockers(7, fake.root) == ()


def test_group_of_a_device_that_has_none_is_the_device(fake: FakeHost) -> None:
    fake.add_device("0000:06:00.0", driver="e1000e")
    binding.bind("6:0.0", "uio_pci_generic", group=True, host=fake.host)
    assert fake.driver("0000:06:00.0") == "uio_pci_generic"


def test_members_that_are_no_pci_devices_or_gone_are_passed_over(fake: FakeHost) -> None:
    members = fake.root / "kernel/iommu_groups/7/devices"
    fake.link(members / "fd800000.dma", fake.root / "devices/platform/fd800000.dma")
    fake.link(members / "0000:03:00.7", fake.folder_of("0000:03:00.7"))
    binding.bind(NIC, group=True, host=fake.host)
    assert fake.driver(PEER) == "vfio-pci"


# Refusals, before anything is written


def refused(fake: FakeHost, kind: type[OperationError] | type[DeviceBusy], **options: Any) -> Any:
    """The error of a bind that must not change anything."""
    before = fake.snapshot()
    with pytest.raises(kind) as caught:
        binding.bind(options.pop("bdf", NIC), host=fake.host, **options)
    assert fake.snapshot() == before
    assert fake.writes == []
    return caught.value


def test_a_driver_that_is_not_loaded(fake: FakeHost) -> None:
    (fake.root / "bus/pci/drivers/vfio-pci/unbind").unlink()
    (fake.root / "bus/pci/drivers/vfio-pci").rmdir()
    error = refused(fake, BindError)
    assert (error.op, error.uri, error.hint) == ("bind", NIC, "modprobe vfio-pci")


def test_a_bridge(fake: FakeHost) -> None:
    assert "bridge" in refused(fake, BindError, bdf=PORT).reason


def test_a_device_without_an_iommu_group(fake: FakeHost) -> None:
    fake.add_device("0000:06:00.0", driver="e1000e")
    error = refused(fake, BindError, bdf="0000:06:00.0")
    assert "IOMMU group" in error.reason
    assert "pyvfio doctor" in error.hint


def test_no_group_is_no_obstacle_in_the_no_iommu_mode(fake: FakeHost) -> None:
    fake.add_device("0000:06:00.0", driver="e1000e")
    fake.put(fake.root / "module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
    binding.bind("6:0.0", host=fake.host)
    assert fake.driver("0000:06:00.0") == "vfio-pci"


def test_one_that_is_not_there_keeps_the_others_from_being_bound(fake: FakeHost) -> None:
    error = refused(fake, DeviceNotFound, bdf=[NIC, "09:00.0"])  # type: ignore[arg-type]
    assert error.uri == "0000:09:00.0"


@pytest.mark.parametrize("change", [binding.bind, binding.unbind])
def test_a_mounted_disk_is_in_use(fake: FakeHost, change: Change) -> None:
    fake.add_disk(DISK, "nvme0n1", ["nvme0n1p1"])
    fake.mount("/dev/nvme0n1p1", "/")
    before = fake.snapshot()
    with pytest.raises(DeviceBusy) as caught:
        change(DISK, host=fake.host)
    assert fake.snapshot() == before
    assert caught.value.reason == "in use: nvme0n1p1 is mounted on /"
    assert "force" in caught.value.hint
    change(DISK, force=True, host=fake.host)
    assert fake.driver(DISK) != "nvme"


def test_an_interface_that_is_up_keeps_its_whole_group(fake: FakeHost) -> None:
    fake.add_interface(PEER, "eth1", up=True)
    error = refused(fake, DeviceBusy, group=True)
    assert (error.uri, error.reason) == (PEER, "in use: network interface eth1 is up")
    binding.bind(NIC, host=fake.host)
    assert fake.driver(NIC) == "vfio-pci"


@pytest.mark.parametrize("change", [binding.unbind, binding.restore])
def test_a_device_that_a_process_drives_is_in_use(
    fake: FakeHost, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening the group's node is refused as the kernel does for a group that is open."""
    binding.bind(NIC, host=fake.host)
    node, real = fake.dev / "vfio/7", os.open

    def refusing(path: Path, flags: int, *rest: int) -> int:
        if path == node:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(DeviceBusy, match="vfio/7 open"):
        change(NIC, host=fake.host)
    change(NIC, force=True, host=fake.host)
    assert fake.driver(NIC) != "vfio-pci"


# Unbinding and restoring


def test_restore_leaves_everything_as_it_was(fake: FakeHost) -> None:
    before = fake.snapshot()
    binding.bind([NIC, DISK, FREE], group=True, host=fake.host)
    binding.restore([NIC, DISK, FREE], group=True, host=fake.host)
    assert fake.snapshot() == before
    assert fake.override(PEER) == "e1000e"


def test_restore_names_the_driver_to_the_kernel(fake: FakeHost) -> None:
    """Another driver than the one it had would take the device, were it free to."""
    fake.native[DISK] = "e1000e"
    binding.bind(DISK, host=fake.host)
    binding.restore(DISK, host=fake.host)
    assert (fake.driver(DISK), fake.override(DISK)) == ("nvme", "(null)")


def test_the_first_driver_is_remembered_through_further_binds(fake: FakeHost) -> None:
    before = fake.snapshot()
    for driver in ("uio_pci_generic", "vfio-pci", "uio_pci_generic"):
        binding.bind(NIC, driver, host=fake.host)
    binding.unbind(NIC, host=fake.host)
    binding.bind(NIC, host=fake.host)
    binding.restore(NIC, host=fake.host)
    assert fake.snapshot() == before


def test_restore_again_changes_nothing(fake: FakeHost) -> None:
    binding.bind(NIC, host=fake.host)
    binding.restore(NIC, host=fake.host)
    before = fake.snapshot()
    assert binding.restore([NIC, FREE], host=fake.host) == []
    assert fake.snapshot() == before


def test_restore_of_what_was_put_back_by_hand_forgets_it(fake: FakeHost) -> None:
    before = fake.snapshot()
    binding.bind(NIC, host=fake.host)
    kept = record(fake, NIC).read_text()
    binding.restore(NIC, host=fake.host)
    record(fake, NIC).write_text(kept)
    assert binding.restore(NIC, host=fake.host) == []
    assert fake.snapshot() == before


def test_nothing_to_restore_from_says_so(fake: FakeHost) -> None:
    fake.add_device("0000:06:00.0", driver="vfio-pci", group=7)
    with pytest.raises(BindError, match="nothing is recorded") as caught:
        binding.restore("6:0.0", host=fake.host)
    assert "--driver" in caught.value.hint
    binding.bind(NIC, host=fake.host)
    binding.restore(NIC, group=True, host=fake.host)
    assert (fake.driver(NIC), fake.driver("0000:06:00.0")) == ("e1000e", "vfio-pci")


def test_unbind_leaves_no_driver_and_no_override_of_ours(fake: FakeHost) -> None:
    binding.bind([NIC, PEER], host=fake.host)
    binding.unbind([NIC, PEER], host=fake.host)
    assert (fake.driver(NIC), fake.override(NIC)) == (None, "(null)")
    assert (fake.driver(PEER), fake.override(PEER)) == (None, "e1000e")


def test_unbind_of_what_has_no_driver_is_not_worth_a_record(fake: FakeHost) -> None:
    assert binding.unbind(FREE, host=fake.host) == []
    assert not record(fake, FREE).exists()


def test_unbind_is_undone_by_restore_too(fake: FakeHost) -> None:
    before = fake.snapshot()
    binding.unbind(NIC, group=True, host=fake.host)
    assert (fake.driver(NIC), fake.driver(PEER), fake.driver(PORT)) == (None, None, "pcieport")
    assert binding.unbind(NIC, group=True, host=fake.host) == []
    binding.restore(NIC, group=True, host=fake.host)
    assert fake.snapshot() == before


# Dry run


@pytest.mark.parametrize("change", [binding.bind, binding.unbind, binding.restore])
def test_dry_run_says_what_is_done_and_writes_nothing(fake: FakeHost, change: Change) -> None:
    if change is binding.restore:
        binding.bind(NIC, group=True, host=fake.host)
    before, writes = fake.snapshot(), len(fake.writes)
    lines = change(NIC, group=True, dry_run=True, host=fake.host)
    assert fake.snapshot() == before
    assert len(fake.writes) == writes
    assert lines == change(NIC, group=True, host=fake.host)
    assert len(lines) == len(fake.writes) - writes


# Undo


def prepare(folder: Path, change: Change) -> tuple[FakeHost, Snapshot]:
    """A host for a change of a group to fail on, and what it looks like."""
    fake = make(folder)
    if change is binding.restore:
        binding.bind(NIC, group=True, host=fake.host)
        fake.writes.clear()
    return fake, fake.snapshot()


@pytest.mark.parametrize("change", [binding.bind, binding.unbind, binding.restore])
def test_a_failure_at_any_write_leaves_all_as_it_was(tmp_path: Path, change: Change) -> None:
    """The whole tree is compared, with the records, for a change of two devices."""
    fake, _ = prepare(tmp_path / "count", change)
    total = len(change(NIC, group=True, dry_run=True, host=fake.host))
    assert total >= 2
    for number in range(total):
        fake, before = prepare(tmp_path / str(number), change)
        fake.fail = {number}
        with pytest.raises(BindError) as caught:
            change(NIC, group=True, host=fake.host)
        assert fake.snapshot() == before
        assert caught.value.op == change.__name__
        assert caught.value.errno == errno.EIO
        assert "put back" not in caught.value.hint
        assert len(fake.writes) > number


@pytest.mark.parametrize("change", [binding.bind, binding.unbind, binding.restore])
def test_an_interrupt_at_any_write_leaves_all_as_it_was(tmp_path: Path, change: Change) -> None:
    fake, _ = prepare(tmp_path / "count", change)
    total = len(change(NIC, group=True, dry_run=True, host=fake.host))
    for number in range(total):
        fake, before = prepare(tmp_path / str(number), change)
        writes: list[Path] = []

        def write(
            path: Path,
            text: str,
            fake: FakeHost = fake,
            writes: list[Path] = writes,
            number: int = number,
        ) -> None:
            writes.append(path)
            fake.write(path, text)
            if len(writes) == number + 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            change(NIC, group=True, host=replace(fake.host, write=write))
        assert fake.snapshot() == before


def test_what_was_changed_last_is_put_back_first(fake: FakeHost) -> None:
    fake.fail = {8}
    with pytest.raises(BindError):
        binding.bind([NIC, PEER, DISK], host=fake.host)
    back = [write.split(" >")[0] for write in fake.writes if "drivers_probe" in write]
    assert back == [NIC, PEER, DISK, DISK, PEER, NIC]


def test_a_driver_that_refuses_is_noticed_although_the_probe_was_written(fake: FakeHost) -> None:
    before = fake.snapshot()
    fake.refusing.add("vfio-pci")
    with pytest.raises(BindError, match="vfio-pci did not take it") as caught:
        binding.bind(NIC, host=fake.host)
    assert "dmesg" in caught.value.hint
    assert fake.snapshot() == before


def test_a_driver_that_does_not_want_its_device_back_leaves_it_bound(fake: FakeHost) -> None:
    binding.bind(NIC, host=fake.host)
    before = fake.snapshot()
    fake.refusing.add("e1000e")
    with pytest.raises(BindError, match="e1000e did not take it"):
        binding.restore(NIC, host=fake.host)
    assert fake.snapshot() == before


def test_a_driver_that_takes_its_device_again_is_noticed(fake: FakeHost) -> None:
    def write(path: Path, text: str) -> None:
        fake.write(path, text)
        if path.name == "unbind":
            fake.write(fake.root / "bus/pci/drivers_probe", text)

    with pytest.raises(BindError, match="e1000e took it again"):
        binding.unbind(NIC, host=replace(fake.host, write=write))
    assert fake.driver(NIC) == "e1000e"


def test_what_cannot_be_put_back_is_said_and_stays_recorded(fake: FakeHost) -> None:
    fake.fail = range(2, 100)
    with pytest.raises(BindError) as caught:
        binding.bind(NIC, host=fake.host)
    assert f"{NIC} could not be put back: bind on {NIC}: echo e1000e" in caught.value.hint
    assert fake.driver(NIC) is None
    fake.fail = ()
    binding.restore(NIC, host=fake.host)
    assert (fake.driver(NIC), fake.override(NIC)) == ("e1000e", "(null)")


def test_a_device_that_is_unplugged_meanwhile_is_not_found(fake: FakeHost) -> None:
    before = fake.snapshot()

    def write(path: Path, text: str) -> None:
        if path.name == "drivers_probe" and text.strip() == PEER:
            fake.unplug(PEER)
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        fake.write(path, text)

    with pytest.raises(DeviceNotFound) as caught:
        binding.bind([NIC, PEER], host=replace(fake.host, write=write))
    assert (caught.value.uri, caught.value.reason) == (PEER, "the device went away")
    assert caught.value.hint == ""
    assert fake.driver(NIC) == "e1000e"
    assert {path for path in before if NIC in path} == {p for p in fake.snapshot() if NIC in p}
    assert not record(fake, PEER).exists()


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [
        (errno.EACCES, AccessDenied, "run it as root"),
        (errno.EPERM, AccessDenied, "run it as root"),
        (errno.EROFS, BindError, "container"),
        (errno.EINVAL, BindError, ""),
    ],
)
def test_what_the_kernel_says_becomes_an_error_with_operation_and_device(
    fake: FakeHost, number: int, kind: type[OSError], hint: str
) -> None:
    fake.fail, fake.error = {0}, number
    with pytest.raises(kind) as caught:
        binding.bind(NIC, host=fake.host)
    text = str(caught.value)
    assert text.startswith(f"bind on {NIC}: echo vfio-pci > {fake.root}/bus/pci/devices/{NIC}/")
    assert errno.errorcode[number] in text
    assert hint in text


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["bind", "bind uio_pci_generic", "unbind", "restore"]),
        st.sets(st.sampled_from([NIC, PEER, DISK, FREE]), min_size=1),
        st.booleans(),
        st.none() | st.integers(0, 6),
    ),
    max_size=8,
)


@given(STEPS)
@settings(deadline=None, max_examples=60)
def test_after_any_changes_and_failures_restore_leads_back(
    steps: list[tuple[str, set[str], bool, int | None]],
) -> None:
    """Whatever was done before, with one write of each step failing or none."""
    with tempfile.TemporaryDirectory() as folder:
        fake = make(Path(folder))
        first = fake.snapshot()
        for words, bdfs, group, failing in steps:
            op, *driver = words.split()
            before = fake.snapshot()
            fake.fail = () if failing is None else {len(fake.writes) + failing}
            try:
                getattr(binding, op)(sorted(bdfs), *driver, group=group, host=fake.host)
            except BindError:
                assert fake.snapshot() == before
        fake.fail = ()
        binding.restore([NIC, PEER, DISK, FREE], host=fake.host)
        assert fake.snapshot() == first


# Records


def test_the_record_says_what_the_device_was(fake: FakeHost) -> None:
    binding.bind(PEER, host=fake.host)
    assert json.loads(record(fake, PEER).read_text()) == {
        "driver": "e1000e",
        "override": "e1000e",
        "vendor": 0x8086,
        "device": 0x10D3,
    }
    assert os.listdir(fake.host.state) == [f"{PEER}.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "null", "{}", '{"driver": 1, "override": null, "vendor": 32902,'
     ' "device": 4307}', '{"driver": "nvme", "override": null, "vendor": 1, "device": 2}'],
)  # fmt: skip
def test_a_record_that_is_damaged_or_of_another_device_is_none(fake: FakeHost, text: str) -> None:
    fake.put(record(fake, NIC), text)
    assert binding.recall(device_of(fake, NIC), fake.host) is None
    binding.bind(NIC, host=fake.host)
    assert binding.recall(device_of(fake, NIC), fake.host) == ("e1000e", None)


def test_nothing_is_changed_where_it_cannot_be_recorded(fake: FakeHost) -> None:
    fake.put(fake.host.state, "a file where the folder should be")
    before = fake.snapshot()
    with pytest.raises(BindError, match="record in"):
        binding.bind([NIC, DISK], host=fake.host)
    assert fake.writes == []
    assert fake.snapshot() == before


def test_an_unfinished_record_is_removed(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = fake.snapshot()
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BindError, match="No space left"):
        binding.bind(NIC, host=fake.host)
    assert fake.snapshot() == before


def test_a_record_that_cannot_be_removed_does_not_undo_the_restore(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    binding.bind(NIC, host=fake.host)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "unlink", refuse)
    with monkeypatch.context() as allowed:
        allowed.setattr(FakeHost, "_detach", lambda self, bdf, _: _remove_links(self, bdf))
        binding.restore(NIC, host=fake.host)
    assert fake.driver(NIC) == "e1000e"
    assert "cannot be removed" in caplog.text


def _remove_links(fake: FakeHost, bdf: str) -> None:
    driver = fake.driver(bdf)
    os.remove(fake.folder_of(bdf) / "driver")
    os.remove(fake.root / f"bus/pci/drivers/{driver}" / bdf)


# Device nodes


def test_the_node_is_given_to_a_user_and_a_group(fake: FakeHost) -> None:
    """To those who run the tests, as nobody else may be had without being root."""
    user, group = os.geteuid(), os.getegid()
    lines = binding.bind(NIC, owner=user, owner_group=group, host=fake.host)
    node = fake.dev / "vfio/7"
    assert lines[-2:] == [f"chown {user}:{group} {node}", f"chmod 660 {node}"]
    assert node.stat().st_mode & 0o777 == 0o660


@pytest.mark.parametrize(
    ("options", "commands"),
    [
        ({"owner": 1000}, ["chown 1000 {}"]),
        ({"owner_group": 50}, ["chown :50 {}", "chmod 660 {}"]),
        ({"owner": 0, "owner_group": 0}, ["chown 0:0 {}", "chmod 660 {}"]),
    ],
)
def test_dry_run_shows_who_gets_the_node(
    fake: FakeHost, options: dict[str, Any], commands: list[str]
) -> None:
    lines = binding.bind(NIC, dry_run=True, host=fake.host, **options)
    assert lines[3:] == [command.format(fake.dev / "vfio/7") for command in commands]


def test_the_node_of_what_is_bound_already_is_handed_over_too(fake: FakeHost) -> None:
    binding.bind(NIC, host=fake.host)
    lines = binding.bind(NIC, owner=os.geteuid(), host=fake.host)
    assert lines == [f"chown {os.geteuid()} {fake.dev}/vfio/7"]


def test_a_node_that_may_not_be_handed_over_undoes_the_bind(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    before = fake.snapshot()
    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(AccessDenied, match="chown"):
        binding.bind(NIC, group=True, owner=1000, host=fake.host)
    assert fake.snapshot() == before


def test_a_node_that_appears_late_is_waited_for(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node is made by the fake while it is being waited for, as udev would."""
    binding.bind(NIC, host=fake.host)
    node = fake.dev / "vfio/7"
    node.unlink()
    monkeypatch.setattr(time, "sleep", lambda _: fake.put(node, ""))
    binding.bind(NIC, owner=os.geteuid(), host=fake.host)
    assert node.exists()


def test_a_node_that_never_appears_is_an_error(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    binding.bind(NIC, host=fake.host)
    (fake.dev / "vfio/7").unlink()
    monkeypatch.setattr(binding, "NODE_SECONDS", 0.02)
    with pytest.raises(BindError, match="ENOENT"):
        binding.bind(NIC, owner=os.geteuid(), host=fake.host)


# One write


def test_an_attribute_is_written_as_it_is(tmp_path: Path) -> None:
    """No simulation: the function that writes to sysfs, on a file."""
    path = tmp_path / "driver_override"
    path.write_text("")
    binding.write_attribute(path, "vfio-pci\n")
    assert path.read_text() == "vfio-pci\n"


def test_an_attribute_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        binding.write_attribute(tmp_path / "driver_override", "vfio-pci\n")
    assert list(tmp_path.iterdir()) == []


# The verbs


def test_verbs_say_what_the_devices_have_now(
    fake: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(verbs, fake.host, "bind", "3:0.0", "--group") == 0
    node = fake.dev / "vfio/7"
    assert capsys.readouterr() == (
        f"{NIC}: driver vfio-pci, {node}\n{PEER}: driver vfio-pci, {node}\n",
        "",
    )
    assert run_verb(verbs, fake.host, "unbind", "3:0.0") == 0
    assert capsys.readouterr() == (f"{NIC}: driver none\n", "")
    assert run_verb(verbs, fake.host, "restore", NIC, PEER) == 0
    assert capsys.readouterr() == (f"{NIC}: driver e1000e\n{PEER}: driver e1000e\n", "")


def test_bind_warns_of_a_group_that_is_not_viable_yet(
    fake: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(verbs, fake.host, "bind", NIC) == 0
    assert capsys.readouterr().err == (
        f"pyvfio: IOMMU group 7 is not viable: {PEER} is bound to e1000e\n"
        f"hint: pyvfio bind {PEER}\n"
    )
    assert run_verb(verbs, fake.host, "bind", DISK, "--driver", "uio_pci_generic") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("verb", ["bind", "unbind"])
def test_dry_run_prints_the_commands(
    fake: FakeHost, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(verbs, fake.host, verb, DISK, "--dry-run") == 0
    printed = capsys.readouterr().out.splitlines()
    assert f"echo {DISK} > {fake.root}/bus/pci/drivers/nvme/unbind" in printed
    assert fake.writes == []
    assert run_verb(verbs, fake.host, "restore", DISK, "--dry-run") == 0
    assert capsys.readouterr().out == "nothing to do\n"


def test_verbose_shows_each_write(fake: FakeHost, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run_verb(verbs, fake.host, "bind", "-v", DISK, "-U", str(os.geteuid()))
    assert caplog.messages == [
        f"echo vfio-pci > {fake.root}/bus/pci/devices/{DISK}/driver_override",
        f"echo {DISK} > {fake.root}/bus/pci/drivers/nvme/unbind",
        f"echo {DISK} > {fake.root}/bus/pci/drivers_probe",
        f"chown {os.geteuid()} {fake.dev}/vfio/8",
    ]


def test_users_may_be_given_by_name(fake: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(verbs, fake.host, "bind", DISK, "--dry-run", "-U", "root", "-G", "root") == 0
    assert f"chown 0:0 {fake.dev}/vfio/8" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [("3:0",), (), (NIC, "-U", "nobody-of-that-name"), (NIC, "-G", "nobody-of-that-name")],
)
def test_bad_arguments_are_a_usage_error(
    fake: FakeHost, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_verb(verbs, fake.host, "bind", *words)
    assert caught.value.code == 2
    assert "pyvfio bind: error: " in capsys.readouterr().err
    assert fake.writes == []
