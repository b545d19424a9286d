# SPDX-License-Identifier: BSD-3-Clause
"""Reset of all functions of a bus, of which some can only be reset together.

Facts: QEMU's ``vfio_reset_handler``, ``vfio_pci_hot_reset_multi``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, runtime_checkable

from pyvfio.errors import VFIOError


class ResettableFunction(Protocol):
    """A function that can be reset."""

    @property
    def name(self) -> str:
        """How messages call it."""

    def reset(self) -> None:
        """Reset this function alone."""


@runtime_checkable
class SharedReset(Protocol):
    """A function of which the device may share its reset with others."""

    def resets_with(self) -> Collection[str]:
        """The PCI addresses of what is reset with it where only a hot reset really resets it.

        Its own is among them; empty where it can be reset by itself, or not at all.
        """

    def before_reset(self) -> None:
        """The bus of the device is about to be reset: stop it."""

    def hot_reset(self) -> None:
        """Reset the bus of the device."""

    def after_reset(self) -> None:
        """The bus of the device was reset: as after power-on for the guest."""


def reset_all(functions: Sequence[ResettableFunction]) -> None:
    """Reset functions; all that share a bus by one hot reset, if they are all that is there.

    :raises VFIOError: what the first refused; the others are reset all the same.
    """
    steps = _Steps()
    sharing = _sharing(functions)
    for found in sharing:
        _reset_together(list(found.values()), steps)
    for position, function in enumerate(functions):
        if not any(position in found for found in sharing):
            steps.take(function.reset)
    steps.end()


def _sharing(functions: Sequence[ResettableFunction]) -> list[dict[int, SharedReset]]:
    """By position, those that one hot reset resets, and nothing else."""
    found: dict[frozenset[str], dict[int, SharedReset]] = {}
    for position, function in enumerate(functions):
        if isinstance(function, SharedReset):
            found.setdefault(frozenset(function.resets_with()), {})[position] = function
    return [each for addresses, each in found.items() if 1 < len(addresses) == len(each)]


def _reset_together(functions: Sequence[SharedReset], steps: _Steps) -> None:
    for function in functions:
        steps.take(function.before_reset)
    steps.take(functions[0].hot_reset)
    for function in functions:
        steps.take(function.after_reset)


class _Steps:
    """Steps of which each is taken, whatever the others raise."""

    def __init__(self) -> None:
        self._errors: list[VFIOError] = []

    def take(self, step: Callable[[], None]) -> None:
        """Take a step."""
        try:
            step()
        except VFIOError as error:
            self._errors.append(error)

    def end(self) -> None:
        """Raise what was raised first; the others are notes of it."""
        if self._errors:
            for other in self._errors[1:]:
                self._errors[0].add_note(str(other))
            raise self._errors[0]
