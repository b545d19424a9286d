# SPDX-License-Identifier: BSD-3-Clause
"""Give a device of this host to vfio-pci, take it away, give it back to its own driver.

The kernel's way: the wanted driver's name goes to ``driver_override``, the old driver lets go, and
``drivers_probe`` offers the device.  That last write succeeds also where the driver refuses, so the
``driver`` link is looked at afterwards.  Each function changes all devices that it is given, or
none: after a failure every one has the driver and the override that it had before.

What a device was before it was first changed is kept in a file until :func:`restore`.  It is below
``/run``, as it means nothing after the next start of the host.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pyvfio.backends.ioctl import sysfs
from pyvfio.backends.ioctl.sysfs import HostDevice
from pyvfio.errors import AccessDenied, BindError, DeviceBusy, DeviceNotFound, VFIOError

KEEP = -1
"""As an owner: the one that is."""
STATE = Path("/run/pyvfio/bound")
NODE_SECONDS = 2.0
"""How long a device node may take to appear where the kernel does not make it itself."""

_log = logging.getLogger(__name__)
_NO_GROUP = "the IOMMU is off, or this host has none: `pyvfio doctor` says what to do"
_HINTS = {
    errno.EACCES: "run it as root",
    errno.EPERM: "run it as root",
    errno.EROFS: "sysfs is read-only here, as in a container",
}
_IN_USE = "stop that first; force (--force) takes the device away all the same"


def write_attribute(path: Path, text: str) -> None:
    """One ``write(2)``, as sysfs wants it, to a file that exists."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Host:
    """Where the kernel's files are, and how an attribute is written."""

    root: Path = sysfs.SYSFS
    proc: Path = sysfs.PROC
    dev: Path = sysfs.DEV
    modules: Path = Path("/lib/modules")
    state: Path = STATE
    write: Callable[[Path, str], None] = write_attribute


HOST = Host()


class Binding(NamedTuple):
    """What a device is bound to, and what its ``driver_override`` says."""

    driver: str | None
    override: str | None


class Step(NamedTuple):
    """One write to sysfs; as text, the command of a shell that does the same."""

    path: Path
    text: str

    def __str__(self) -> str:
        return " ".join(filter(None, ("echo", self.text, ">", str(self.path))))


def bind(
    bdf: str | Iterable[str],
    driver: str = "vfio-pci",
    *,
    group: bool = False,
    force: bool = False,
    dry_run: bool = False,
    owner: int = KEEP,
    owner_group: int = KEEP,
    host: Host = HOST,
) -> list[str]:
    """Bind devices to a driver; those that it has already are left alone.

    :param bdf: one address or several; the domain may be left out.
    :param group: also all other endpoints of their IOMMU groups.
    :param force: take a device even from those who use it.
    :param dry_run: write nothing.
    :param owner: number of the user who gets the device nodes.
    :param owner_group: number of a group of users who may then read and write them.
    :returns: the commands that were run, or would be.
    :raises ValueError: malformed address or driver name.
    :raises DeviceNotFound: no such device.
    :raises DeviceBusy: a disk of it is mounted, its network interface is up, a process drives it.
    :raises AccessDenied: sysfs or the nodes may not be changed by this user.
    :raises BindError: the driver is not there or did not take the device, no IOMMU group ...
    """
    if not re.fullmatch(r"\w[\w.+-]*", driver, re.ASCII):
        raise ValueError(f"no name of a driver: {driver!r}")
    with _Job("bind", host, dry_run) as job:
        found = targets(bdf, group, host)
        changing = [each for each in found if each.driver != driver]
        for each in changing:
            job.check(each, driver, force)
        for each in changing:
            job.change(each, Binding(driver, driver))
        if (owner, owner_group) != (KEEP, KEEP):
            for each in found:
                job.hand_over(each, owner, owner_group)
    return job.lines


def unbind(
    bdf: str | Iterable[str],
    *,
    group: bool = False,
    force: bool = False,
    dry_run: bool = False,
    host: Host = HOST,
) -> list[str]:
    """Take the driver away from devices, and the override that :func:`bind` wrote.

    Where a process drives the device through VFIO and ``force`` is given, the kernel asks it to
    let go and this waits until it has.  Parameters, result and errors are those of :func:`bind`.
    """
    with _Job("unbind", host, dry_run) as job:
        found = targets(bdf, group, host)
        for each in found:
            job.check(each, None, force)
        for each in found:
            before = recall(each, host) or _binding(each.bdf, host)
            job.change(each, Binding(None, before.override))
    return job.lines


def restore(
    bdf: str | Iterable[str],
    *,
    group: bool = False,
    force: bool = False,
    dry_run: bool = False,
    host: Host = HOST,
) -> list[str]:
    """Give devices the driver and the override that they had before the first change.

    What was never changed is left alone.  Parameters, result and errors are those of :func:`bind`.

    :raises BindError: also where a device has a VFIO driver and nothing tells what it had before.
    """
    with _Job("restore", host, dry_run) as job:
        changing = []
        for each in targets(bdf, group, host):
            before = recall(each, host)
            if before is not None:
                changing.append((each, before))
                job.check(each, before.driver, force)
            elif each.has_vfio_driver and not group:
                hint = "give it a driver by name: pyvfio bind --driver NAME"
                raise job.error("nothing is recorded of what it was before", each.bdf, hint=hint)
        for each, before in changing:
            job.change(each, before, record=False)
        for each, _ in changing:
            job.forget(each)
    return job.lines


def recall(found: HostDevice, host: Host = HOST) -> Binding | None:
    """What a device was before its first change; None where it was not changed."""
    path = _record_path(found.bdf, host)
    try:
        record = json.loads(path.read_text())
        binding = Binding(record["driver"], record["override"])
        ids = record["vendor"], record["device"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        _log.warning("%s is not readable: %s", path, error)
        return None
    if ids != (found.vendor, found.device) or not all(
        part is None or isinstance(part, str) for part in binding
    ):
        return None  # somebody put another device into the slot
    return binding


def _record_path(bdf: str, host: Host) -> Path:
    return host.state / f"{bdf}.json"


def _record(found: HostDevice, before: Binding, host: Host) -> None:
    host.state.mkdir(parents=True, exist_ok=True)
    path = _record_path(found.bdf, host)
    record: dict[str, Any] = {**before._asdict(), "vendor": found.vendor, "device": found.device}
    unfinished = path.with_suffix(".new")
    try:
        unfinished.write_text(json.dumps(record) + "\n")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _binding(bdf: str, host: Host) -> Binding:
    folder = host.root / "bus/pci/devices" / bdf
    driver = sysfs.device(bdf, host.root).driver
    try:
        override = (folder / "driver_override").read_text().strip()
    except OSError:
        override = ""
    return Binding(driver, None if override in ("", "(null)") else override)


def _steps(bdf: str, now: Binding, goal: Binding, root: Path) -> list[Step]:
    """The writes that lead from one binding to another."""
    override = root / "bus/pci/devices" / bdf / "driver_override"
    steps = []
    written = now.override
    if now.driver != goal.driver:
        # First the override: nothing has happened to the device yet if it cannot be written.
        if goal.driver is not None and written != goal.driver:
            steps.append(Step(override, goal.driver))
            written = goal.driver
        if now.driver is not None:
            steps.append(Step(root / "bus/pci/drivers" / now.driver / "unbind", bdf))
        if goal.driver is not None:
            steps.append(Step(root / "bus/pci/drivers_probe", bdf))
    if written != goal.override:
        steps.append(Step(override, goal.override or ""))
    return steps


def targets(bdf: str | Iterable[str], group: bool, host: Host) -> list[HostDevice]:
    """The devices that were asked for, and with ``group`` all endpoints beside them."""
    asked = [bdf] if isinstance(bdf, str) else bdf
    found = {each.bdf: each for each in (sysfs.device(one, host.root) for one in asked)}
    groups = {each.iommu_group for each in found.values() if group}
    for number in groups:
        for name in sysfs.group_members(number, host.root) if number is not None else ():
            with contextlib.suppress(ValueError, DeviceNotFound):
                member = sysfs.device(name, host.root)
                if member.class_code >> 16 != sysfs.BRIDGE:
                    found.setdefault(name, member)
    return list(found.values())


class _Job:
    """One operation on several devices; what it changed is put back where it fails."""

    def __init__(self, op: str, host: Host, dry_run: bool) -> None:
        self.lines: list[str] = []
        self._op = op
        self._host = host
        self._dry_run = dry_run
        self._before: dict[str, Binding] = {}
        self._recorded: list[str] = []

    def __enter__(self) -> _Job:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        left = self._undo() if error is not None else []
        if left and isinstance(error, VFIOError):
            error.hint = "; ".join(filter(None, (error.hint, *left)))

    def error(self, reason: str, bdf: str, *, hint: str = "") -> BindError:
        """The error of this operation."""
        return BindError(reason, op=self._op, uri=bdf, hint=hint)

    def check(self, found: HostDevice, driver: str | None, force: bool) -> None:
        """Refuse what cannot work, or would do harm, before anything is written."""
        host = self._host
        if found.driver not in (None, driver) and not force:
            uses = sysfs.uses(found, host.root, host.proc, host.dev)
            if uses:
                reason = f"in use: {'; '.join(uses)}"
                raise DeviceBusy(reason, op=self._op, uri=found.bdf, hint=_IN_USE)
        if driver is None or found.driver == driver:
            return
        if not (host.root / "bus/pci/drivers" / driver).is_dir():
            hint = f"modprobe {driver}"
            raise self.error(f"the kernel has no driver {driver} loaded", found.bdf, hint=hint)
        if sysfs.is_vfio(driver) and found.is_bridge:
            hint = "it may keep its driver pcieport; from any other, `pyvfio unbind` takes it"
            raise self.error("it is a bridge", found.bdf, hint=hint)
        if sysfs.is_vfio(driver) and found.iommu_group is None and not sysfs.noiommu(host.root):
            raise self.error("it has no IOMMU group", found.bdf, hint=_NO_GROUP)

    def change(self, found: HostDevice, goal: Binding, *, record: bool = True) -> None:
        """Bring a device to ``goal``."""
        now = _binding(found.bdf, self._host)
        steps = _steps(found.bdf, now, goal, self._host.root)
        if self._dry_run or not steps:
            self.lines += map(str, steps)
            return
        self._before[found.bdf] = now
        if record and recall(found, self._host) is None:
            self._recorded.append(found.bdf)
            with self._told(found.bdf, f"record in {self._host.state}"):
                _record(found, now, self._host)
        self._take(found.bdf, steps, goal)

    def _take(self, bdf: str, steps: Iterable[Step], goal: Binding) -> None:
        for step in steps:
            _log.info("%s", step)
            self.lines.append(str(step))
            with self._told(bdf, str(step)):
                self._host.write(step.path, f"{step.text}\n")
        driver = _binding(bdf, self._host).driver
        if driver != goal.driver:
            hint = f"the kernel's log may say why: dmesg | grep {bdf}"
            refused = f"{goal.driver} did not take it"
            raise self.error(refused if goal.driver else f"{driver} took it again", bdf, hint=hint)

    def hand_over(self, found: HostDevice, user: int, group: int) -> None:
        """Give the device nodes to a user, a group of users, or both."""
        who = ":".join("" if number == KEEP else str(number) for number in (user, group))
        if not self._dry_run:
            found = sysfs.device(found.bdf, self._host.root)  # binding has made a cdev
        for node in sysfs.device_nodes(found, self._host.dev):
            commands = [f"chown {who.rstrip(':')} {node}"]
            commands += [f"chmod 660 {node}"] if group != KEEP else []
            self.lines += commands
            if self._dry_run:
                continue
            _log.info("%s", "; ".join(commands))
            with self._told(found.bdf, commands[0]):
                _wait_for(node)
                os.chown(node, user, group)
                if group != KEEP:
                    os.chmod(node, 0o660)

    def forget(self, found: HostDevice) -> None:
        """Drop what is recorded of a device; not worth an undo where it fails."""
        if not self._dry_run:
            path = _record_path(found.bdf, self._host)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                _log.warning("%s cannot be removed: %s", path, error)

    def _undo(self) -> list[str]:
        """Put back what was changed, last first; returns what could not be."""
        left = []
        for bdf, before in reversed(self._before.items()):
            try:
                now = _binding(bdf, self._host)
                self._take(bdf, _steps(bdf, now, before, self._host.root), before)
            except DeviceNotFound:
                pass  # it was unplugged: there is nothing to put back
            except OSError as error:
                left.append(f"{bdf} could not be put back: {error}")
                continue  # and its record may still be of use
            if bdf in self._recorded:
                with contextlib.suppress(OSError):
                    _record_path(bdf, self._host).unlink(missing_ok=True)
        return left

    @contextlib.contextmanager
    def _told(self, bdf: str, what: str) -> Iterator[None]:
        """Turn what the kernel says into an error that names the operation and the device."""
        try:
            yield
        except OSError as error:
            number = error.errno or errno.EIO
            kind: type[VFIOError] = BindError
            reason, hint = f"{what}: {os.strerror(number)}", _HINTS.get(number, "")
            if number in (errno.EACCES, errno.EPERM):
                kind = AccessDenied
            if not (self._host.root / "bus/pci/devices" / bdf).exists():
                kind, reason, hint = DeviceNotFound, "the device went away", ""
            raise kind(reason, op=self._op, uri=bdf, errno=number, hint=hint) from error


def _wait_for(node: Path) -> None:
    deadline = time.monotonic() + NODE_SECONDS
    while not node.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
