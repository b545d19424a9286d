# SPDX-License-Identifier: BSD-3-Clause
"""What is to be saved of a hosted model, taken out of it and put into it."""

from __future__ import annotations

import errno
import logging
import struct
import threading
from collections.abc import Generator, Iterator, Mapping

from pyvfio.memory import SharedMemory
from pyvfio.server.config_space import ModelConfigSpace
from pyvfio.server.failures import FAILURES
from pyvfio.server.interrupts import Interrupts
from pyvfio.server.model import DeviceModel
from pyvfio.server.msix import MSIXState
from pyvfio.server.saved_state import PIECE, Declared, Kind, LoadedMemory, RecordReader
from pyvfio.server.used_memory import used_pieces

log = logging.getLogger(__name__)

_BAR = struct.Struct("<IQ?")


class Contents:
    """The state of a device, with that of its model.

    :param lock: the function's own.
    :param memory: BAR -> memory, of the backed ones.
    :ivar declared: what a stream for this device must be of.
    :ivar has_precopy: there is something to save of a running device.
    """

    def __init__(
        self,
        model: DeviceModel,
        *,
        lock: threading.RLock,
        config: ModelConfigSpace,
        interrupts: Interrupts,
        msix: MSIXState | None,
        memory: Mapping[int, SharedMemory],
    ) -> None:
        self._model = model
        self._lock = lock
        self._config = config
        self._interrupts = interrupts
        self._msix = msix
        self.memory = {bar: (backing, model.bars[bar].size) for bar, backing in memory.items()}
        own_precopy = type(model).precopy_data is not DeviceModel.precopy_data
        self.declared = Declared(
            version=model.migration_version,
            layout=self._layout(),
            precopy=own_precopy,
            memory={bar: size for bar, (_, size) in self.memory.items()},
            sizes={kind: len(saved) for kind, saved in self._server_parts().items()},
        )
        self.has_precopy = bool(self.memory) or own_precopy

    def _layout(self) -> bytes:
        """The types of the BARs are in configuration space."""
        bars = sorted(self._model.bars.items())
        listed = b"".join(_BAR.pack(number, bar.size, bar.backed) for number, bar in bars)
        return self._config.layout() + listed + self._model.rom

    def _server_parts(self) -> dict[Kind, bytes]:
        """What the server keeps of the device, but for memory."""
        found = {
            Kind.CONFIG: self._config.read(0, self._config.size),
            Kind.INTERRUPTS: self._interrupts.save(),
        }
        if self._msix is not None:
            found[Kind.MSIX] = self._msix.save()
        return found

    # Saving

    def save(self) -> dict[Kind, bytes]:
        """The parts of a stopped device but for memory; raises what the model fails with."""
        with self._model.lock:
            saved = self._model.save_state()
            if not isinstance(saved, bytes | bytearray | memoryview):
                raise TypeError(f"save_state gave {type(saved).__name__}, not bytes")
            with self._lock:
                return {**self._server_parts(), Kind.MODEL: bytes(saved)}

    def precopy(self) -> Generator[bytes]:
        """The model's own pieces of a running device; nothing stands for nothing now.

        To be closed when the session is over.
        """
        with self._model.lock:
            pieces = self._model.precopy_data()
        try:
            while True:
                with self._model.lock:
                    piece = next(pieces, None)
                if piece is None:
                    return
                yield piece
        finally:
            self._close(pieces)

    def _close(self, pieces: Iterator[bytes]) -> None:
        if isinstance(pieces, Generator):
            try:
                with self._model.lock:
                    pieces.close()
            except FAILURES:
                log.exception("the model failed when its pre-copy was over")

    # Loading

    def load(self, saved: RecordReader) -> None:
        """Take on a stream that has ended.

        :raises OSError: EINVAL; it is none of this device's, which was not touched.
        :raises Exception: what the model fails with, whose state is of no use then.
        """
        try:
            saved.finish()
            self._check(saved.parts)
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from error
        with self._model.lock:
            for bar, loaded in saved.memory.items():
                _load_memory(*self.memory[bar], loaded)
            with self._lock:
                self._load_server_parts(saved.parts)
            self._load_model(saved)

    def _check(self, parts: Mapping[Kind, bytes]) -> None:
        self._config.check_saved(parts[Kind.CONFIG])
        self._interrupts.check_saved(parts[Kind.INTERRUPTS])
        if self._msix is not None:
            self._msix.check_saved(parts[Kind.MSIX])

    def _load_server_parts(self, parts: Mapping[Kind, bytes]) -> None:
        self._config.load(parts[Kind.CONFIG])
        if self._msix is not None:
            self._msix.load(parts[Kind.MSIX])
        self._interrupts.load(parts[Kind.INTERRUPTS])

    def _load_model(self, saved: RecordReader) -> None:
        try:
            for piece in saved.precopy:
                self._model.load_precopy_data(piece)
            self._model.load_state(saved.parts[Kind.MODEL], saved.version)
        except (ValueError, struct.error) as error:
            raise OSError(errno.EINVAL, f"the model refuses its state: {error}") from error


def _load_memory(memory: SharedMemory, size: int, loaded: LoadedMemory) -> None:
    """Write what came, and zeros where something was; what nobody used takes no memory."""
    used = {start // PIECE * PIECE for start, _ in used_pieces(memory, size)}
    for at in used | loaded.pieces:
        memory.array[at : min(at + PIECE, size)] = loaded.contents[at : at + PIECE]
