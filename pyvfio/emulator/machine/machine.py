# SPDX-License-Identifier: BSD-3-Clause
"""The machine: memory, bus, interrupts and a processor, run by one thread."""

from __future__ import annotations

import select
import time
from contextlib import ExitStack
from typing import Protocol

from pyvfio.closing import Closing
from pyvfio.emulator.bus import Bus, BusFunction, BusKind
from pyvfio.emulator.events import Events
from pyvfio.emulator.host import Host, Requester
from pyvfio.emulator.machine import interrupts
from pyvfio.emulator.machine.host_bridge import HostBridge
from pyvfio.emulator.machine.interrupts import InterruptController
from pyvfio.emulator.machine.result import Outcome, Result
from pyvfio.emulator.memory import AliasRegion, MemoryRegion, MMIORegion, RAMRegion, Topology
from pyvfio.memory import PAGE_SIZE
from pyvfio.polling import milliseconds
from pyvfio.uapi.layout import Buffer

RAM_SIZE = 16 << 20
SLICE, SLICE_SECONDS = 100_000, 0.002
"""Instructions, and seconds of device accesses, until what devices have signalled is looked at."""

MAX_RAM_SIZE = 3 << 30
"""What is above belongs to BARs and the machine itself."""

BEHIND, IN_FRONT = -1, 1
"""Priorities of what devices show in memory: RAM and the machine's own are in front of it."""

LEGACY_VGA = (0xA0000, 0x20000)
"""Address and bytes of what a VGA device shows in front of the RAM, if there is one."""


class Pluggable(BusFunction, Protocol):
    """A function that the machine can have; :class:`GuestFunction` is one."""

    @property
    def events(self) -> Events:
        """What it waits for."""

    def realize(self, bus: Bus, slot: int, number: int = 0) -> None:
        """Put it on a bus."""

    def unrealize(self) -> None:
        """Take it off.  May be repeated."""


class Machine(Host, Closing):
    """A small PC: RAM from address 0, a processor, a PCI Express host bridge.

    :param ram_size: bytes, in whole pages.
    :raises BackendUnavailable: Unicorn is not installed.
    :raises ValueError: no such size.
    :raises VFIOError: there is no memory left.

    ==========================  =========================================================
    addresses                   what is there
    ==========================  =========================================================
    0 to ``ram_size``           RAM
    0xfee00000                  interrupt controller; messages of devices go to it as well
    where the guest says        window of configuration space (host bridge, register 0x60)
    where the guest says        BARs
    ports 0xcf8 to 0xcff        configuration mechanism #1
    ==========================  =========================================================
    """

    def __init__(self, ram_size: int = RAM_SIZE) -> None:
        from pyvfio.emulator.machine.unicorn_cpu import UnicornCPU  # noqa: PLC0415 - an extra

        if not 0 < ram_size <= MAX_RAM_SIZE or ram_size % PAGE_SIZE:
            raise ValueError(f"{ram_size} bytes of RAM; whole pages, and up to 3 GiB, are possible")
        self.interrupts = InterruptController(self._pause)
        self.topology = Topology()
        self._functions: list[Pluggable] = []
        self._taken = 0
        with ExitStack() as undo:
            self.ram = undo.enter_context(RAMRegion("RAM", ram_size))
            undo.callback(self.topology.close)
            self._build()
            self.cpu = undo.enter_context(UnicornCPU(self.memory, self.ports))
            undo.callback(self._unplug_all)
            self._undo = undo.pop_all()

    def _build(self) -> None:
        root, ports = MemoryRegion("system", 1 << 64), MemoryRegion("ports", 1 << 16)
        behind = MemoryRegion("PCI", 1 << 64)
        root.add(behind, 0, BEHIND)
        root.add(self.ram, 0)
        start, size = LEGACY_VGA
        root.add(AliasRegion("legacy VGA", behind, start, size), start, IN_FRONT)
        controller = MMIORegion("interrupt controller", interrupts.SIZE, self.interrupts)
        root.add(controller, interrupts.BASE)
        self.memory = self.topology.space("memory", root)
        self.ports = self.topology.space("ports", ports)
        self.bus = Bus(
            self.topology,
            memory=behind,
            io=ports,
            dma=self.memory,
            host=self,
            kind=BusKind.ROOT_COMPLEX,
        )
        self.bridge = HostBridge(self.bus, root, ports)

    def _pause(self) -> None:
        self.cpu.pause()

    # Functions

    def plug(self, function: Pluggable, slot: int, number: int = 0) -> None:
        """Realize a function on the bus; it is unrealized by :meth:`unplug` or :meth:`close`.

        What it raises is raised; it is not on the bus then.
        """
        function.realize(self.bus, slot, number)
        self._functions.append(function)

    def unplug(self, function: Pluggable) -> None:
        """Take a function off the bus.

        :raises ValueError: it is not there.
        """
        if function not in self._functions:
            raise ValueError(f"{function.name} is not plugged into this machine")
        self._functions.remove(function)
        function.unrealize()

    def _unplug_all(self) -> None:
        with ExitStack() as undo:
            for function in self._functions:
                undo.callback(function.unrealize)
            self._functions.clear()

    # What functions ask for

    def send_msi(self, function: Requester, address: int, data: int) -> None:
        """A message: an interrupt, or a write to memory where its address is another."""
        if self.interrupts.takes(address):
            self.interrupts.message(address, data)
        else:
            self.memory.write(address, 4, data)

    def set_pin(self, function: Requester, pin: int, level: bool) -> None:
        """A pin; INTA to INTD are those of all functions."""
        self.interrupts.set_pin(function, pin, level)

    # The program

    def load(self, address: int, data: Buffer) -> None:
        """Put bytes into RAM.

        :raises ValueError: they do not fit.
        """
        size = memoryview(data).nbytes
        if address < 0 or address + size > self.ram.size:
            raise ValueError(f"{size} bytes at {address:#x} are not within the RAM")
        self.ram.write_bytes(address, data)
        self.cpu.forget_code()

    def start(self, entry: int, stack: int) -> None:
        """Have the processor begin at an address, in protected mode, interrupts off.

        :param stack: the first byte behind the stack.
        """
        self.cpu.reset()
        self.cpu["eip"], self.cpu["esp"] = entry, stack

    def reset(self) -> None:
        """Everything but RAM to its state after power-on; :meth:`start` says where to go on.

        :raises VFIOError: a device refused, or is gone; the others are reset all the same.
        """
        self.cpu.reset()
        self.interrupts.reset()
        self.bus.reset()

    # Running

    def run(self, timeout: float, instructions: int | None = None) -> Result:
        """Let the guest run; it goes on where the run before has left it.

        :param timeout: seconds.
        :param instructions: how many may be executed.
        :raises ValueError: a negative time or number.
        :raises BaseException: what a function or a listener of the memory map has raised; the
            guest's instruction is done, and the guest can go on.
        """
        if not timeout >= 0 or (instructions is not None and instructions < 0):
            raise ValueError(f"a run of {timeout} s and {instructions} instructions")
        started, before, taken = time.monotonic(), self.cpu.executed, self._taken
        limit = None if instructions is None else before + instructions
        outcome, reason = self._run(started + timeout, limit)
        return Result(
            outcome,
            reason,
            self.cpu.registers,
            self.cpu.executed - before,
            self._taken - taken,
            time.monotonic() - started,
        )

    def _run(self, deadline: float, limit: int | None) -> tuple[Outcome, str]:
        while True:
            for function in self._functions:
                function.events.dispatch(0)
            if not self.cpu.halted and not self._allowed(limit):
                return Outcome.LIMIT, "stopped at the limit of instructions"
            self._take_interrupt()
            if self.cpu.fault is not None:
                return Outcome.FAULT, self.cpu.fault
            if self.cpu.halted and not self.cpu.accepts_interrupts:
                return Outcome.HALTED, "halted"
            left = deadline - time.monotonic()
            if left <= 0:
                where = ", waiting for an interrupt" if self.cpu.halted else ""
                return Outcome.TIMED_OUT, f"out of time{where}"
            if self.cpu.halted:
                self._wait(left)
            else:
                masked = self.interrupts.pending is not None
                seconds = min(left, SLICE_SECONDS)
                self.cpu.run(self._allowed(limit), seconds, await_interrupts=masked)

    def _allowed(self, limit: int | None) -> int:
        return SLICE if limit is None else min(SLICE, limit - self.cpu.executed)

    def _take_interrupt(self) -> None:
        if not self._interruptible:
            return
        if not self.cpu.halted and self.cpu.follows_sti:
            self.cpu.run(1, SLICE_SECONDS)
            if not self._interruptible:
                return
        vector = self.interrupts.take()
        self.cpu.interrupt(vector)
        self._taken += 1

    @property
    def _interruptible(self) -> bool:
        return (
            self.interrupts.pending is not None
            and self.cpu.accepts_interrupts
            and self.cpu.fault is None
        )

    def _wait(self, seconds: float) -> None:
        """Wait until a function has something to dispatch, or the time is up."""
        poller = select.poll()
        for function in self._functions:
            poller.register(function.events, select.POLLIN)
            left = function.events.timeout
            seconds = seconds if left is None else min(seconds, left)
        poller.poll(milliseconds(seconds))

    def close(self) -> None:
        """Take every function off, and release the RAM.  May be repeated.

        :raises BufferInUse: a numpy view of the RAM is alive.
        """
        self._undo.close()
