# SPDX-License-Identifier: BSD-3-Clause
"""The power state that a guest gives a function."""

from __future__ import annotations

import pytest

from pyvfio.emulator.config import EmulatedConfig
from pyvfio.uapi import pci
from tests.unit.raw_config import RawConfig

AT = 0x40
CONTROL = AT + 4
D1, D2 = 0x0200, 0x0400


@pytest.fixture
def config() -> EmulatedConfig:
    """A function with power management, of which nothing is writable but the state."""
    device = RawConfig()
    config = EmulatedConfig(device.region, 256, "guest")
    config.writable[AT : AT + 8] = bytes(8)
    config.power.attach(AT)
    return config


def supporting(config: EmulatedConfig, states: int) -> None:
    """The function has these states as well as D0 and D3."""
    config.set(pci.PM_CAPABILITIES, states, AT)


def test_a_function_without_power_management_is_in_d0() -> None:
    config = EmulatedConfig(RawConfig().region, 256, "guest")
    config.power.reset()
    assert (config.power.offset, config.power.state) == (None, 0)


def test_the_guest_changes_the_state_and_nothing_else(config: EmulatedConfig) -> None:
    config.write(CONTROL, 2, 0xFFFF)
    assert config.power.state == 3
    assert config.get(pci.PM_CONTROL, AT) == 3


@pytest.mark.parametrize(
    ("states", "old", "new", "reached"),
    [
        (0, 0, 3, 3),
        (0, 3, 0, 0),
        (0, 0, 1, 0),
        (0, 0, 2, 0),
        (D1, 0, 1, 1),
        (D2, 0, 2, 2),
        (D1 | D2, 1, 2, 2),
        (D1 | D2, 2, 3, 3),
        (D1 | D2, 2, 1, 2),
        (D1 | D2, 3, 1, 3),
        (D1 | D2, 3, 2, 3),
        (D1 | D2, 2, 0, 0),
        (0, 3, 3, 3),
        (0, 2, 2, 2),
    ],
)
def test_a_function_goes_down_to_what_it_has_or_back_to_d0(
    config: EmulatedConfig, states: int, old: int, new: int, reached: int
) -> None:
    supporting(config, states)
    config.set(pci.PM_CONTROL, old, AT)
    config.write(CONTROL, 1, new)
    assert config.power.state == reached


def test_a_refused_state_leaves_the_other_bits_as_they_are(config: EmulatedConfig) -> None:
    config.set(pci.PM_CONTROL, 0x0108, AT)
    config.write(CONTROL, 2, 2)
    assert config.get(pci.PM_CONTROL, AT) == 0x0108


def test_followers_are_told_when_d0_is_left_and_reached(config: EmulatedConfig) -> None:
    supporting(config, D1 | D2)
    states: list[int] = []
    config.power.follow(lambda: states.append(config.power.state))
    for state in (0, 1, 2, 1, 3, 0, 0):
        config.write(CONTROL, 2, state)
    assert states == [1, 0]


def test_a_follower_that_is_taken_away_is_told_no_more(config: EmulatedConfig) -> None:
    calls: list[int] = []

    def told() -> None:
        calls.append(config.power.state)

    config.power.follow(told)
    config.power.unfollow(told)
    config.power.unfollow(told)
    config.write(CONTROL, 2, 3)
    assert calls == []


def test_a_write_to_another_byte_of_the_capability_changes_no_state(config: EmulatedConfig) -> None:
    config.write(CONTROL + 2, 2, 0xFFFF)
    config.write(AT + 2, 2, 0xFFFF)
    assert config.power.state == 0


def test_a_reset_brings_it_back_to_d0(config: EmulatedConfig) -> None:
    config.write(CONTROL, 2, 3)
    config.reset()
    assert config.power.state == 0


def test_a_function_has_power_management_once(config: EmulatedConfig) -> None:
    with pytest.raises(ValueError, match="at 0x40 already"):
        config.power.attach(0x50)
