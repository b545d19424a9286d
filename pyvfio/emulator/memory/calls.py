# SPDX-License-Identifier: BSD-3-Clause
"""Calls of which each is made, whatever the one before it raised."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ParamSpec

_Arguments = ParamSpec("_Arguments")


class Calls:
    """Keeps what calls raise, until all are made.

    :ivar errors: what was raised, in order.
    """

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def make(
        self,
        hook: Callable[_Arguments, object],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> bool:
        """Call ``hook``; returns whether it raised nothing."""
        try:
            hook(*args, **kwargs)
        except BaseException as error:  # what a signal handler raised waits as well
            self.errors.append(error)
            return False
        return True

    @property
    def error(self) -> BaseException | None:
        """What was raised first, with what was raised later as notes."""
        if not self.errors:
            return None
        return with_notes(self.errors[0], self.errors[1:])

    def end(self) -> None:
        """All are made: raise what was raised first, if anything was."""
        error = self.error
        if error is not None:
            raise error


def with_notes(error: BaseException, later: Iterable[BaseException]) -> BaseException:
    """``error``, which tells of those that were raised after it."""
    for other in later:
        error.add_note(f"and then {type(other).__name__}: {other}")
    return error
