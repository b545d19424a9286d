# SPDX-License-Identifier: BSD-3-Clause
"""Device models that migrate, and some that fail at it: ``tests.fault.migrating:Name``."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator, Mapping
from typing import ClassVar

from pyvfio.errors import VFIOError
from pyvfio.server.model import Identity, ModelBAR, ModelIOEventFD, ModelMSI, ModelMSIX
from tests.fault.models import IOVA, Small


class Movable(Small):
    """Registers that migrate; 0x20 has the version that was loaded."""

    migration_version = 2

    def save_state(self) -> bytes:
        return json.dumps(list(self.registers.items())).encode()

    def load_state(self, data: bytes, version: int) -> None:
        self.registers = {int(key): int(value) for key, value in json.loads(data)}
        self.registers[0x20] = version


class Older(Movable):
    """The same from before."""

    migration_version = 1


class Relative(Movable):
    """Another device of the same ids."""

    bars: ClassVar[Mapping[int, ModelBAR]] = {0: ModelBAR(8192)}


class Stranger(Movable):
    """Another device of the same layout."""

    identity = Identity(0x1234, 0x0002, 0xFF0000)


class Failing(Movable):
    """Fails on the arcs that bits of the register 0x08 name.

    ======  ====================================================================
    0x08    1 stopped, 2 started, 4 save_state, 8 load_state, 16 its error is no OSError
    0x10    calls of stopped, 0x18 of started
    ======  ====================================================================
    """

    def _fail(self, what: int) -> None:
        chosen = self.registers.get(0x08, 0)
        if chosen & what:
            raise RuntimeError("a mistake") if chosen & 16 else OSError(5, "as was asked for")

    def _count(self, register: int) -> None:
        self.registers[register] = self.registers.get(register, 0) + 1

    def stopped(self) -> None:
        self._count(0x10)
        self._fail(1)

    def started(self) -> None:
        self._count(0x18)
        self._fail(2)

    def save_state(self) -> bytes:
        self._fail(4)
        return super().save_state()

    def load_state(self, data: bytes, version: int) -> None:
        super().load_state(data, version)
        self._fail(8)

    def reset(self) -> None:
        self.registers.clear()


class Streaming(Movable):
    """Sends its registers while it runs, and what has changed of them when it is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self._sent: dict[int, int] = {}

    def _changed(self) -> list[tuple[int, int]]:
        entries = sorted(self.registers.items())
        return [entry for entry in entries if self._sent.get(entry[0]) != entry[1]]

    def precopy_data(self) -> Iterator[bytes]:
        try:
            while True:
                for entry in self._changed():
                    self._sent.update([entry])
                    yield json.dumps([entry]).encode()
                yield b""
        finally:
            self._sent.clear()

    def save_state(self) -> bytes:
        return json.dumps(self._changed()).encode()

    def load_precopy_data(self, data: bytes) -> None:
        self.registers.update({int(key): int(value) for key, value in json.loads(data)})

    def load_state(self, data: bytes, version: int) -> None:
        self.load_precopy_data(data)


class Breaking(Streaming):
    """Fails when its second piece is asked for."""

    def precopy_data(self) -> Iterator[bytes]:
        yield b"[]"
        raise OSError(errno.ENODATA, "there is no second one")


class Careless(Small):
    """Threads of its own that know nothing of migration, and work all the time.

    Each turn writes the number of the turn to the client's memory and fires all interrupts.

    ======  ====================================================================
    0x00    a write starts a turn; reads how many were done
    0x08    reads the errno of the last that failed
    ======  ====================================================================
    """

    migration_version = 1
    bars: ClassVar[Mapping[int, ModelBAR]] = {0: ModelBAR(4096), 1: ModelBAR(4096)}
    io_eventfds = (ModelIOEventFD(0, 0x00, 8),)
    interrupt_pin = 1
    msi = ModelMSI(4)
    msix = ModelMSIX(3, table=(1, 0), pba=(1, 0x800))

    def __init__(self) -> None:
        super().__init__()
        self._wanted = threading.Semaphore(0)
        self._closing = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self._wanted.release()

    def _run(self) -> None:
        while self._wanted.acquire() and not self._closing:
            turn = self.registers.get(0, 0) + 1
            try:
                self.dma_write(IOVA, turn.to_bytes(8, "little"))
            except VFIOError as error:
                with self.lock:
                    self.registers[8] = error.errno or errno.EIO
                continue
            with self.lock:
                self.registers[0] = turn
                self.set_intx(True)
                self.send_msi(3)
                self.send_msix(2)

    def reset(self) -> None:
        self.registers.clear()

    def save_state(self) -> bytes:
        return self.registers.get(0, 0).to_bytes(8, "little")

    def load_state(self, data: bytes, version: int) -> None:
        self.registers[0] = int.from_bytes(data, "little")

    def close(self) -> None:
        self._closing = True
        self._wanted.release()
        self._thread.join()
