# SPDX-License-Identifier: BSD-3-Clause
"""DMA of a device: by mapping where a descriptor came, by DMA_READ and DMA_WRITE where none did.

The device is the test device, whose registers start DMA.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from tests.conformance.devices import MEMORY, TO_CLIENT, TO_DEVICE
from tests.conformance.protocol.device import in_step
from tests.conformance.protocol.peers import Host
from tests.conformance.protocol.specification import READ_AND_WRITE_OPERATIONS, spec
from tests.fault import raw
from tests.fault.clients import (
    IOVA,
    PAGE,
    TWIN,
    finish_test_dma,
    memfd,
    pattern,
    prepare_test_dma,
    run_test_dma,
    start_test_dma,
)
from tests.fault.raw import Message, Peer, RawClient, answer

SMALL = b'{"capabilities":{"max_data_xfer_size":1024}}\0'
PATTERN = pattern(PAGE)

pytestmark = pytest.mark.needs("registers")


def serve(peer: Peer, request: Message, contents: bytearray) -> None:
    """Answer a DMA request from ``contents``, which is mapped at ``IOVA``."""
    address, count = request.words("QQ")
    at = address - IOVA
    if request.command == raw.DMA_READ:
        data = bytes(contents[at : at + count])
        peer.send(answer(request, raw.dma_range(address, count, data)))
    else:
        contents[at : at + count] = request.payload[16:]
        peer.send(answer(request, raw.dma_range(address, count)))


@pytest.fixture
def messages(client: RawClient) -> RawClient:
    """A client whose memory, a page, can only be reached by messages."""
    client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
    prepare_test_dma(client)
    return client


# DMA_READ and DMA_WRITE


@spec("VFIO_USER_DMA_READ / Request", "Header")
def test_dma_read_has_the_range_and_nothing_else(messages: RawClient) -> None:
    start_test_dma(messages, TO_DEVICE)
    request = messages.receive()
    assert (request.command, request.flags, request.error) == (raw.DMA_READ, 0, 0)
    assert request.payload == raw.dma_range(IOVA, PAGE)
    serve(messages, request, bytearray(PAGE))
    assert finish_test_dma(messages) == 0


@spec("VFIO_USER_DMA_READ / Reply")
def test_the_device_gets_the_data_of_dma_read(messages: RawClient) -> None:
    start_test_dma(messages, TO_DEVICE)
    serve(messages, messages.receive(), bytearray(PATTERN))
    assert finish_test_dma(messages) == 0
    assert messages.read(MEMORY, 0, PAGE) == PATTERN


@spec("VFIO_USER_DMA_WRITE / Request", "Header")
def test_dma_write_has_the_range_and_the_data(messages: RawClient) -> None:
    messages.write(MEMORY, 0, PATTERN)
    start_test_dma(messages, TO_CLIENT)
    request = messages.receive()
    assert (request.command, request.flags & raw.TYPE, request.error) == (raw.DMA_WRITE, 0, 0)
    assert request.payload == raw.dma_range(IOVA, PAGE, PATTERN)
    serve(messages, request, bytearray(PAGE))
    assert finish_test_dma(messages) == 0


@spec("VFIO_USER_DMA_WRITE / Reply")
@pytest.mark.parametrize("width", [4, 8])
def test_the_count_that_answers_dma_write_may_have_4_or_8_bytes(
    messages: RawClient, width: int
) -> None:
    start_test_dma(messages, TO_CLIENT)
    request = messages.receive()
    messages.send(answer(request, raw.dma_range(IOVA, PAGE)[: 8 + width]))
    assert finish_test_dma(messages) == 0


@spec(READ_AND_WRITE_OPERATIONS, "Message sizes", "VFIO_USER_VERSION / Request")
@pytest.mark.parametrize("direction", [TO_DEVICE, TO_CLIENT])
def test_no_request_is_for_more_than_the_client_takes(peer: Host, direction: int) -> None:
    contents = bytearray(PATTERN)
    with peer.connect() as client:
        client.negotiate(SMALL)
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
        prepare_test_dma(client)
        client.write(MEMORY, 0, PATTERN)
        start_test_dma(client, direction)
        for number in range(4):
            request = client.receive()
            assert request.words("QQ") == (IOVA + 1024 * number, 1024)
            serve(client, request, contents)
        assert finish_test_dma(client) == 0
        assert contents == client.read(MEMORY, 0, PAGE) == PATTERN


@spec("Header", "Request Retry and Response Timeout")
@pytest.mark.parametrize("direction", [TO_DEVICE, TO_CLIENT])
@pytest.mark.parametrize("number", [errno.EFAULT, 0])
def test_a_request_that_the_client_refuses_is_an_error_of_the_dma(
    messages: RawClient, direction: int, number: int
) -> None:
    start_test_dma(messages, direction)
    messages.send(raw.refusal(messages.receive(), number))
    assert finish_test_dma(messages) != 0
    assert in_step(messages)


@spec("Command Concurrency", "Socket")
def test_commands_are_answered_while_a_request_is_not(messages: RawClient) -> None:
    start_test_dma(messages, TO_DEVICE)
    request = messages.receive()
    assert in_step(messages)
    serve(messages, request, bytearray(PAGE))
    assert finish_test_dma(messages) == 0


@spec("Header")
def test_the_ids_of_both_directions_have_nothing_to_do_with_each_other(
    messages: RawClient,
) -> None:
    start_test_dma(messages, TO_DEVICE)
    request = messages.receive()
    messages.ask(raw.GET_INFO, raw.device_info(0, 0, 0), number=request.number)
    serve(messages, request, bytearray(PATTERN))
    assert finish_test_dma(messages) == 0


# The twin socket


@pytest.fixture
def twin(peer: Host) -> Iterator[tuple[RawClient, Peer]]:
    """A client with a twin socket, whose memory can only be reached by messages."""
    with peer.connect() as client:
        (fd,) = client.negotiate(TWIN).fds
        with Peer(socket.socket(fileno=fd)) as second:
            client.done(raw.RESET)
            client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
            prepare_test_dma(client)
            yield client, second


@spec("VFIO_USER_DMA_READ", "VFIO_USER_DMA_WRITE", "Socket")
@pytest.mark.parametrize("direction", [TO_DEVICE, TO_CLIENT])
def test_requests_and_their_replies_go_over_the_twin_socket(
    twin: tuple[RawClient, Peer], direction: int
) -> None:
    client, second = twin
    contents = bytearray(PATTERN)
    client.write(MEMORY, 0, PATTERN)
    start_test_dma(client, direction)
    request = second.receive()
    assert request.words("QQ") == (IOVA, PAGE)
    assert client.quiet(0.02)
    serve(second, request, contents)
    assert finish_test_dma(client) == 0
    assert contents == client.read(MEMORY, 0, PAGE) == PATTERN


# DMA through a descriptor


@spec("VFIO_USER_DMA_MAP / Request", "Client memory access")
def test_memory_with_a_descriptor_is_reached_without_a_message(client: RawClient) -> None:
    with memfd(2 * PAGE) as fd:
        os.pwrite(fd, PATTERN, PAGE)
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE, offset=PAGE), [fd])
        assert run_test_dma(client, TO_DEVICE) == 0
        assert client.read(MEMORY, 0, PAGE) == PATTERN
        client.write(MEMORY, 0, PATTERN[::-1])
        assert run_test_dma(client, TO_CLIENT) == 0
        assert os.pread(fd, 2 * PAGE, 0) == bytes(PAGE) + PATTERN[::-1]


@spec("VFIO_USER_DMA_MAP / Request")
@pytest.mark.parametrize("by_fd", [True, False], ids=["descriptor", "messages"])
@pytest.mark.parametrize(
    ("flags", "direction"), [(raw.READABLE, TO_CLIENT), (raw.WRITABLE, TO_DEVICE)]
)
def test_memory_is_not_reached_in_a_way_that_it_is_not_mapped_for(
    client: RawClient, by_fd: bool, flags: int, direction: int
) -> None:
    with memfd(PAGE) as fd:
        request = raw.dma_map(IOVA, PAGE, flags=flags)
        client.done(raw.DMA_MAP, request, [fd] if by_fd else [])
        client.write(MEMORY, 0, PATTERN)
        assert run_test_dma(client, direction) != 0
        assert os.pread(fd, PAGE, 0) == bytes(PAGE)


@spec("VFIO_USER_DMA_MAP", "VFIO_USER_DMA_READ / Request")
@pytest.mark.parametrize("direction", [TO_DEVICE, TO_CLIENT])
def test_memory_that_is_not_mapped_is_not_asked_for(client: RawClient, direction: int) -> None:
    assert run_test_dma(client, direction) != 0


@spec("VFIO_USER_DMA_UNMAP", "VFIO_USER_DMA_UNMAP / Reply", "VFIO_USER_DMA_WRITE / Request")
@pytest.mark.parametrize("by_fd", [True, False], ids=["descriptor", "messages"])
@pytest.mark.parametrize("direction", [TO_DEVICE, TO_CLIENT])
def test_memory_that_was_unmapped_is_not_reached_any_more(
    client: RawClient, by_fd: bool, direction: int
) -> None:
    with memfd(PAGE) as fd:
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd] if by_fd else [])
        client.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, PAGE))
        assert run_test_dma(client, direction) != 0


@spec("VFIO_USER_DMA_UNMAP / Reply", "Command Concurrency")
def test_an_unmap_is_not_answered_while_dma_to_it_is_under_way(messages: RawClient) -> None:
    start_test_dma(messages, TO_DEVICE)
    request = messages.receive()
    messages.send(raw.frame(raw.DMA_UNMAP, raw.dma_unmap(IOVA, PAGE)))
    assert messages.quiet(0.05)
    serve(messages, request, bytearray(PATTERN))
    assert messages.receive().command == raw.DMA_UNMAP
