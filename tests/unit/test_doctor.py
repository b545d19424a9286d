# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio doctor``: each check on a host that has what is needed, and on hosts that lack it.

The hosts are folders of plain files; limits of this process are replaced where a check asks for
them.
"""

from __future__ import annotations

import json
import os
import platform
import resource
from pathlib import Path

import pytest

from pyvfio.cli import doctor
from pyvfio.cli.doctor import Check, Verdict
from tests.unit.fake_sysfs import FakeHost, run_verb

OK, WARN, FAIL = Verdict.OK, Verdict.WARN, Verdict.FAIL
EDU, PEER = "0000:00:04.0", "0000:00:04.1"
MIB = 1 << 20


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A host on which everything is as it should be, on a 64-bit PC."""
    fake = FakeHost(tmp_path)
    fake.put(fake.root / "class/iommu/dmar0/device", "")
    fake.add_device(EDU, driver="vfio-pci", group=3)
    for name in ("vfio", "vfio_iommu_type1", "vfio_pci"):
        fake.put(fake.root / "module" / name / "initstate", "live\n")
    fake.put(fake.dev / "vfio/vfio", "")
    fake.put(fake.proc / "interrupts", " 24:  0  IR-PCI-MSI-0000:00:04.0  0-edge  x\n")
    fake.put(fake.proc / "self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return fake


def check(fake: FakeHost, name: str) -> Check:
    """One check out of all."""
    (found,) = (each for each in doctor.checks(fake.host) if each.name == name)
    return found


def no_access(monkeypatch: pytest.MonkeyPatch, *nodes: Path) -> None:
    """Nodes that this user may not open; root, as whom tests may run, could open any file."""
    monkeypatch.setattr(os, "access", lambda path, _: path not in nodes)


# The whole


def test_a_host_that_has_everything_passes(
    fake: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(doctor, fake.host, "doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert all(line.startswith("ok ") for line in lines)


def test_a_host_that_has_nothing_is_told_what_mends_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeHost(tmp_path)
    (fake.root / "bus/pci/drivers/vfio-pci").rename(tmp_path / "away")
    assert run_verb(doctor, fake.host, "doctor") == 3
    lines = capsys.readouterr().out.splitlines()
    failed = [number for number, line in enumerate(lines) if line.startswith("FAIL")]
    assert [lines[number].split()[1:3] for number in failed[:5]] == [
        ["IOMMU", "none,"],
        ["IOMMU", "groups"],
        ["module", "vfio"],
        ["module", "vfio_iommu_type1"],
        ["module", "vfio_pci"],
    ]
    assert [lines[number].split()[1] for number in failed[5:]] == [f"{tmp_path}/dev/vfio/vfio"]
    assert all(lines[number + 1].strip().startswith("mend: ") for number in failed)


def test_a_host_without_files_at_all_is_judged_too(fake: FakeHost) -> None:
    fake.folder.rename(fake.folder.with_name("away"))
    assert run_verb(doctor, fake.host, "doctor") == 3


def test_json_says_the_same_to_scripts(fake: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    (fake.root / "module/vfio_pci/initstate").unlink()
    (fake.root / "module/vfio_pci").rmdir()
    (fake.root / "class/iommu/dmar0/device").unlink()
    (fake.root / "class/iommu/dmar0").rmdir()
    assert run_verb(doctor, fake.host, "doctor", "-o", "json") == 3
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert (found["IOMMU"]["verdict"], found["module vfio_pci"]["verdict"]) == ("FAIL", "ok")
    assert found["IOMMU"]["mend"] != ""
    assert found["kernel"] == {
        "name": "kernel",
        "verdict": "ok",
        "found": platform.release(),
        "mend": "",
    }


def test_a_warning_is_no_failure(fake: FakeHost) -> None:
    fake.put(fake.root / "module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
    assert check(fake, "no-IOMMU mode").verdict is WARN
    assert run_verb(doctor, fake.host, "doctor") == 0


def test_this_host_can_be_examined() -> None:
    """No fake: whatever the machine of the tests has."""
    assert len(list(doctor.checks())) == 12


# IOMMU


@pytest.mark.parametrize(
    ("table", "found", "mend"),
    [
        ("DMAR", "VT-d is there", "intel_iommu=on"),
        ("IVRS", "AMD-Vi is there", "amd_iommu=off"),
        ("FACP", "none", "firmware"),
    ],
)
def test_no_iommu_is_told_from_one_that_is_off(
    fake: FakeHost, table: str, found: str, mend: str
) -> None:
    (fake.root / "class/iommu/dmar0/device").unlink()
    (fake.root / "class/iommu/dmar0").rmdir()
    fake.put(fake.root / "firmware/acpi/tables" / table, "")
    result = check(fake, "IOMMU")
    assert result.verdict is FAIL
    assert found in result.found
    assert mend in result.mend
    assert check(fake, "interrupt remapping").verdict is WARN


def test_the_iommus_are_named(fake: FakeHost) -> None:
    fake.put(fake.root / "class/iommu/dmar1/device", "")
    assert check(fake, "IOMMU") == Check("IOMMU", OK, "dmar0, dmar1")


def test_groups_are_counted(fake: FakeHost) -> None:
    fake.add_device(PEER, group=4)
    assert check(fake, "IOMMU groups").found == "2"


@pytest.mark.parametrize(
    ("interrupts", "allowed", "verdict"),
    [
        ("  2:  1  IR-IO-APIC  2-edge  timer\n", None, OK),
        (" 24:  0  IR-PCI-MSI 65536-edge  x\n", "N", OK),
        (" 24:  0  PCI-MSI 65536-edge  x\n", "N", FAIL),
        (" 24:  0  PCI-MSI 65536-edge  x\n", None, FAIL),
        (" 24:  0  PCI-MSI 65536-edge  AIR-PCI\n", "Y", WARN),
        ("", "1", WARN),
    ],
)
def test_interrupt_remapping_is_on_or_done_without(
    fake: FakeHost, interrupts: str, allowed: str | None, verdict: Verdict
) -> None:
    fake.put(fake.proc / "interrupts", interrupts)
    if allowed is not None:
        parameter = "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
        fake.put(fake.root / parameter, f"{allowed}\n")
    result = check(fake, "interrupt remapping")
    assert result.verdict is verdict
    assert ("allow_unsafe_interrupts" in result.mend) == (verdict is not OK)


def test_interrupt_remapping_is_a_question_of_pcs_only(fake: FakeHost) -> None:
    fake.put(fake.proc / "interrupts", "")
    assert doctor.interrupt_remapping(fake.host, "aarch64").verdict is OK


# Modules


@pytest.mark.parametrize("name", ["vfio", "vfio_iommu_type1", "vfio_pci"])
def test_a_module_is_loaded_built_in_or_missing(fake: FakeHost, name: str) -> None:
    title, folder = f"module {name}", fake.host.modules / platform.release()
    assert check(fake, title) == Check(title, OK, "loaded")
    (fake.root / "module" / name / "initstate").unlink()
    assert check(fake, title) == Check(title, OK, "built in")
    (fake.root / "module" / name).rmdir()
    for evidence in ("bus/pci/drivers/vfio-pci", "class/vfio"):
        if (fake.root / evidence).exists():
            (fake.root / evidence).rename(fake.folder / "away")
    result = check(fake, title)
    assert (result.verdict, result.mend) == (FAIL, f"modprobe {name}")

    file = name.replace("vfio_pci", "vfio-pci")
    fake.put(folder / "modules.builtin", "kernel/drivers/vfio/vfio-pci-core.ko\n")
    fake.put(folder / "modules.dep", f"kernel/drivers/x.ko.xz: kernel/drivers/{file}.ko.xz\n")
    result = check(fake, title)
    assert (result.verdict, result.found) == (FAIL, "this kernel was built without it")
    assert f"CONFIG_{name.upper()}=" in result.mend
    fake.put(folder / "modules.dep", f"kernel/drivers/vfio/{file}.ko.xz:\n")
    assert check(fake, title).mend == f"modprobe {name}"
    fake.put(folder / "modules.builtin", f"kernel/x.ko\nkernel/drivers/vfio/{file}.ko\n")
    assert check(fake, title) == Check(title, OK, "built in")


@pytest.mark.parametrize("evidence", ["class/vfio", "bus/pci/drivers/vfio-pci"])
def test_what_is_built_in_without_parameters_shows_elsewhere(fake: FakeHost, evidence: str) -> None:
    name = "vfio" if evidence == "class/vfio" else "vfio_pci"
    (fake.root / "module" / name / "initstate").unlink()
    (fake.root / "module" / name).rmdir()
    (fake.root / evidence).mkdir(parents=True, exist_ok=True)
    assert check(fake, f"module {name}").found == "built in"


# Nodes


def test_the_container_node_has_to_be_there_and_open_to_this_user(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = fake.dev / "vfio/vfio"
    node.chmod(0o600)
    assert check(fake, str(node)).verdict is OK
    with monkeypatch.context() as limited:
        no_access(limited, node)
        result = check(fake, str(node))
    assert (result.verdict, result.mend) == (FAIL, f"chmod 666 {node}")
    assert "mode 600" in result.found
    node.unlink()
    result = check(fake, str(node))
    assert (result.verdict, result.found) == (FAIL, "not there")
    assert "modprobe" in result.mend


def test_iommufd_is_told_of_and_not_needed(fake: FakeHost) -> None:
    assert check(fake, "iommufd").verdict is OK
    assert "type1" in check(fake, "iommufd").found
    fake.put(fake.dev / "iommu", "")
    fake.put(fake.dev / "vfio/devices/vfio0", "")
    assert check(fake, "iommufd").found == "/dev/iommu is there; 1 device nodes"


def test_no_bound_device_is_a_warning(fake: FakeHost) -> None:
    fake.write(fake.root / "bus/pci/drivers/vfio-pci/unbind", f"{EDU}\n")
    assert check(fake, "bound devices") == Check(
        "bound devices", WARN, "none", "pyvfio bind ADDRESS"
    )


def test_a_bound_device_that_this_user_may_not_open(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = fake.dev / "vfio/3"
    no_access(monkeypatch, node)
    result = check(fake, "bound devices")
    assert result.verdict is FAIL
    assert result.found.startswith(f"{EDU}: {node}: mode ")
    assert result.mend == f"pyvfio bind --owner {os.geteuid()} {EDU}"
    fake.add_device(PEER, driver="vfio-pci", group=4)
    assert check(fake, "bound devices").verdict is WARN


def test_a_bound_device_without_its_node(fake: FakeHost) -> None:
    (fake.dev / "vfio/3").unlink()
    result = check(fake, "bound devices")
    assert (result.verdict, result.found) == (FAIL, f"{EDU}: no {fake.dev}/vfio/3")


def test_a_bound_device_in_a_group_that_is_not_viable(fake: FakeHost) -> None:
    fake.add_device(PEER, driver="e1000e", group=3)
    result = check(fake, "bound devices")
    assert result.verdict is FAIL
    assert result.found == f"{EDU}: group 3 is not viable: {PEER} (e1000e)"
    assert result.mend == f"pyvfio bind {PEER}"


def test_bound_devices_are_named(fake: FakeHost) -> None:
    assert check(fake, "bound devices") == Check("bound devices", OK, EDU)


# Locked memory


@pytest.fixture
def limited(fake: FakeHost) -> FakeHost:
    """The host as a user without capabilities sees it."""
    fake.put(fake.proc / "self/status", "Name:\tx\nCapEff:\t0000000000000000\n")
    return fake


@pytest.mark.parametrize(
    ("limits", "verdict", "found", "mend"),
    [
        ((-1, -1), OK, "no limit", ""),
        ((64 * MIB, 64 * MIB), OK, "at most 64 MiB for DMA", ""),
        ((8 * MIB, -1), WARN, "at most 8 MiB for DMA", "ulimit -l unlimited"),
        ((8 * MIB, 128 * MIB), WARN, "at most 8 MiB for DMA", "ulimit -l 131072"),
        ((65536, 8 * MIB), WARN, "at most 64 KiB for DMA", "as root: prlimit"),
    ],
)
def test_the_limit_of_locked_memory(
    limited: FakeHost, limits: tuple[int, int], verdict: Verdict, found: str, mend: str
) -> None:
    """The process of the tests has limits of its own, which not everybody may change."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
        result = check(limited, "locked memory")
    assert result.verdict is verdict
    assert result.found.startswith(found)
    assert result.mend.startswith(mend)


@pytest.mark.parametrize(
    ("capabilities", "free"), [("0000000000004000", True), ("000001ffffffbfff", False)]
)
def test_ipc_lock_is_above_the_limit(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch, capabilities: str, free: bool
) -> None:
    fake.put(fake.proc / "self/status", f"Name:\tx\nCapEff:\t{capabilities}\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, 0))
    assert (check(fake, "locked memory").verdict is OK) == free
