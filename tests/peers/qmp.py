# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's two control channels, each on a connected socket: QMP (JSON) and qtest (lines of words).

docs/interop/qmp-spec.rst and the comment at the head of system/qtest.c describe them.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from pyvfio.closing import Closing

ANSWER_SECONDS = 60.0
"""A machine that waits for a device that is stopped answers after seconds."""


class Lines(Closing):
    """Lines of text on a socket, which this object owns."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(ANSWER_SECONDS)
        self._socket = sock
        self._file = sock.makefile("r", encoding="utf-8", newline="\n")

    def connect(self, path: Path) -> None:
        """Connect a socket that is not."""
        self._socket.connect(str(path))

    def send(self, line: str) -> None:
        self._socket.sendall(f"{line}\n".encode())

    def receive(self) -> str:
        """The next line; raises :class:`EOFError` where there is none any more."""
        try:
            line = self._file.readline()
        except ConnectionResetError:  # it went without having read everything
            line = ""
        if not line:
            raise EOFError("QEMU closed its control channel")
        return line.rstrip()

    def close(self) -> None:
        """Close the socket.  May be repeated."""
        self._file.close()
        self._socket.close()


class QMPError(Exception):
    """QEMU refused a command, with this description."""


class QMP:
    """QEMU's monitor.

    :ivar events: those that nobody has waited for yet, in order.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.events: list[dict[str, Any]] = []
        assert "QMP" in json.loads(lines.receive())
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """What the command returns; an underscore in an argument's name is a hyphen.

        :raises QMPError: it failed.
        """
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._lines.send(json.dumps({"execute": command, "arguments": given}))
        while True:
            message = json.loads(self._lines.receive())
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise QMPError(message["error"]["desc"])
            self.events.append(message)

    def wait(self, event: str) -> dict[str, Any]:
        """The data of the next event of that name; earlier ones of other names are dropped."""
        while True:
            if not self.events:
                self.events.append(json.loads(self._lines.receive()))
            message = self.events.pop(0)
            if message["event"] == event:
                found: dict[str, Any] = message.get("data", {})
                return found


class Qtest:
    """A machine's buses, driven in place of its processor."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._interrupts: dict[int, bool] = {}

    def ask(self, *words: object) -> list[str]:
        """The words behind ``OK`` in the answer to a command."""
        self._lines.send(" ".join(str(word) for word in words))
        while True:
            status, *answer = self._lines.receive().split()
            if status == "IRQ":
                self._interrupts[int(answer[1])] = answer[0] == "raise"
                continue
            assert status == "OK", (words, status, answer)
            return answer

    def load(self, address: int, width: int) -> int:
        """One read of memory or of a register in it."""
        (value,) = self.ask(f"read{_WIDTHS[width]}", hex(address))
        return int(value, 16)

    def store(self, address: int, width: int, value: int) -> None:
        """One write to memory or to a register in it."""
        self.ask(f"write{_WIDTHS[width]}", hex(address), hex(value))

    def read(self, address: int, size: int) -> bytes:
        """Bytes of guest memory."""
        (text,) = self.ask("read", hex(address), hex(size))
        return bytes.fromhex(text.removeprefix("0x"))

    def write(self, address: int, data: bytes) -> None:
        """Write guest memory."""
        self.ask("write", hex(address), hex(len(data)), f"0x{data.hex()}")

    def port_in(self, port: int, width: int) -> int:
        """One read of an I/O port."""
        (value,) = self.ask(f"in{_WIDTHS[width]}", hex(port))
        return int(value, 16)

    def port_out(self, port: int, width: int, value: int) -> None:
        """One write to an I/O port."""
        self.ask(f"out{_WIDTHS[width]}", hex(port), hex(value))

    def lines_up(self) -> set[int]:
        """The interrupt lines that are raised, of those that ``irq_intercept_in`` has chosen."""
        self.ask("endianness")  # what has changed comes before the answer to anything
        return {line for line, up in self._interrupts.items() if up}


_WIDTHS = {1: "b", 2: "w", 4: "l", 8: "q"}
