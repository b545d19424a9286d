# SPDX-License-Identifier: BSD-3-Clause
"""Which kind of reset a device gets: QEMU's choice, for every kind of device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from pyvfio.emulator.capabilities import Capabilities
from pyvfio.emulator.reset import FunctionReset
from pyvfio.errors import RegionError, ResetError, UnsupportedError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Register

HERE, OTHER = "0000:01:00.0", "0000:01:00.1"


class Device:
    """A device that keeps which resets it was asked for.

    :param together: what a hot reset of it resets; None where it has none.
    :param refuses: the resets that it refuses.
    """

    uri = "made up"

    def __init__(
        self, resettable: bool, together: Sequence[str] | None, refuses: Sequence[str] = ()
    ) -> None:
        self.resettable = resettable
        self.asked: list[str] = []
        self.base = self
        self.config = self
        self._together = together
        self._refuses = refuses

    def find(self, wanted: object) -> None:
        """No power management."""

    def reset(self) -> None:
        self._ask("function")

    def hot_reset(self) -> None:
        self._ask("bus")

    def hot_reset_functions(self) -> Sequence[str]:
        if self._together is None:
            raise UnsupportedError("no bus")
        return self._together

    def _ask(self, kind: str) -> None:
        self.asked.append(kind)
        if kind in self._refuses:
            raise ResetError(f"no {kind} reset")


class Parts:
    """Configuration space, BARs and interrupts that only say what they were told."""

    name = "made up"

    def __init__(self, broken: bool = False) -> None:
        self.told: list[str] = []
        self._broken = broken

    def device_get(self, register: Register) -> int:
        if self._broken:
            raise RegionError("no answer")
        return 0x0007

    def device_set(self, register: Register, value: int) -> None:
        if register == pci.COMMAND:
            self.told.append(f"command {value}")

    def reset(self) -> None:
        self.told.append("reset")

    def disable_all(self) -> None:
        self.told.append("disable")

    def enable_intx(self) -> None:
        self.told.append("intx")


def function_reset(dev: Device, parts: Parts, flr: bool, pm: bool) -> FunctionReset:
    made_up = cast(Any, parts)
    return FunctionReset(
        cast(PCIDevice, dev),
        made_up,
        capabilities=Capabilities(has_flr=flr, has_pm_reset=pm),
        registers=made_up,
        interrupts=made_up,
        also=(),
    )


@pytest.mark.parametrize(
    ("resettable", "flr", "pm", "together", "asked"),
    [
        (True, True, False, None, ["function"]),
        (True, True, True, [HERE], ["function"]),
        (True, False, False, [HERE], ["function"]),
        (True, False, True, [HERE], ["bus"]),
        (True, False, True, [HERE, OTHER], ["function"]),
        (True, False, True, None, ["function"]),
        (False, True, False, [HERE], ["bus"]),
        (False, False, True, [HERE], ["bus"]),
        (False, False, False, [HERE, OTHER], []),
        (False, False, False, None, []),
    ],
)
def test_a_device_gets_the_strongest_reset_that_touches_no_other(
    *, resettable: bool, flr: bool, pm: bool, together: Sequence[str] | None, asked: list[str]
) -> None:
    dev = Device(resettable, together)
    function_reset(dev, Parts(), flr, pm).reset()
    assert dev.asked == asked


def test_a_refused_reset_of_the_function_is_followed_by_one_of_its_bus() -> None:
    dev = Device(True, [HERE], refuses=["function"])
    function_reset(dev, Parts(), flr=True, pm=False).reset()
    assert dev.asked == ["function", "bus"]


def test_a_refused_reset_of_the_bus_is_followed_by_that_of_the_function() -> None:
    dev = Device(True, [HERE], refuses=["bus"])
    function_reset(dev, Parts(), flr=False, pm=True).reset()
    assert dev.asked == ["bus", "function"]


def test_a_device_that_refuses_all_is_told_and_as_after_power_on_all_the_same() -> None:
    dev, parts = Device(True, [HERE], refuses=["bus", "function"]), Parts()
    with pytest.raises(ResetError):
        function_reset(dev, parts, flr=True, pm=False).reset()
    assert dev.asked == ["function", "bus", "function"]
    assert parts.told == ["disable", "command 0", "reset", "reset", "reset", "intx"]


def test_a_device_that_does_not_answer_leaves_the_guest_a_function_as_after_power_on() -> None:
    parts = Parts(broken=True)
    with pytest.raises(RegionError):
        function_reset(Device(True, None), parts, flr=True, pm=False).reset()
    assert parts.told == ["disable", "reset", "reset", "reset", "intx"]


@pytest.mark.parametrize(
    ("resettable", "flr", "pm", "together"),
    [
        (True, True, True, ()),
        (True, False, True, (HERE, OTHER)),
        (False, True, True, (HERE, OTHER)),
    ],
)
def test_only_what_has_no_good_reset_of_its_own_is_reset_with_others(
    *, resettable: bool, flr: bool, pm: bool, together: Sequence[str]
) -> None:
    dev = Device(resettable, [HERE, OTHER])
    assert tuple(function_reset(dev, Parts(), flr, pm).resets_with()) == together
