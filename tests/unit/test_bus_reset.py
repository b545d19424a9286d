# SPDX-License-Identifier: BSD-3-Clause
"""Which functions of a bus are reset together, and in what order."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from pyvfio.emulator.bus_reset import reset_all
from pyvfio.errors import ResetError


class Alone:
    """A function that only resets itself."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self._log = log

    def reset(self) -> None:
        self._log.append(f"reset {self.name}")


class Shared(Alone):
    """A function that is reset with others; it may fail in a step."""

    def __init__(
        self, name: str, log: list[str], addresses: Collection[str] = (), fails: str = ""
    ) -> None:
        super().__init__(name, log)
        self._addresses = addresses
        self._fails = fails

    def resets_with(self) -> Collection[str]:
        return self._addresses

    def before_reset(self) -> None:
        self._step("before")

    def hot_reset(self) -> None:
        self._step("hot")

    def after_reset(self) -> None:
        self._step("after")

    def _step(self, what: str) -> None:
        self._log.append(f"{what} {self.name}")
        if what == self._fails:
            raise ResetError(f"{what} {self.name} failed")


PAIR = ("0000:02:00.0", "0000:02:00.1")


def test_all_that_a_bus_has_is_reset_by_one_hot_reset() -> None:
    log: list[str] = []
    reset_all([Shared("a", log, PAIR), Alone("b", log), Shared("c", log, PAIR[::-1])])
    assert log == ["before a", "before c", "hot a", "after a", "after c", "reset b"]


@pytest.mark.parametrize("addresses", [(), PAIR, PAIR[:1], (*PAIR, "0000:02:00.2")])
def test_a_function_whose_others_are_not_here_is_reset_alone(addresses: Collection[str]) -> None:
    log: list[str] = []
    reset_all([Shared("a", log, addresses)])
    assert log == ["reset a"]


def test_two_buses_are_two_resets() -> None:
    log: list[str] = []
    others = ("0000:03:00.0", "0000:03:00.1")
    functions = [Shared(name, log, of) for name, of in zip("abcd", (PAIR, others) * 2, strict=True)]
    reset_all(functions)
    assert [entry for entry in log if entry.startswith("hot")] == ["hot a", "hot b"]
    assert not any(entry.startswith("reset") for entry in log)


@pytest.mark.parametrize("step", ["before", "hot", "after"])
def test_a_step_that_fails_leaves_none_out(step: str) -> None:
    log: list[str] = []
    functions = [Shared("a", log, PAIR, fails=step), Shared("b", log, PAIR), Alone("c", log)]
    with pytest.raises(ResetError, match=f"{step} a failed"):
        reset_all(functions)
    assert log == ["before a", "before b", "hot a", "after a", "after b", "reset c"]
