# SPDX-License-Identifier: BSD-3-Clause
"""A QEMU machine whose processor never starts: the test is what would run on it (``-qtest``)."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pyvfio.closing import Closing
from tests.guest.runner import ORPHAN_GUARD
from tests.peers.qemu import command, device_options, memory_options
from tests.peers.qmp import QMP, Lines, Qtest

MEMORY_MIB = 64
END_SECONDS = 60.0
ACPI_EJECT = 0xAE08
"""The port at which a guest lets go of hot-plugged devices (docs/specs/acpi_pci_hotplug.rst)."""


@dataclass(frozen=True)
class _Channel:
    """Both ends of a control channel."""

    lines: Lines
    theirs: socket.socket


@contextmanager
def _channel() -> Iterator[_Channel]:
    ours, theirs = socket.socketpair()
    with theirs, Lines(ours) as lines:
        yield _Channel(lines, theirs)


def _command_line(kind: str, qmp: int, qtest: int) -> list[str]:
    """A machine without devices, controlled by two connected sockets."""
    return [
        *(*command(), "-accel", "tcg", "-S", "-M", kind),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-chardev", f"socket,id=qmp,fd={qmp}", "-qmp", "chardev:qmp"),
        *("-chardev", f"socket,id=qtest,fd={qtest}", "-qtest", "chardev:qtest"),
        *("-qtest-log", "none"),
    ]


class Machine(Closing):
    """QEMU with the given devices, its buses ready when the constructor returns.

    :param devices: properties of each, as ``device_add`` takes them.
    :param kind: the machine type; ``pc`` can hot-plug on its root bus.
    :param shared: whether guest memory can be passed to servers.
    :raises EOFError: QEMU refused to start; :meth:`said` of the log tells why.
    """

    def __init__(
        self,
        devices: Sequence[dict[str, object]] = (),
        *,
        kind: str = "q35",
        shared: bool = True,
    ) -> None:
        with ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            ends = [stack.enter_context(_channel()) for _ in range(2)]
            fds = [end.theirs.fileno() for end in ends]
            options = [*memory_options(MEMORY_MIB, shared=shared), *device_options(*devices)]
            self.process = subprocess.Popen(
                [*ORPHAN_GUARD, str(os.getpid()), *_command_line(kind, *fds), *options],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=fds,
            )
            stack.callback(self._end)
            for end in ends:
                end.theirs.close()
            try:
                self.qmp = QMP(ends[0].lines)
                self.bus = Qtest(ends[1].lines)
            except EOFError as error:
                raise EOFError(f"QEMU did not start: {self.said()}") from error
            self._stack = stack.pop_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        """What QEMU has written to its standard output and standard error so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")  # QEMU's position

    def quit(self) -> int:
        """Ask QEMU to end; returns its exit status."""
        self.qmp.execute("quit")
        return self.process.wait(END_SECONDS)

    def unplug(self, device: str, slot: int) -> None:
        """Take a device by its id out of a ``pc``, as its guest would agree to."""
        self.qmp.execute("device_del", id=device)
        self.bus.port_out(ACPI_EJECT, 4, 1 << slot)
        self.qmp.wait("DEVICE_DELETED")

    def reset(self) -> None:
        """Reset the machine."""
        self.qmp.execute("system_reset")
        self.qmp.wait("RESET")

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End QEMU, if it runs.  May be repeated."""
        self._stack.close()
