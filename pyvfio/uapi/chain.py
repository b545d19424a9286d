# SPDX-License-Identifier: BSD-3-Clause
"""Capability chains behind a VFIO info struct (``struct vfio_info_cap_header``).

Both the kernel and a vfio-user server append such a chain to a region info.  It is read here with
every bound checked, because a server is not trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pyvfio.uapi import vfio
from pyvfio.uapi.layout import Buffer


class InfoCapability(NamedTuple):
    """One node of a chain: its id, version, and the bytes behind its header."""

    id: int
    version: int
    data: bytes


class ChainError(ValueError):
    """The chain does not stay inside of its struct, or loops."""


def walk(info: Buffer, start: int, first: int) -> Iterator[InfoCapability]:
    """The nodes of a chain, in order.

    :param info: the whole info struct with the chain behind it.
    :param start: size in bytes of the fixed part; no node begins before it.
    :param first: offset of the first node from the start of ``info``; 0 is an empty chain.
    :raises ChainError: a node lies outside of ``info``, or a node leads back.
    """
    header = vfio.CAPABILITY_HEADER
    offset, lowest = first, start
    while offset:
        if offset < lowest or offset + header.size > len(info):
            raise ChainError(f"capability at {offset} of {len(info)} bytes, after {lowest}")
        node = header.unpack_from(info, offset)
        # Nodes only ever lead forward, which bounds the walk; a node ends where the next begins.
        end = node.next if node.next > offset else len(info)
        data = bytes(info[offset + header.size : end])
        yield InfoCapability(node.id, node.version, data)
        offset, lowest = node.next, offset + header.size


def build(start: int, capabilities: Sequence[InfoCapability]) -> bytes:
    """The bytes of a chain whose first node stands at offset ``start`` of its struct."""
    header = vfio.CAPABILITY_HEADER
    chain = bytearray()
    for position, capability in enumerate(capabilities):
        data = capability.data + bytes(-len(capability.data) % 8)
        last = position == len(capabilities) - 1
        following = 0 if last else start + len(chain) + header.size + len(data)
        chain += header.pack(capability.id, capability.version, following)
        chain += data
    return bytes(chain)


def sparse_areas(capability: InfoCapability) -> list[vfio.SparseMmapArea]:
    """The areas that a ``SPARSE_MMAP`` capability lists, size-0 areas left out.

    :raises ChainError: more areas are announced than there are bytes.
    """
    head, area = vfio.SPARSE_MMAP, vfio.SPARSE_MMAP_AREA
    if len(capability.data) < head.size:
        raise ChainError("sparse mmap capability is cut short")
    count = head.unpack_from(capability.data).nr_areas
    if count > (len(capability.data) - head.size) // area.size:
        raise ChainError(f"sparse mmap capability announces {count} areas but is too short")
    areas = (
        area.unpack_from(capability.data, head.size + index * area.size) for index in range(count)
    )
    return [found for found in areas if found.size]


def sparse_capability(areas: Sequence[vfio.SparseMmapArea]) -> InfoCapability:
    """The ``SPARSE_MMAP`` capability that lists ``areas``."""
    data = vfio.SPARSE_MMAP.pack(len(areas), 0)
    data += b"".join(vfio.SPARSE_MMAP_AREA.pack(area.offset, area.size) for area in areas)
    return InfoCapability(vfio.RegionCapability.SPARSE_MMAP, 1, data)


def region_type(capability: InfoCapability) -> vfio.RegionType:
    """The type and subtype that a ``TYPE`` capability carries.

    :raises ChainError: it is cut short.
    """
    if len(capability.data) < vfio.REGION_TYPE.size:
        raise ChainError("region type capability is cut short")
    return vfio.REGION_TYPE.unpack_from(capability.data)
