# SPDX-License-Identifier: BSD-3-Clause
"""MSI of a function as its guest sees it: the capability, and the vectors behind it.

Facts: QEMU's hw/pci/msi.c, ``vfio_msi_enable`` and ``vfio_update_msi``.  One difference: QEMU
leaves a vector with its irqfd while the guest has it masked, so that it is delivered all the same.
Here the device signals it to us meanwhile, to be kept as pending, as with MSI-X.
"""

from __future__ import annotations

from functools import partial

from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.irq_index import IRQIndex
from pyvfio.emulator.memory.calls import Calls
from pyvfio.emulator.messages import Message, MessageVector, Messenger, close_vectors
from pyvfio.errors import IRQError
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Register

_CAPABLE_SHIFT, _ENABLED_SHIFT = 1, 4
_MAX_ORDER = 5
"""32 vectors; what a device says above is not defined."""
_ADDRESS_ALIGNMENT = 0x3


class GuestMSI:
    """The capability at ``offset``; whoever owns it says when it is enabled and disabled.

    :param control: the control register of the device.
    :ivar size: bytes of the capability.
    """

    def __init__(
        self,
        config: EmulatedConfig,
        offset: int,
        control: int,
        irqs: IRQIndex,
        messenger: Messenger,
    ) -> None:
        self._config = config
        self.offset = offset
        self._irqs = irqs
        self._messenger = messenger
        self._vectors: list[MessageVector] = []
        self._signalled: dict[int, int] = {}
        """The eventfds that the device has been given, by vector."""
        self._original = control & ~(pci.MSI_CONTROL_ENABLE | pci.MSI_CONTROL_MULTIPLE_ENABLE)
        self._wide = bool(control & pci.MSI_CONTROL_64BIT)
        self._maskable = bool(control & pci.MSI_CONTROL_MASKING)
        capable = (control & pci.MSI_CONTROL_MULTIPLE_CAPABLE) >> _CAPABLE_SHIFT
        self._order = min(capable, _MAX_ORDER)
        self._data = pci.MSI_DATA_64 if self._wide else pci.MSI_DATA_32
        self._mask = pci.MSI_MASK_64 if self._wide else pci.MSI_MASK_32
        self._pending = pci.MSI_PENDING_64 if self._wide else pci.MSI_PENDING_32
        last = self._pending if self._maskable else self._data
        self.size = last.offset + last.width

    def add_to_config(self) -> None:
        """Have the guest see the capability, disabled, instead of the device's."""
        control = self._order << _CAPABLE_SHIFT
        control |= pci.MSI_CONTROL_64BIT if self._wide else 0
        control |= pci.MSI_CONTROL_MASKING if self._maskable else 0
        for at in range(self.offset + pci.MSI_CONTROL.offset, self.offset + self.size):
            self._config.emulate(Register(at, 1), 0, 0xFF)
        self._config.mark_emulated(self.offset, self.size)
        self._set(pci.MSI_CONTROL, control)
        self._allow(pci.MSI_CONTROL, pci.MSI_CONTROL_ENABLE | pci.MSI_CONTROL_MULTIPLE_ENABLE)
        self._allow(pci.MSI_ADDRESS_LO, 0xFFFF_FFFF & ~_ADDRESS_ALIGNMENT)
        if self._wide:
            self._allow(pci.MSI_ADDRESS_HI, 0xFFFF_FFFF)
        self._allow(self._data, 0xFFFF)
        if self._maskable:
            self._allow(self._mask, (1 << (1 << self._order)) - 1)
            self._config.mark_changing(self._pending, self.offset)

    def remove_from_config(self) -> None:
        """Put back what the device says of itself: the kernel keeps whatever a guest writes there.

        :raises VFIOError: the device does not answer.
        """
        self._config.device_set(pci.MSI_CONTROL, self._original, self.offset)

    # What the guest has written

    @property
    def enabled(self) -> bool:
        """Whether the guest has it enabled."""
        return bool(self._get(pci.MSI_CONTROL) & pci.MSI_CONTROL_ENABLE)

    @property
    def allocated(self) -> int:
        """How many vectors the guest has given a message: 1, 2, 4 ... 32."""
        order = (self._get(pci.MSI_CONTROL) & pci.MSI_CONTROL_MULTIPLE_ENABLE) >> _ENABLED_SHIFT
        return 1 << min(order, self._order)

    def message(self, vector: int) -> Message:
        """What a vector writes: its number is in the low bits of the data."""
        address = self._get(pci.MSI_ADDRESS_LO)
        if self._wide:
            address |= self._get(pci.MSI_ADDRESS_HI) << 32
        return Message(address, self._get(self._data) & -self.allocated | vector)

    def masked(self, vector: int) -> bool:
        """Whether the guest has masked a vector."""
        return self._maskable and bool(self._get(self._mask) & 1 << vector)

    def _deliverable(self, vector: int) -> bool:
        return vector < self.allocated and not self.masked(vector)

    def written(self) -> None:
        """The guest has written to the capability: messages and masks may be others.

        :raises BaseException: what the host's code raised first; all is followed nevertheless.
        """
        if not self.enabled:
            return
        self._limit_allocated()
        calls = Calls()
        for vector, found in enumerate(self._vectors):
            if found.routed and vector < self.allocated:
                calls.make(found.route, self.message(vector))
            calls.make(self._signal, vector)
        calls.end()

    def _signal(self, vector: int) -> None:
        """Have the device signal a vector where it belongs now."""
        eventfd = self._wanted(vector)
        if self._signalled.get(vector) == eventfd:
            return
        self._signalled.pop(vector, None)
        if self._irqs.try_eventfds(vector, [eventfd]):
            self._signalled[vector] = eventfd

    def _wanted(self, vector: int) -> int:
        """The emulator's eventfd, but for what must not reach the guest now."""
        found = self._vectors[vector]
        return found.preferred_fd if self._deliverable(vector) else found.own_fd

    def _limit_allocated(self) -> None:
        """More vectors than the device has are taken for all that it has."""
        control = self._get(pci.MSI_CONTROL) & ~pci.MSI_CONTROL_MULTIPLE_ENABLE
        order = self.allocated.bit_length() - 1
        self._set(pci.MSI_CONTROL, control | order << _ENABLED_SHIFT)

    def deliver_pending(self) -> None:
        """Send what is pending and not masked any more; without a message it is dropped.

        :raises BaseException: what the host's code raised first; the others are sent.
        """
        if not (self.enabled and self._maskable):
            return
        self._set_pending(self._get(self._pending) & ((1 << self.allocated) - 1))
        calls = Calls()
        for vector in range(self.allocated):
            pending = self._get(self._pending)  # a host may let its guest run at each message
            if pending & 1 << vector and self.enabled and self._deliverable(vector):
                self._set_pending(pending & ~(1 << vector))
                calls.make(self._messenger.send, self.message(vector))
        calls.end()

    def _set_pending(self, pending: int) -> None:
        self._set(self._pending, pending)

    # Signals

    def enable(self) -> None:
        """Have the device signal the vectors that the guest has allocated, or as many as it can.

        :raises VFIOError: the device refuses; nothing is left enabled.
        :raises OSError: no descriptor is left.
        """
        count = self.allocated
        while count:
            count = self._try_enable(count)

    def _try_enable(self, count: int) -> int:
        """Enable so many vectors; returns with how many to try again, 0 once it is done."""
        try:
            for vector in range(count):
                self._vectors.append(self._messenger.vector(partial(self._fired, vector)))
                self._vectors[vector].route(self.message(vector))
            eventfds = [self._wanted(vector) for vector in range(count)]
            self._irqs.set_eventfds(0, eventfds)
        except BaseException as error:
            self.disable()  # several messages may have been needed, and some gone through
            if not isinstance(error, IRQError) or not 0 < (error.available or 0) < count:
                raise
            self._irqs.report(f"enable {count} vectors of", error)
            return error.available or 0
        self._signalled = dict(enumerate(eventfds))
        return 0

    def disable(self) -> None:
        """Have nothing signalled any more.  May be repeated."""
        self._irqs.disable()
        self._signalled.clear()
        vectors, self._vectors = self._vectors, []
        close_vectors(vectors)

    def _fired(self, vector: int) -> None:
        if vector >= self.allocated:
            return  # the guest has taken its message away
        if self.masked(vector):
            self._set_pending(self._get(self._pending) | 1 << vector)
        else:
            self._messenger.send(self.message(vector))

    # State

    def reset(self) -> None:
        """As after power-on: disabled, no message."""
        writable = pci.MSI_CONTROL_ENABLE | pci.MSI_CONTROL_MULTIPLE_ENABLE
        self._set(pci.MSI_CONTROL, self._get(pci.MSI_CONTROL) & ~writable)
        cleared = [pci.MSI_ADDRESS_LO, self._data]
        cleared += [pci.MSI_ADDRESS_HI] if self._wide else []
        cleared += [self._mask, self._pending] if self._maskable else []
        for register in cleared:
            self._set(register, 0)

    def _get(self, register: Register) -> int:
        return self._config.get(register, self.offset)

    def _set(self, register: Register, value: int) -> None:
        self._config.set(register, value, self.offset)

    def _allow(self, register: Register, mask: int) -> None:
        self._config.allow(register, mask, self.offset)
