# SPDX-License-Identifier: BSD-3-Clause
"""Exceptions at every place where a signal handler's could come, one after the other.

The interpreter runs handlers between two bytecodes: behind a call, at a jump back, and where a
function begins.  A trace function raises there, so that no place depends on luck.
"""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

_BEHIND = {dis.opmap[name] for name in ("CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME")}


class Alarm(Exception):
    """What is raised."""


class Places:
    """Where handlers may run in files of the package.

    :param files: their names.
    :ivar raised: the place where :class:`Alarm` was raised last; None where all have had theirs.
    """

    def __init__(self, *files: str) -> None:
        self._files = files
        self._had: set[tuple[CodeType, int]] = set()
        self.raised: tuple[str, int] | None = None

    def interrupt(self, work: Callable[[], object]) -> None:
        """Do it, with an exception at the next place that has had none."""
        self.raised = None
        before: dict[FrameType, int] = {}
        returned = False

        def enter(frame: FrameType, *_: object) -> Any:
            if os.path.basename(frame.f_code.co_filename) not in self._files:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return step

        def step(frame: FrameType, event: str, _: object) -> Any:
            nonlocal returned
            if event == "return":
                returned = True  # no handler runs behind the call of a Python function
            elif event == "opcode":
                last, before[frame] = before.get(frame), frame.f_lasti
                behind = last is not None and frame.f_code.co_code[last] in _BEHIND
                place, returned_now, returned = (frame.f_code, frame.f_lasti), returned, False
                if behind and not returned_now and place not in self._had:
                    self._had.add(place)
                    self.raised = frame.f_code.co_qualname, frame.f_lineno
                    raise Alarm
            return step

        sys.settrace(enter)
        try:
            work()
        except Alarm:
            pass
        finally:
            sys.settrace(None)
            before.clear()
