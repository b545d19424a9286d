# SPDX-License-Identifier: BSD-3-Clause
"""DMA_MAP and DMA_UNMAP, as far as a client sees what becomes of them."""

from __future__ import annotations

import errno

import pytest

from tests.conformance.protocol.device import cut, in_step, references
from tests.conformance.protocol.peers import Host
from tests.conformance.protocol.specification import spec
from tests.fault import raw
from tests.fault.clients import IOVA, PAGE, memfd
from tests.fault.raw import RawClient

READ_WRITE = raw.READABLE | raw.WRITABLE
OVERLAPS = {
    "the same": (IOVA, 4 * PAGE),
    "the first page": (IOVA, PAGE),
    "the last page": (IOVA + 3 * PAGE, PAGE),
    "the middle": (IOVA + PAGE, 2 * PAGE),
    "over the start": (IOVA - PAGE, 2 * PAGE),
    "over the end": (IOVA + 3 * PAGE, 2 * PAGE),
    "around": (IOVA - PAGE, 6 * PAGE),
}
"""Ranges that share an address with 4 pages at ``IOVA``."""
PARTS = {name: OVERLAPS[name] for name in ("the first page", "the last page", "the middle")}


@pytest.fixture
def mapped(client: RawClient) -> RawClient:
    """A client with 4 pages mapped at ``IOVA``, without a descriptor."""
    client.done(raw.DMA_MAP, raw.dma_map(IOVA, 4 * PAGE))
    return client


# DMA_MAP


@spec("VFIO_USER_DMA_MAP / Reply", "Client memory access")
@pytest.mark.parametrize("flags", [raw.READABLE, raw.WRITABLE, READ_WRITE])
def test_a_map_with_a_descriptor_is_answered_without_payload(client: RawClient, flags: int) -> None:
    with memfd(PAGE) as fd:
        reply = client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE, flags=flags), [fd])
    assert (reply.payload, reply.fds) == (b"", ())


@spec("VFIO_USER_DMA_MAP / Reply", "VFIO_USER_DMA_MAP / Request")
@pytest.mark.parametrize("flags", [raw.READABLE, raw.WRITABLE, READ_WRITE])
def test_a_map_without_a_descriptor_is_answered_without_payload(
    client: RawClient, flags: int
) -> None:
    assert client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE, flags=flags)).payload == b""


@spec("VFIO_USER_DMA_MAP / Request")
def test_a_map_may_start_anywhere_in_its_file(client: RawClient) -> None:
    with memfd(4 * PAGE) as fd:
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE, offset=3 * PAGE), [fd])


@spec("VFIO_USER_DMA_MAP / Request")
@pytest.mark.parametrize("kind", ["by messages", "by mapping"])
@pytest.mark.parametrize(("address", "size"), OVERLAPS.values(), ids=OVERLAPS)
def test_a_map_over_an_existing_one_gets_eexist(
    client: RawClient, kind: str, address: int, size: int
) -> None:
    with memfd(8 * PAGE) as fd, memfd(8 * PAGE) as other:
        fds, others = ([fd], [other]) if kind == "by mapping" else ([], [])
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, 4 * PAGE), fds)
        assert client.refused(raw.DMA_MAP, raw.dma_map(address, size), others) == errno.EEXIST


@spec("VFIO_USER_DMA_MAP / Request")
def test_the_same_map_again_gets_eexist(client: RawClient) -> None:
    with memfd(PAGE) as fd:
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])
        assert client.refused(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd]) == errno.EEXIST


@spec("VFIO_USER_DMA_MAP / Request", "VFIO_USER_DMA_UNMAP / Request")
@pytest.mark.parametrize("name", ["over the start", "over the end", "around"])
def test_a_map_that_was_refused_leaves_the_existing_one(mapped: RawClient, name: str) -> None:
    mapped.refused(raw.DMA_MAP, raw.dma_map(*OVERLAPS[name]))
    mapped.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, 4 * PAGE))


@spec("VFIO_USER_DMA_MAP / Request")
def test_maps_may_touch(mapped: RawClient) -> None:
    mapped.done(raw.DMA_MAP, raw.dma_map(IOVA - PAGE, PAGE))
    mapped.done(raw.DMA_MAP, raw.dma_map(IOVA + 4 * PAGE, PAGE))


@spec("VFIO_USER_DMA_MAP / Request")
@pytest.mark.parametrize(
    ("address", "size"),
    [(0, PAGE), (1 << 32, 1 << 32), ((1 << 64) - PAGE, PAGE)],
    ids=["the first page", "4 GiB", "the last page"],
)
def test_addresses_and_sizes_have_64_bits(client: RawClient, address: int, size: int) -> None:
    client.done(raw.DMA_MAP, raw.dma_map(address, size))
    client.done(raw.DMA_UNMAP, raw.dma_unmap(address, size))


@spec("VFIO_USER_VERSION / Request", "VFIO_USER_DMA_MAP / Request")
def test_as_many_maps_as_a_server_says_by_saying_nothing_are_possible(client: RawClient) -> None:
    for number in range(100):  # of 65,535
        client.done(raw.DMA_MAP, raw.dma_map(IOVA + 2 * number * PAGE, PAGE))


@spec("VFIO_USER_DMA_MAP / Request", "Security Considerations")
def test_a_map_that_is_refused_leaves_no_descriptor_behind(client: RawClient, peer: Host) -> None:
    with memfd(PAGE) as fd:
        request = raw.dma_map(IOVA, PAGE, flags=READ_WRITE | 1 << 31)
        assert client.refused(raw.DMA_MAP, request, [fd]) == errno.EINVAL
        assert in_step(client)
        assert references(peer.pid) == 0


# DMA_UNMAP


@spec("VFIO_USER_DMA_UNMAP / Reply")
def test_unmap_is_answered_with_its_entry(mapped: RawClient) -> None:
    request = raw.dma_unmap(IOVA, 4 * PAGE)
    assert mapped.done(raw.DMA_UNMAP, request).payload == request


@spec("VFIO_USER_DMA_UNMAP / Reply", "VFIO_USER_DMA_UNMAP")
def test_what_was_unmapped_can_be_mapped_again(mapped: RawClient) -> None:
    mapped.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, 4 * PAGE))
    mapped.done(raw.DMA_MAP, raw.dma_map(IOVA + PAGE, PAGE))


@spec("VFIO_USER_DMA_UNMAP / Request")
@pytest.mark.parametrize(("address", "size"), PARTS.values(), ids=PARTS)
def test_unmap_of_a_part_is_refused(mapped: RawClient, address: int, size: int) -> None:
    assert cut(mapped, address, size)
    mapped.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, 4 * PAGE))


@spec("VFIO_USER_DMA_UNMAP / Request")
@pytest.mark.parametrize("name", ["over the start", "over the end"])
def test_unmap_of_a_range_that_cuts_a_map_is_refused(mapped: RawClient, name: str) -> None:
    assert cut(mapped, *OVERLAPS[name])
    mapped.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, 4 * PAGE))


@spec("VFIO_USER_DMA_UNMAP / Request")
def test_unmap_leaves_the_other_maps(mapped: RawClient) -> None:
    mapped.done(raw.DMA_MAP, raw.dma_map(IOVA + 4 * PAGE, PAGE))
    mapped.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA + 4 * PAGE, PAGE))
    mapped.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, 4 * PAGE))


@spec("VFIO_USER_DMA_UNMAP / Reply")
def test_no_reference_to_the_memory_is_left_when_unmap_is_answered(
    client: RawClient, peer: Host
) -> None:
    with memfd(4 * PAGE) as fd:
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, 2 * PAGE, offset=PAGE), [fd])
        client.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, 2 * PAGE))
        assert references(peer.pid) == 0


@spec("VFIO_USER_DMA_UNMAP / Reply", "Header")
def test_an_unmap_without_reply_is_done_when_the_next_command_is_answered(
    client: RawClient, peer: Host
) -> None:
    with memfd(PAGE) as fd:
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])
        client.send(raw.frame(raw.DMA_UNMAP, raw.dma_unmap(IOVA, PAGE), flags=raw.NO_REPLY))
        assert in_step(client)
        assert references(peer.pid) == 0


@spec("VFIO_USER_DMA_UNMAP / Request", "Message sizes")
def test_room_for_more_than_the_reply_is_not_used(mapped: RawClient) -> None:
    reply = mapped.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, 4 * PAGE, argsz=4096))
    assert len(reply.payload) == 24
