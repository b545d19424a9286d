# SPDX-License-Identifier: BSD-3-Clause
"""Configuration space as the text that ``lspci -x`` prints and ``lspci -F FILE`` reads.

One line that begins with the address of the function, one for each 16 bytes, one that is empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pyvfio.pci import names
from pyvfio.pci.config import ConfigSpace

NO_ADDRESS = "00:00.0"
"""Stands for the address of a device that is on no bus."""
LINE = 16
LONGEST_TITLE = 200
"""Bytes; ``lspci`` gives up on a dump with a line that does not fit into its buffer of 256."""

_ADDRESS = re.compile(r"(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.ASCII | re.IGNORECASE)


def address_of(uri: str) -> str:
    """The bus address in a device's URI, or :data:`NO_ADDRESS`."""
    target = uri.partition(":")[2].partition("?")[0]
    return target if _ADDRESS.fullmatch(target) else NO_ADDRESS


def dump(config: ConfigSpace, address: str, size: int) -> str:
    """The first ``size`` bytes of configuration space; all of it, where there are fewer.

    :param address: of the function, as in :func:`address_of`.
    :raises RegionError: it cannot be read.
    """
    data = config.read_bytes(0, min(size, config.size))
    return "\n".join([_title(config, address), *hex_lines(data), "", ""])


def _title(config: ConfigSpace, address: str) -> str:
    vendor, device = config.vendor_id, config.device_id
    text = (
        f"{address} {names.class_name(config.class_code)}: {names.vendor_name(vendor)}"
        f" {names.device_name(vendor, device)} (rev {config.revision_id:02x})"
    )
    return text.encode("ascii", "replace")[:LONGEST_TITLE].decode()


def hex_lines(data: bytes) -> Iterator[str]:
    """Lines of 16 bytes, each with its offset."""
    for offset in range(0, len(data), LINE):
        yield f"{offset:02x}: {data[offset : offset + LINE].hex(' ')}"
