# SPDX-License-Identifier: BSD-3-Clause
"""DEVICE_SET_IRQS: every kind of data with every action, on every interrupt that a device has."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import product
from typing import TypeAlias

import pytest

from tests.conformance.devices import REGISTERS, Dev
from tests.conformance.protocol.device import AUTOMASKED, MASKABLE, Device, IRQFacts, in_step
from tests.conformance.protocol.specification import needs, spec
from tests.fault import raw
from tests.fault.clients import eventfds
from tests.fault.raw import fired

Enabled: TypeAlias = tuple[IRQFacts, list[int]]
"""An interrupt index, and the eventfds of its first vectors."""

DATA = {"none": raw.NONE, "bool": raw.BOOL, "eventfd": raw.EVENTFD}
ACTIONS = {"mask": raw.MASK, "unmask": raw.UNMASK, "trigger": raw.TRIGGER}
PAIRS = [(data, action) for data, action in product(DATA, ACTIONS)]
BOOLS = {raw.BOOL: b"\1"}

NOT_ONE_OF_EACH = {
    "no data": raw.TRIGGER,
    "no action": raw.NONE,
    "nothing": 0,
    "none and bool": raw.NONE | raw.BOOL | raw.TRIGGER,
    "none and eventfd": raw.NONE | raw.EVENTFD | raw.TRIGGER,
    "bool and eventfd": raw.BOOL | raw.EVENTFD | raw.TRIGGER,
    "mask and unmask": raw.NONE | raw.MASK | raw.UNMASK,
    "unmask and trigger": raw.NONE | raw.UNMASK | raw.TRIGGER,
    "all actions": raw.NONE | raw.MASK | raw.UNMASK | raw.TRIGGER,
}


def counts(fds: list[int]) -> list[int]:
    """How often each eventfd was signalled; what the server did, it did before it answered."""
    return [fired(fd, 0) for fd in fds]


def each(device: Device) -> Iterator[Enabled]:
    """Every index, with an eventfd for its first vector."""
    for irq in device.irqs:
        with eventfds(1) as fds:
            device.enable(irq, fds)
            yield irq, fds


@pytest.fixture
def three(device: Device) -> Iterator[Enabled]:
    """An index with several vectors, three of which have eventfds."""
    with eventfds(3) as fds:
        device.enable(many(device), fds)
        yield many(device), fds


def many(device: Device) -> IRQFacts:
    """An index with several vectors."""
    return next(irq for irq in device.irqs if irq.count > 2)


@spec("VFIO_USER_DEVICE_SET_IRQS / Reply")
def test_set_irqs_is_answered_without_payload(device: Device) -> None:
    for irq in device.irqs:
        with eventfds(1) as fds:
            request = raw.irq_set(raw.EVENTFD | raw.TRIGGER, irq.index, 0, 1)
            assert device.client.done(raw.SET_IRQS, request, fds).payload == b""


@spec("VFIO_USER_DEVICE_SET_IRQS / Request", "Interrupts")
def test_a_triggered_interrupt_signals_its_eventfd(device: Device) -> None:
    for irq, fds in each(device):
        assert counts(fds) == [0]
        device.trigger(irq)
        assert counts(fds) == [1]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
@pytest.mark.parametrize("wanted", [0, 1])
def test_an_interrupt_is_triggered_where_its_boolean_is_true(device: Device, wanted: int) -> None:
    for irq, fds in each(device):
        request = raw.irq_set(raw.BOOL | raw.TRIGGER, irq.index, 0, 1, data=bytes([wanted]))
        device.client.done(raw.SET_IRQS, request)
        assert counts(fds) == [wanted]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
@needs("vectors")
def test_the_booleans_choose_among_the_vectors_of_the_range(device: Device, three: Enabled) -> None:
    irq, fds = three
    request = raw.irq_set(raw.BOOL | raw.TRIGGER, irq.index, 1, 2, data=b"\0\1")
    device.client.done(raw.SET_IRQS, request)
    assert counts(fds) == [0, 0, 1]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
@needs("vectors")
def test_trigger_reaches_the_vectors_of_the_range_only(device: Device, three: Enabled) -> None:
    irq, fds = three
    device.trigger(irq, 1, 1)
    assert counts(fds) == [0, 1, 0]
    device.trigger(irq, 1, 2)
    assert counts(fds) == [0, 1, 1]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
@needs("vectors")
def test_vectors_may_be_set_in_any_number_of_messages(device: Device) -> None:
    irq = many(device)
    with eventfds(3) as fds:
        for vector in (2, 0, 1):
            device.enable(irq, [fds[vector]], vector)
        device.trigger(irq, 0, 3)
        assert counts(fds) == [1, 1, 1]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
@needs("vectors")
def test_vectors_of_a_range_without_descriptors_are_taken_away(
    device: Device, three: Enabled
) -> None:
    irq, fds = three
    request = raw.irq_set(raw.EVENTFD | raw.TRIGGER, irq.index, 1, 1)
    device.client.done(raw.SET_IRQS, request)
    device.trigger(irq, 0, 3)
    assert counts(fds) == [1, 0, 1]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
def test_an_interrupt_without_a_descriptor_is_taken_away(device: Device) -> None:
    for irq, fds in each(device):
        request = raw.irq_set(raw.EVENTFD | raw.TRIGGER, irq.index, 0, 1)
        device.client.done(raw.SET_IRQS, request)
        device.trigger(irq)
        assert counts(fds) == [0]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
def test_another_descriptor_replaces_the_first(device: Device) -> None:
    for irq in device.irqs:
        with eventfds(2) as fds:
            device.enable(irq, fds[:1])
            device.enable(irq, fds[1:])
            device.trigger(irq)
            assert counts(fds) == [0, 1]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
def test_a_count_of_0_disables_the_whole_index(device: Device) -> None:
    for irq in device.irqs:
        with eventfds(min(irq.count, 3)) as fds:
            device.enable(irq, fds)
            device.disable(irq)
            device.trigger(irq, 0, len(fds))
            assert counts(fds) == [0] * len(fds)


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
def test_a_disabled_index_can_be_enabled_again(device: Device) -> None:
    for irq, fds in each(device):
        device.disable(irq)
        device.enable(irq, fds)
        device.trigger(irq)
        assert counts(fds) == [1]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
def test_indexes_are_independent(device: Device) -> None:
    with eventfds(len(device.irqs)) as fds:
        for irq, fd in zip(device.irqs, fds, strict=True):
            device.enable(irq, [fd])
        for irq in device.irqs:
            device.trigger(irq)
        assert counts(fds) == [1] * len(fds)
        device.disable(device.irqs[0])
        for irq in device.irqs:
            device.trigger(irq)
        assert counts(fds) == [0, *[1] * (len(fds) - 1)]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
@pytest.mark.parametrize(("data", "action"), PAIRS, ids=map(" ".join, PAIRS))
def test_each_combination_is_carried_out_or_refused(device: Device, data: str, action: str) -> None:
    for irq in device.irqs:
        with eventfds(2) as fds:
            device.enable(irq, fds[:1])
            given = fds[1:] if data == "eventfd" else []
            bools = BOOLS.get(DATA[data], b"")
            request = raw.irq_set(DATA[data] | ACTIONS[action], irq.index, 0, 1, data=bools)
            reply = device.client.ask(raw.SET_IRQS, request, given)
            assert (reply.payload, reply.fds) == (b"", ())
            assert reply.error == 0 or action != "trigger"
            assert in_step(device.client)
            device.disable(irq)


@spec("VFIO_USER_DEVICE_GET_IRQ_INFO / Reply", "VFIO_USER_DEVICE_SET_IRQS / Request")
@needs("maskable")
@pytest.mark.parametrize("data", ["none", "bool"])
def test_what_can_be_masked_is_masked_and_unmasked(device: Device, data: str) -> None:
    for irq in (irq for irq in device.irqs if irq.flags & MASKABLE):
        with eventfds(1) as fds:
            device.enable(irq, fds)
            for action in (raw.MASK, raw.UNMASK):
                bools = BOOLS.get(DATA[data], b"")
                request = raw.irq_set(DATA[data] | action, irq.index, 0, 1, data=bools)
                assert device.client.done(raw.SET_IRQS, request).payload == b""


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
@pytest.mark.parametrize("flags", NOT_ONE_OF_EACH.values(), ids=NOT_ONE_OF_EACH)
def test_one_kind_of_data_and_one_action_or_it_is_refused(device: Device, flags: int) -> None:
    for irq in device.irqs:
        bools = b"\1" if flags & raw.BOOL else b""
        request = raw.irq_set(flags, irq.index, 0, 1, data=bools)
        assert device.client.refused(raw.SET_IRQS, request) == errno.EINVAL
    assert in_step(device.client)


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
def test_vectors_that_an_index_does_not_have_are_refused(device: Device) -> None:
    for irq in device.irqs:
        for start, count in ((0, irq.count + 1), (irq.count, 1), (0xFFFF_FFFF, 2)):
            request = raw.irq_set(raw.NONE | raw.TRIGGER, irq.index, start, count)
            assert device.client.refused(raw.SET_IRQS, request) == errno.EINVAL


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
def test_an_index_that_the_device_does_not_have_is_refused(device: Device) -> None:
    request = raw.irq_set(raw.NONE | raw.TRIGGER, device.info[2], 0, 1)
    assert device.client.refused(raw.SET_IRQS, request) == errno.EINVAL


@spec("VFIO_USER_DEVICE_SET_IRQS / Request", "Header")
def test_set_irqs_without_reply_is_done_when_the_next_command_is_answered(
    device: Device,
) -> None:
    for irq in device.irqs:
        with eventfds(1) as fds:
            request = raw.irq_set(raw.EVENTFD | raw.TRIGGER, irq.index, 0, 1)
            device.client.send(raw.frame(raw.SET_IRQS, request, flags=raw.NO_REPLY), fds)
            device.trigger(irq)
            assert counts(fds) == [1]


# A pin: INTx of the test device


def set_pin(device: Device, level: int) -> None:
    """Have the test device assert or lower its interrupt pin."""
    device.client.write32(REGISTERS, Dev.PIN, level)


def act(device: Device, action: int) -> None:
    """Mask or unmask INTx."""
    device.client.done(raw.SET_IRQS, raw.irq_set(raw.NONE | action, raw.INTX, 0, 1))


@spec("VFIO_USER_DEVICE_GET_IRQ_INFO / Reply", "Interrupts")
@needs("registers")
def test_what_masks_itself_fires_once_until_it_is_unmasked(device: Device) -> None:
    assert device.irq(raw.INTX).flags & AUTOMASKED
    with eventfds(1) as fds:
        device.enable(device.irq(raw.INTX), fds)
        set_pin(device, 1)
        assert counts(fds) == [1]
        set_pin(device, 0)
        set_pin(device, 1)
        assert counts(fds) == [0]
        act(device, raw.UNMASK)
        assert counts(fds) == [1]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
@needs("registers")
def test_an_interrupt_that_is_masked_does_not_fire_until_it_is_unmasked(device: Device) -> None:
    with eventfds(1) as fds:
        device.enable(device.irq(raw.INTX), fds)
        act(device, raw.MASK)
        set_pin(device, 1)
        assert counts(fds) == [0]
        act(device, raw.UNMASK)
        assert counts(fds) == [1]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
@needs("registers")
@pytest.mark.parametrize("wanted", [0, 1])
def test_an_interrupt_is_masked_where_its_boolean_is_true(device: Device, wanted: int) -> None:
    with eventfds(1) as fds:
        device.enable(device.irq(raw.INTX), fds)
        flags = raw.BOOL | raw.MASK
        request = raw.irq_set(flags, raw.INTX, 0, 1, data=bytes([wanted]))
        device.client.done(raw.SET_IRQS, request)
        set_pin(device, 1)
        assert counts(fds) == [1 - wanted]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request", "Interrupts")
@needs("registers")
def test_a_device_signals_the_eventfd_of_the_vector_that_it_fires(device: Device) -> None:
    device.client.enable_bus_master()
    with eventfds(3) as fds:
        device.enable(device.irq(raw.MSIX), fds)
        device.client.write32(REGISTERS, Dev.FIRE, 2)
        assert counts(fds) == [0, 0, 1]
