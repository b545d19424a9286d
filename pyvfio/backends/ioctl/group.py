# SPDX-License-Identifier: BSD-3-Clause
"""IOMMU groups and the containers they are put into.

A group's node can be opened only once, and all its devices are in one container; so the devices of
a group that this process opens share both, and the last to close lets them go.  Several groups can
be put into one container: their devices then share one IO address space.
"""

from __future__ import annotations

import errno
import os
import struct
import threading

from pyvfio.backends.ioctl import sysfs
from pyvfio.backends.ioctl.container import KernelContainer, open_node
from pyvfio.container import Container
from pyvfio.errors import (
    BackendUnavailable,
    DeviceBusy,
    DeviceNotFound,
    GroupNotViable,
    OpenError,
    VFIOError,
)
from pyvfio.native.ioctl import ioctl
from pyvfio.uapi.ioctl import GROUP_STATUS, GroupFlags, Ioctl

_FOLDER = "/dev/vfio"

_open: dict[tuple[int, bool], Group] = {}
_lock = threading.Lock()


class AddressSpace:
    """A container of the kernel with the groups that are in it, and the DMA maps they share.

    :ivar io: the vector.
    """

    def __init__(self, uri: str, noiommu: bool) -> None:
        self.io = KernelContainer(uri, noiommu)
        self._uri = uri
        self._groups = 0
        self._container: Container | None = None

    @property
    def container(self) -> Container:
        """The table of what is mapped; only with a group inside."""
        assert self._container is not None
        return self._container

    def join(self, group_fd: int) -> None:
        """Put a group into the container; the first one brings the IOMMU.

        :raises OSError: the group's IOMMU does not go with those inside.
        :raises BackendUnavailable: there is no IOMMU.
        """
        ioctl(group_fd, Ioctl.GROUP_SET_CONTAINER, bytearray(struct.pack("=i", self.io.fd)))
        if self._container is None:
            self.io.set_iommu()
            self._container = Container(self.io, self._uri)
        self._groups += 1

    def leave(self) -> None:
        """A group's descriptor was closed; the last one takes the container along."""
        self._groups -= 1
        if not self._groups:
            # The kernel drops maps and pins with the last descriptor; then memory may go.
            self.io.close()
            self.container.close()


class Group:
    """One open group.

    :ivar space: the container that it is in.
    """

    def __init__(self, number: int, uri: str, noiommu: bool, space: AddressSpace | None) -> None:
        self.number = number
        self._key = (number, noiommu)
        self._users = 0
        name = f"noiommu-{number}" if noiommu else str(number)
        self.fd = _open_group(f"{_FOLDER}/{name}", uri)
        try:
            self._check_viable(uri)
            self.space = space or AddressSpace(uri, noiommu)
            try:
                self.space.join(self.fd)
            except BaseException:
                if space is None:
                    self.space.io.close()
                raise
        except BaseException as error:
            os.close(self.fd)
            if isinstance(error, OSError) and not isinstance(error, VFIOError):
                raise _joining_error(error, number, uri) from error
            raise

    def _check_viable(self, uri: str) -> None:
        request = bytearray(GROUP_STATUS.pack(GROUP_STATUS.size, 0))
        ioctl(self.fd, Ioctl.GROUP_GET_STATUS, request)
        if not GROUP_STATUS.unpack_from(request).flags & GroupFlags.VIABLE:
            raise _not_viable(self.number, uri)

    @classmethod
    def acquire(
        cls, number: int, uri: str, noiommu: bool = False, space: AddressSpace | None = None
    ) -> Group:
        """The open group ``number``, opened if it is not; :meth:`release` it as often.

        :param space: the container to put it into; one of its own by default.
        :raises OpenError: there is no such group, or it is busy, not viable, or not permitted.
        :raises BackendUnavailable: there is no VFIO, or no IOMMU.
        """
        with _lock:
            group = _open.get((number, noiommu))
            if group is None:
                group = _open[number, noiommu] = cls(number, uri, noiommu, space)
            elif space is not None and group.space is not space:
                raise DeviceBusy(
                    f"IOMMU group {number} is in another container", op="open", uri=uri
                )
            group._users += 1
            return group

    @staticmethod
    def descriptor(number: int) -> int | None:
        """The descriptor of group ``number``, if this process has it open."""
        with _lock:
            found = [group.fd for (key, _), group in _open.items() if key == number]
        return found[0] if found else None

    def release(self) -> None:
        """Give back what :meth:`acquire` gave; the last user closes the group."""
        with _lock:
            self._users -= 1
            if self._users:
                return
            del _open[self._key]
            os.close(self.fd)
            self.space.leave()

    def device_fd(self, bdf: str, uri: str, vf_token: str | None = None) -> int:
        """A descriptor of a device of the group, which is the caller's.

        :param vf_token: UUID that the driver of the physical function has set.
        :raises OpenError: the device is not in the group, not bound, or wants a token.
        """
        name = bdf if vf_token is None else f"{bdf} vf_token={vf_token}"
        try:
            return ioctl(self.fd, Ioctl.GROUP_GET_DEVICE_FD, bytearray(name.encode() + b"\0"))
        except OSError as error:
            raise _device_error(error, uri) from error


def _open_group(path: str, uri: str) -> int:
    try:
        return open_node(path, uri)
    except OpenError as error:
        if error.errno != errno.EBUSY:
            raise
        raise DeviceBusy(
            f"{path} is in use",
            op="open",
            uri=uri,
            errno=errno.EBUSY,
            hint="another process has the group open, or a mapped BAR of it is still in use",
        ) from error
    except BackendUnavailable as error:
        if error.errno != errno.ENOENT or os.path.exists(f"{_FOLDER}/vfio"):
            raise
        raise BackendUnavailable(
            "the kernel's VFIO is not loaded",
            op="open",
            uri=uri,
            errno=errno.ENOENT,
            hint="modprobe vfio-pci",
        ) from error


def _joining_error(error: OSError, number: int, uri: str) -> OpenError:
    code = error.errno or errno.EIO
    return OpenError(
        f"IOMMU group {number} cannot be put into the container: {os.strerror(code)}",
        op="open",
        uri=uri,
        errno=code,
    )


def _not_viable(number: int, uri: str) -> GroupNotViable:
    blockers = sysfs.blockers(number)
    names = ", ".join(f"{bdf} ({driver})" for bdf, driver in blockers) or "devices of the host"
    return GroupNotViable(
        f"IOMMU group {number} is held back by {names}",
        blockers=blockers,
        op="open",
        uri=uri,
        errno=errno.EPERM,
        hint="bind them to vfio-pci as well, or unbind them: pyvfio bind --group",
    )


def _device_error(error: OSError, uri: str) -> OpenError:
    number = error.errno or errno.EIO
    if number == errno.ENODEV:
        return DeviceNotFound(
            "the group has no such device bound to vfio-pci",
            op="open",
            uri=uri,
            errno=number,
            hint="pyvfio bind",
        )
    hint = ""
    if number == errno.EACCES:
        hint = "a virtual function needs the token of its physical function: vf_token=UUID"
    return OpenError(os.strerror(number), op="open", uri=uri, errno=number, hint=hint)
