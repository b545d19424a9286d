# SPDX-License-Identifier: BSD-3-Clause
"""What everything has in common that is opened and closed."""

from __future__ import annotations

from abc import abstractmethod
from types import TracebackType
from typing import Self


class Closing:
    """Closed at the end of a ``with`` statement."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held.  May be repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
