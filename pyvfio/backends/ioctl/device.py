# SPDX-License-Identifier: BSD-3-Clause
"""A device of this host, through the kernel's VFIO: ``vfio:0000:03:00.0``."""

from __future__ import annotations

from pyvfio.backends.ioctl import sysfs
from pyvfio.backends.ioctl.device_io import KernelDeviceIO
from pyvfio.backends.ioctl.group import AddressSpace, Group
from pyvfio.base import VFIOBase
from pyvfio.errors import BackendUnavailable, NotBoundError
from pyvfio.vectors import ContainerIO, DeviceIO


class KernelDevice(VFIOBase):
    """A device bound to vfio-pci, opened through its group.

    Devices of one group that a process opens share its container: DMA memory of one is seen by
    all.

    :param bdf: the device's address, ``0000:03:00.0`` or ``03:00.0``.
    :param vf_token: the UUID that guards a virtual function.
    :param noiommu: accept a device without an IOMMU; its DMA cannot be set up, and is not confined.
    :param container_of: an open host device whose container, and DMA memory, this one shares.
    :raises OpenError: there is no such device, or it is not bound, busy, or not permitted.
    :raises BackendUnavailable: the kernel has no VFIO, or no IOMMU for the device.
    """

    def __init__(
        self,
        bdf: str,
        *,
        uri: str = "",
        vf_token: str | None = None,
        noiommu: bool = False,
        container_of: object | None = None,
    ) -> None:
        super().__init__(uri or f"vfio:{bdf}")
        try:
            self._open(bdf, vf_token, noiommu, self._space_of(container_of))
        except BaseException:
            self._undo.close()
            raise

    def _space_of(self, other: object) -> AddressSpace | None:
        base = getattr(other, "base", other)
        if base is None:
            return None
        if not isinstance(base, KernelDevice) or base.closed:
            raise ValueError(f"open {self.uri}: container_of is no open host device: {other!r}")
        return base._group.space

    def _open(
        self, bdf: str, vf_token: str | None, noiommu: bool, space: AddressSpace | None
    ) -> None:
        found = sysfs.device(bdf)
        if not found.has_vfio_driver:
            raise NotBoundError(
                f"bound to {found.driver or 'no driver'}, not to vfio-pci",
                op="open",
                uri=self.uri,
                hint=f"pyvfio bind {found.bdf}",
            )
        if found.iommu_group is None:
            raise BackendUnavailable(
                "the device is in no IOMMU group",
                op="open",
                uri=self.uri,
                hint="switch the IOMMU on (firmware, intel_iommu=on), see pyvfio doctor",
            )
        group = Group.acquire(found.iommu_group, self.uri, noiommu, space)
        self._undo.callback(group.release)
        self._group = group
        self._device_io = KernelDeviceIO(
            group.device_fd(found.bdf, self.uri, vf_token), Group.descriptor
        )
        self._undo.callback(self._device_io.close)
        self._attach(group.space.container)

    @property
    def device_io(self) -> DeviceIO:
        return self._device_io

    @property
    def container_io(self) -> ContainerIO:
        return self._group.space.io
