# SPDX-License-Identifier: BSD-3-Clause
"""What VERSION negotiates: the capabilities in its JSON, their defaults and their limits.

Specification, "Version Data Format".  Keys that are not known are ignored; a known key of the wrong
type or range is an error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

MAJOR = 0
MINOR = 1

DEFAULT_MAX_MSG_FDS = 1
DEFAULT_MAX_DATA_XFER_SIZE = 1 << 20
DEFAULT_MAX_DMA_MAPS = 65535
DEFAULT_PGSIZES = 4096

MAX_PAGE = 1 << 30
"""Bytes that the smallest page of ``pgsizes`` may have: every map is a multiple of it."""

MAX_FDS = 253
"""File descriptors that Linux passes in one message (``SCM_MAX_FD``)."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The capabilities of one side; None is a key that was not sent.

    :param max_msg_fds: descriptors that the sender takes in one message.
    :param max_data_xfer_size: bytes of data that the sender takes in one message.
    :param max_dma_maps: DMA ranges that may be mapped at one time.
    :param pgsizes: page sizes for DMA, each a bit.
    :param twin_socket: the sender can use a second socket for the server's commands.
    :param twin_fd_index: in a reply, which descriptor of it is that socket.
    :param write_multiple: REGION_WRITE_MULTI is understood.
    :param long_writes: a REGION_WRITE or MIG_DATA_WRITE of ``max_data_xfer_size`` is read whole.  A
        key of this package: others keep to that size in reads, and lose step over long writes.
    """

    max_msg_fds: int | None = None
    max_data_xfer_size: int | None = None
    max_dma_maps: int | None = None
    pgsizes: int | None = None
    twin_socket: bool | None = None
    twin_fd_index: int | None = None
    write_multiple: bool | None = None
    long_writes: bool | None = None

    def encode(self) -> bytes:
        """The JSON text with its terminating NUL."""
        found: dict[str, Any] = {}
        for name, key in (*((key, key) for key in _NUMBERS), *_BOOLEANS.items()):
            value = getattr(self, name)
            if value is not None:
                found[key] = value
        if self.twin_socket is not None:
            found["twin_socket"] = {"supported": self.twin_socket}
            if self.twin_fd_index is not None:
                found["twin_socket"]["fd_index"] = self.twin_fd_index
        return json.dumps({"capabilities": found}, separators=(",", ":")).encode() + b"\0"

    @classmethod
    def decode(cls, text: bytes) -> Capabilities:
        """Read the JSON behind a VERSION.

        :raises ValueError: it is not JSON, not NUL-terminated, or a known key has a value of the
            wrong type or out of range.
        """
        if not text.endswith(b"\0"):
            raise ValueError("the text does not end with NUL")
        try:
            document = json.loads(
                text[:-1].decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number
            )
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        found = _object("version data", document).get("capabilities", {})
        found = _object("capabilities", found)
        values: dict[str, Any] = {
            key: _number(key, found[key], low, high)
            for key, (low, high) in _NUMBERS.items()
            if key in found
        }
        for name, key in _BOOLEANS.items():
            if key in found:
                values[name] = _boolean(key, found[key])
        pgsizes = values.get("pgsizes", DEFAULT_PGSIZES)
        if pgsizes & -pgsizes > MAX_PAGE:
            raise ValueError(f"pgsizes {pgsizes:#x} has no page of at most {MAX_PAGE} bytes")
        if "twin_socket" in found:
            twin = _object("twin_socket", found["twin_socket"])
            values["twin_socket"] = _boolean("twin_socket", twin.get("supported", False))
            if "fd_index" in twin:
                values["twin_fd_index"] = _number("fd_index", twin["fd_index"], 0, MAX_FDS - 1)
        return cls(**values)


_NUMBERS = {
    "max_msg_fds": (0, 1 << 32),
    "max_data_xfer_size": (8, 1 << 32),
    "max_dma_maps": (1, 1 << 32),
    "pgsizes": (1, (1 << 64) - 1),
}
"""The numeric keys with the range that is sane; values above our own limits are clamped later."""

_BOOLEANS = {"write_multiple": "write_multiple", "long_writes": "pyvfio_long_writes"}
"""The boolean capabilities, and their keys in the JSON."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    return value


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is no boolean")
    return value


def _number(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is no whole number")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, outside of {low} to {high}")
    return value


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for sending to a peer: its capabilities with the defaults filled in."""

    max_msg_fds: int = DEFAULT_MAX_MSG_FDS
    max_data_xfer_size: int = DEFAULT_MAX_DATA_XFER_SIZE
    max_dma_maps: int = DEFAULT_MAX_DMA_MAPS
    pgsizes: int = DEFAULT_PGSIZES
    write_multiple: bool = False
    long_writes: bool = False

    @classmethod
    def of(cls, peer: Capabilities | None, own: Capabilities) -> Limits:
        """The limits of ``peer``, not beyond what this side can do itself."""
        peer = peer or Capabilities()
        defaults = cls()

        def value(key: str, most: int | None) -> int:
            sent = getattr(peer, key)
            stated: int = getattr(defaults, key) if sent is None else sent
            return stated if most is None else min(stated, most)

        return cls(
            max_msg_fds=value("max_msg_fds", MAX_FDS),
            max_data_xfer_size=value("max_data_xfer_size", own.max_data_xfer_size),
            max_dma_maps=value("max_dma_maps", own.max_dma_maps),
            pgsizes=value("pgsizes", None),
            write_multiple=bool(peer.write_multiple and own.write_multiple),
            long_writes=bool(peer.long_writes and own.long_writes),
        )
