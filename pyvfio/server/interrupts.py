# SPDX-License-Identifier: BSD-3-Clause
"""Interrupt delivery: eventfds of the client, masking, and the bits in configuration space.

Rules are those of the kernel's vfio-pci (``vfio_pci_intrs.c``): INTx masks itself when it fires and
fires again on UNMASK while it is still asserted; enabling an index sets its enable bit.
"""

from __future__ import annotations

import errno
import os
from struct import Struct

from pyvfio import eventfd
from pyvfio.server.config_space import ModelConfigSpace
from pyvfio.server.model import DeviceModel
from pyvfio.server.msix import MSIXState
from pyvfio.transport.sockets import close_fds
from pyvfio.uapi import pci
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.pci import CapabilityID, Command, Status
from pyvfio.uapi.vfio import (
    IRQ_SET_ACTION,
    IRQ_SET_DATA,
    PCIIRQ,
    IRQFlags,
    IRQSetFlags,
)
from pyvfio.wire.messages import SetIRQs


class Interrupts:
    """The interrupt indexes of a model; not locked, its function is.

    :param config: enable, mask and status bits are kept there.
    :param msix: table and pending bits, if the model has MSI-X.
    """

    def __init__(
        self, model: DeviceModel, config: ModelConfigSpace, msix: MSIXState | None
    ) -> None:
        self._config = config
        self._msix = msix
        self._counts = {
            PCIIRQ.INTX: 1 if model.interrupt_pin else 0,
            PCIIRQ.MSI: model.msi.vectors if model.msi else 0,
            PCIIRQ.MSIX: model.msix.vectors if model.msix else 0,
            PCIIRQ.ERR: 1,
            PCIIRQ.REQ: 1,
        }
        self._fds: dict[PCIIRQ, list[int]] = {
            index: [-1] * count for index, count in self._counts.items()
        }
        self._kept = 0  # of all indexes; a request costs nothing for what others have set up
        self._enabled: set[PCIIRQ] = set()
        self._asserted = False
        self._intx_masked = False
        self._stopped = False
        self._held_msi = 0

    # What the client asks

    def info(self, index: int) -> tuple[IRQFlags, int]:
        """Flags and number of vectors of an index; raises OSError EINVAL where there is none."""
        irq = _irq(index)
        flags = IRQFlags.EVENTFD
        if irq is PCIIRQ.INTX:
            flags |= IRQFlags.MASKABLE | IRQFlags.AUTOMASKED
        elif irq is PCIIRQ.MSI:
            flags |= IRQFlags.NORESIZE
        return flags, self._counts[irq]

    def set_irqs(self, request: SetIRQs, fds: list[int], max_fds: int) -> None:
        """Carry out SET_IRQS; descriptors that are kept are removed from ``fds``.

        :param max_fds: eventfds that may be kept of all indexes.
        :raises OSError: EINVAL for what the specification forbids, EMFILE for too many eventfds.
        """
        irq = _irq(request.index)
        data, action = request.flags & IRQ_SET_DATA, request.flags & IRQ_SET_ACTION
        known = int(IRQ_SET_DATA | IRQ_SET_ACTION)
        if request.flags & ~known or not _one_bit(data) or not _one_bit(action):
            raise _invalid(f"flags {request.flags:#x}")
        if data != IRQSetFlags.DATA_EVENTFD and fds:
            raise _invalid("descriptors without DATA_EVENTFD")
        if request.count == 0:
            self._disable(irq, data | action, request.start)
            return
        if request.start + request.count > self._counts[irq]:
            raise _invalid(f"vectors {request.start}+{request.count} of {self._counts[irq]}")
        vectors = range(request.start, request.start + request.count)
        if data == IRQSetFlags.DATA_EVENTFD:
            self._check_eventfds(irq, action, vectors, fds, max_fds)
            self._assign(irq, vectors, fds)
        else:
            self._act(irq, action, self._chosen(request, data, vectors))

    def _disable(self, irq: PCIIRQ, flags: int, start: int) -> None:
        if flags != IRQSetFlags.DATA_NONE | IRQSetFlags.TRIGGER or start:
            raise _invalid("count 0")
        self._drop(irq)

    def _chosen(self, request: SetIRQs, data: int, vectors: range) -> list[int]:
        if data == IRQSetFlags.DATA_NONE:
            return list(vectors)
        if len(request.data) != request.count:
            raise _invalid(f"{len(request.data)} bools for {request.count} vectors")
        return [v for v, chosen in zip(vectors, request.data, strict=True) if chosen]

    def _check_eventfds(
        self, irq: PCIIRQ, action: int, vectors: range, fds: list[int], max_fds: int
    ) -> None:
        if action != IRQSetFlags.TRIGGER:
            raise OSError(errno.ENOTSUP, "eventfds that mask or unmask")
        if fds and len(fds) != len(vectors):
            raise _invalid(f"{len(fds)} descriptors for {len(vectors)} vectors")
        if any(not eventfd.is_eventfd(fd) for fd in fds):
            raise _invalid("a descriptor that is no eventfd")
        replaced = self._fds[irq][vectors.start : vectors.stop]
        kept = self._kept - _held(replaced)
        if kept + len(fds) > max_fds:
            raise OSError(errno.EMFILE, f"{len(fds)} eventfds, {kept} are kept already")

    def _assign(self, irq: PCIIRQ, vectors: range, fds: list[int]) -> None:
        table = self._fds[irq]
        for vector, fd in zip(vectors, fds or [-1] * len(vectors), strict=True):
            if table[vector] >= 0:
                os.close(table[vector])
                self._kept -= 1
            table[vector] = fd
            if irq is PCIIRQ.MSIX and self._msix is not None:
                self._msix.mask(vector, fd < 0)
        self._kept += len(fds)
        fds.clear()
        self._enabled.add(irq)
        self._show_enabled(irq)
        self.evaluate()

    def _act(self, irq: PCIIRQ, action: int, vectors: list[int]) -> None:
        if action == IRQSetFlags.TRIGGER:
            for vector in vectors:
                self._signal(irq, vector)
            return
        if irq is not PCIIRQ.INTX or irq not in self._enabled:
            raise _invalid(f"{irq.name} cannot be masked now")
        if vectors:
            self._intx_masked = action == IRQSetFlags.MASK
            self.evaluate()

    # What the device does

    def set_intx(self, level: bool) -> None:
        """Assert or lower the interrupt pin."""
        self._asserted = level
        self._config.change(pci.STATUS, Status.INTERRUPT, level)
        self.evaluate()

    def enabled(self, irq: PCIIRQ) -> bool:
        """Whether the client uses MSI or MSI-X: by SET_IRQS, or by the enable bit."""
        return irq in self._enabled or self._enable_bit(irq)

    def send(self, irq: PCIIRQ, vector: int) -> None:
        """Send an MSI or MSI-X message: a write to memory, so bus mastering must be on.

        While the device is stopped it is held; a vector that is sent again then fires once.
        """
        if not 0 <= vector < self._counts[irq]:
            raise ValueError(f"{irq.name} vector {vector} of {self._counts[irq]}")
        if not self.enabled(irq) or not self._config.command & Command.MASTER:
            return
        if irq is PCIIRQ.MSIX and self._msix is not None:
            if self._stopped or self._msix_masked(vector):
                self._msix.set_pending(vector, True)
                return
        elif self._stopped:
            self._held_msi |= 1 << vector
            return
        self._signal(irq, vector)

    def evaluate(self) -> None:
        """Deliver what has become deliverable: after an unmask, or a write to configuration."""
        if self._stopped:
            return
        self._evaluate_intx()
        self._deliver_held_msi()
        self._deliver_pending()

    def _deliver_held_msi(self) -> None:
        if not self._held_msi:
            return
        for vector, fd in enumerate(self._fds[PCIIRQ.MSI]):
            if fd >= 0 and self._held_msi & 1 << vector:
                self._held_msi &= ~(1 << vector)
                self._signal(PCIIRQ.MSI, vector)

    def _deliver_pending(self) -> None:
        if self._msix is None:
            return
        for vector in self._msix.pending():
            if self._fds[PCIIRQ.MSIX][vector] >= 0 and not self._msix_masked(vector):
                self._msix.set_pending(vector, False)
                self._signal(PCIIRQ.MSIX, vector)

    def _evaluate_intx(self) -> None:
        fds = self._fds[PCIIRQ.INTX]
        if not self._asserted or self._intx_masked or not fds or fds[0] < 0:
            return
        if not self._config.command & Command.INTX_DISABLE:
            self._intx_masked = True
            self._signal(PCIIRQ.INTX, 0)

    def _msix_masked(self, vector: int) -> bool:
        assert self._msix is not None
        at = self._config.offset_of(CapabilityID.MSIX)
        assert at is not None
        all_masked = self._config.get(pci.MSIX_CONTROL, at) & pci.MSIX_CONTROL_MASK_ALL
        return bool(all_masked) or self._msix.masked(vector)

    def _signal(self, irq: PCIIRQ, vector: int) -> None:
        fd = self._fds[irq][vector]
        if fd >= 0:
            eventfd.signal(fd)

    # Enable bits and the end of a client

    def _enable_bit(self, irq: PCIIRQ) -> bool:
        if irq not in _ENABLE_BITS:
            return False
        capability, register, bit = _ENABLE_BITS[irq]
        at = self._config.offset_of(capability)
        return at is not None and bool(self._config.get(register, at) & bit)

    def _show_enabled(self, irq: PCIIRQ) -> None:
        """Have the enable bit follow what SET_IRQS has set up, as the kernel's does."""
        if irq not in _ENABLE_BITS:
            return
        capability, register, bit = _ENABLE_BITS[irq]
        at = self._config.offset_of(capability)
        if at is not None:
            self._config.change(register, bit, irq in self._enabled, at)

    def device_reset(self) -> None:
        """The function was reset: nothing is asserted or pending, eventfds stay assigned."""
        self._asserted = self._intx_masked = False
        self._held_msi = 0
        if self._msix is not None:
            self._msix.reset()
            for vector, fd in enumerate(self._fds[PCIIRQ.MSIX]):
                self._msix.mask(vector, fd < 0)
        self._show_all_enabled()

    def _show_all_enabled(self) -> None:
        for irq in self._enabled:
            self._show_enabled(irq)

    def client_lost(self) -> None:
        """Close all eventfds and disable every index.

        Of a stopped device, enable bits, masks and what is held are left: they are the state that
        the next client takes on.
        """
        for irq in PCIIRQ:
            if self._stopped:
                self._forget(irq)
            else:
                self._drop(irq)

    def _drop(self, irq: PCIIRQ) -> None:
        """An index is disabled; what a stopped device holds is there when it is enabled again."""
        self._forget(irq)
        if not self._stopped:
            self._clear(irq)
        self._show_enabled(irq)

    def _forget(self, irq: PCIIRQ) -> None:
        """Close what a client has given."""
        close_fds(fd for fd in self._fds[irq] if fd >= 0)
        self._kept -= _held(self._fds[irq])
        self._fds[irq] = [-1] * self._counts[irq]
        if irq is PCIIRQ.INTX:
            self._intx_masked = False
        self._enabled.discard(irq)

    def _clear(self, irq: PCIIRQ) -> None:
        """Nothing of an index is pending, and its vectors are masked."""
        if irq is PCIIRQ.MSI:
            self._held_msi = 0
        if irq is PCIIRQ.MSIX and self._msix is not None:
            self._msix.reset()

    # Migration

    def hold(self) -> None:
        """The device is stopped: interrupts are held until :meth:`release`."""
        self._stopped = True

    def release(self) -> None:
        """The device runs: deliver what was held, where there is an eventfd for it."""
        self._stopped = False
        self.evaluate()

    def save(self) -> bytes:
        """What is asserted and held, for :meth:`load`; the rest is in configuration and MSI-X."""
        return _SAVED.pack(self._asserted, self._held_msi)

    def check_saved(self, saved: Buffer) -> None:
        """Raise ValueError where :meth:`save` cannot have given it."""
        if len(saved) != _SAVED.size:
            raise ValueError(f"{len(saved)} bytes of interrupts")
        asserted, held = _SAVED.unpack(saved)
        pins, vectors = self._counts[PCIIRQ.INTX], self._counts[PCIIRQ.MSI]
        if asserted > pins or held >> vectors:
            raise ValueError("interrupts that the device does not have")

    def load(self, saved: Buffer) -> None:
        """Take on what was saved and checked, after configuration and MSI-X; eventfds stay."""
        asserted, self._held_msi = _SAVED.unpack(saved)
        self._show_all_enabled()
        self.set_intx(bool(asserted))


_SAVED = Struct("<II")
"""Level of the pin; the MSI vectors that are held, a bit each."""

_ENABLE_BITS = {
    PCIIRQ.MSI: (CapabilityID.MSI, pci.MSI_CONTROL, pci.MSI_CONTROL_ENABLE),
    PCIIRQ.MSIX: (CapabilityID.MSIX, pci.MSIX_CONTROL, pci.MSIX_CONTROL_ENABLE),
}


def _irq(index: int) -> PCIIRQ:
    if index >= len(PCIIRQ):
        raise _invalid(f"irq index {index}")
    return PCIIRQ(index)


def _one_bit(flags: int) -> bool:
    return flags != 0 and flags & (flags - 1) == 0


def _invalid(reason: str) -> OSError:
    return OSError(errno.EINVAL, reason)


def _held(fds: list[int]) -> int:
    return sum(fd >= 0 for fd in fds)
