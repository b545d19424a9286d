# SPDX-License-Identifier: BSD-3-Clause
"""Functions of a guest that share a group, and a bus: their maps, and their reset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

import pyvfio
from pyvfio.emulator import FunctionOptions, GuestFunction
from pyvfio.uapi import pci
from tests.conformance.devices import Edu
from tests.guest.suite.conftest import EDU, bound
from tests.small_machine import Guest, SmallMachine

SLOT = 3


@pytest.fixture
def machine() -> Iterator[SmallMachine]:
    with SmallMachine() as found:
        yield found


@pytest.fixture
def pair(machine: SmallMachine) -> Iterator[list[Guest]]:
    """The two edu functions behind the second root port, as functions of one slot."""
    with ExitStack() as closing:
        guests = []
        for number in (0, 1):
            dev = closing.enter_context(pyvfio.open(f"vfio:{bound(EDU, 1 + number)}"))
            options = FunctionOptions(multifunction=number == 0)
            function = closing.enter_context(GuestFunction(dev, options))
            function.realize(machine.bus, SLOT, number)
            guests.append(Guest(machine, function))
        yield guests


def test_functions_of_a_group_share_the_maps_of_the_guests_memory(
    machine: SmallMachine, pair: list[Guest]
) -> None:
    one, other = (guest.function for guest in pair)
    assert one.realized.dma_listener is other.realized.dma_listener
    one.unrealize()
    assert [entry.iova for entry in other.dev.dma.mappings] == [0]
    other.unrealize()
    assert machine.memory.listeners == ()


def test_functions_that_only_a_hot_reset_resets_are_reset_by_one(
    machine: SmallMachine, pair: list[Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for guest in pair:
        dev = guest.function.dev
        hot_reset = dev.hot_reset

        def count(hot_reset: Callable[[], None] = hot_reset, uri: str = dev.uri) -> None:
            hot_reset()
            done.append(uri)

        monkeypatch.setattr(dev, "hot_reset", count)
    machine.bus.reset()
    assert done == [pair[0].function.dev.uri]
    for guest in pair:
        bar = guest.place_bars()[0]
        guest.write32(bar + Edu.LIVENESS, 0x1234_5678)
        assert guest.read32(bar + Edu.LIVENESS) == 0xEDCB_A987
        guest.set(pci.COMMAND, 0)  # the other's BAR is put in the same place
