# SPDX-License-Identifier: BSD-3-Clause
"""A machine whose device is wrong, says nothing, or is gone: the guest ends, and says where."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

import pyvfio
from pyvfio.emulator import GuestFunction, edu_firmware
from pyvfio.emulator.edu_firmware import Report
from pyvfio.emulator.machine import Machine, Outcome, Result
from tests.support import ServerProcess

EDU_SLOT, OTHER_SLOT = 3, 4
SHORT, SECONDS = 1.0, 30.0

Serve = Callable[..., ServerProcess]


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as found:
        yield found


@pytest.fixture
def plug(machine: Machine) -> Iterator[Callable[[ServerProcess, int], None]]:
    """Put a served device on the machine's bus; it is closed after the machine."""
    with ExitStack() as devices:

        def plugged(server: ServerProcess, slot: int = EDU_SLOT) -> None:
            machine.plug(GuestFunction(devices.enter_context(pyvfio.open(server.uri))), slot)

        yield plugged
        machine.close()


def failed(report: Report) -> list[str]:
    """The steps that were begun and did not see what they should."""
    return [step.name for step in report.steps if not step.ok and step.value != "not reached"]


def waits(result: Result) -> bool:
    """Whether the guest was stopped while it waited for an interrupt."""
    return (result.outcome, result.reason) == (
        Outcome.TIMED_OUT,
        "out of time, waiting for an interrupt",
    )


@pytest.mark.parametrize(
    ("model", "step"),
    [
        ("tests.system.wrong_models:WrongIdentification", "identification"),
        ("tests.system.wrong_models:WrongLiveness", "liveness inverts"),
        ("tests.system.wrong_models:WrongFactorial", "factorial, polled"),
        ("tests.system.wrong_models:OneWrongByte", "DMA there and back, MSI"),
    ],
)
def test_the_firmware_notices_a_device_that_is_wrong(
    machine: Machine, plug: Callable[..., None], serve: Serve, model: str, step: str
) -> None:
    plug(serve(model))
    result, report = edu_firmware.run(machine, SECONDS)
    assert result.outcome is Outcome.HALTED
    assert step in failed(report)


def test_an_interrupt_that_never_comes_ends_the_run_at_its_step(
    machine: Machine, plug: Callable[..., None], serve: Serve
) -> None:
    plug(serve("tests.system.wrong_models:DeafPin"))
    result, report = edu_firmware.run(machine, SHORT)
    assert waits(result)
    assert failed(report) == ["INTx"]
    assert report.steps[-1].value == "not reached"


def test_a_server_that_dies_while_the_guest_waits_leaves_a_machine_that_can_be_closed(
    machine: Machine, plug: Callable[..., None], serve: Serve
) -> None:
    server = serve("tests.system.wrong_models:DeafPin")
    plug(server)
    edu_firmware.run(machine, SHORT)
    server.kill()
    assert waits(machine.run(SHORT))
    assert machine.bus.config_read(EDU_SLOT, 0, 0, 4) in (0x11E8_1234, 0xFFFF_FFFF)


def test_a_guest_whose_device_is_gone_reads_ones_and_comes_to_an_end(
    machine: Machine, plug: Callable[..., None], serve: Serve
) -> None:
    server = serve()
    plug(server)
    server.kill()
    result, report = edu_firmware.run(machine, SECONDS)
    assert result.outcome is Outcome.HALTED
    assert [str(found) for found in report.functions] == ["00.0 8086:29c0"]


def test_functions_beside_each_other_get_addresses_of_their_own(
    machine: Machine, plug: Callable[..., None], edu_server: ServerProcess, serve: Serve
) -> None:
    plug(edu_server, EDU_SLOT)
    plug(serve("testdev"), OTHER_SLOT)
    result, report = edu_firmware.run(machine, SECONDS)
    assert (result.outcome, report.ok) == (Outcome.HALTED, True)
    assert [str(found) for found in report.functions[1:]] == ["03.0 1234:11e8", "04.0 1b36:0005"]
    bars = [
        (region.offset, region.size)
        for parent in (machine.bus.memory, machine.bus.io)
        for region in parent.regions
        if " bar" in region.name
    ]
    assert len(bars) == 5
    assert [at % size for at, size in bars] == [0] * 5
    placed = sorted(bars)
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(placed))
