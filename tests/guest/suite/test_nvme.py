# SPDX-License-Identifier: BSD-3-Clause
"""The NVMe driver on QEMU's controller: data, vectors, errors, resets."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

import pyvfio
from pyvfio.drivers.nvme import Command, NVMeDriver, NVMeError, Request
from pyvfio.memory import ByteArray
from pyvfio.pci.device import PCIDevice
from tests.guest.machine import DISK_BYTES
from tests.support import open_fds

BLOCK = 512
BLOCKS = DISK_BYTES // BLOCK
ASYNCHRONOUS_EVENT_REQUEST = 0x0C
"""An admin command that is completed only when there is an event to tell."""


def fill(array: ByteArray, seed: int) -> None:
    """Write 64-bit words, all different, which differ with the seed as well."""
    words = array.view("<u8")
    words[:] = np.arange(1, words.size + 1, dtype="<u8")
    words *= np.uint64(0x9E3779B97F4A7C15 + 2 * seed)


def checksum(array: ByteArray) -> int:
    """CRC-32 of the bytes."""
    return zlib.crc32(array.data)


def works(driver: NVMeDriver) -> bool:
    """Whether a block can be written and read back."""
    data = np.random.default_rng().bytes(BLOCK)
    driver.write(99, data)
    return driver.read(99, 1) == data


def outcome(request: Request) -> tuple[int, int] | None:
    """Status type and code that a command failed with, if it did."""
    try:
        request.result()
    except NVMeError as error:
        return error.status_type, error.status_code
    return None


def test_the_controller_and_its_namespace_are_identified(nvme: PCIDevice) -> None:
    with NVMeDriver(nvme) as driver:
        about = driver.controller
        assert (about.model, about.serial, about.version) == ("QEMU NVMe Ctrl", "NV1", (1, 4, 0))
        assert about.firmware
        assert about.max_transfer == 512 << 10
        (namespace,) = driver.namespaces.values()
        assert (namespace.nsid, namespace.block_size, namespace.blocks) == (1, BLOCK, BLOCKS)


def test_closing_leaves_nothing_and_is_the_end(nvme: PCIDevice) -> None:
    fds = open_fds()
    driver = NVMeDriver(nvme)
    with nvme.dma.alloc(4096) as buffer:
        request = driver.submit_read(buffer, 0, 8)
        driver.close()
        driver.close()
        assert request.done
    assert nvme.dma.mappings == ()
    assert not nvme.msix.enabled
    assert len(open_fds()) == len(fds)
    assert nvme.bars[0].read32(0x14) & 1 == 0  # CC.EN
    for use in (driver.flush, driver.reset, lambda: driver.read(0, 1)):
        with pytest.raises(pyvfio.DeviceClosed):
            use()


def test_the_whole_disk_is_written_and_read_back(nvme: PCIDevice) -> None:
    with NVMeDriver(nvme, queue_depth=32) as driver, nvme.dma.alloc(DISK_BYTES) as buffer:
        fill(buffer.array, seed=1)
        expected = checksum(buffer.array)
        driver.write_blocks(0, BLOCKS, buffer)
        driver.flush()
        buffer.array[:] = 0
        assert checksum(driver.read_blocks(0, BLOCKS, buffer)) == expected


def test_the_queue_is_as_deep_as_asked_for(nvme: PCIDevice) -> None:
    with NVMeDriver(nvme, queue_depth=32) as driver, nvme.dma.alloc(64 << 10) as buffer:
        (queue,) = driver.queues
        fill(buffer.array, seed=2)
        driver.write_blocks(1000, 128, buffer)
        expected = checksum(buffer.array)
        buffer.array[:] = 0
        requests = [driver.submit_read(buffer, 1000 + n, 1, offset=n * BLOCK) for n in range(32)]
        assert queue.in_flight == 32
        for n in range(32, 128):
            requests.append(driver.submit_read(buffer, 1000 + n, 1, offset=n * BLOCK))
            assert queue.in_flight <= 32
        assert [request.result() for request in requests] == [0] * 128
        assert checksum(buffer.array) == expected


def test_every_vector_tells_the_completions_of_its_queue(nvme: PCIDevice) -> None:
    wanted = nvme.msix.count - 1
    with NVMeDriver(nvme, queue_depth=2, io_queues=wanted) as driver:
        assert len(driver.queues) == wanted == 64
        irqs = [queue.irq for queue in driver.queues if queue.irq is not None]
        assert [irq.vector for irq in irqs] == list(range(1, 65))
        with nvme.dma.alloc(4096) as buffer:
            for turn, irq in enumerate(irqs):
                request = driver.submit_read(buffer, turn, 1, queue=turn)
                assert irq.wait(5) == 1
                assert request.result() == 0
        with pytest.raises(pyvfio.VFIOTimeout):
            irqs[0].wait(0)
        assert [irq.total for irq in irqs] == [1] * wanted


def test_completions_are_found_by_polling(nvme: PCIDevice) -> None:
    with NVMeDriver(nvme, polling=True, io_queues=2, queue_depth=4) as driver:
        assert not nvme.msix.enabled
        assert [queue.irq for queue in driver.queues] == [None, None]
        with nvme.dma.alloc(4 << 20) as buffer:
            fill(buffer.array, seed=3)
            expected = checksum(buffer.array)
            driver.write_blocks(8, 8192, buffer)
            buffer.array[:] = 0
            assert checksum(driver.read_blocks(8, 8192, buffer)) == expected


@pytest.mark.parametrize("offset", [0, 4, 4092])
def test_any_count_of_blocks_goes_anywhere_in_a_buffer(nvme: PCIDevice, offset: int) -> None:
    """No second page, a second page, a PRP list, and more than one command."""
    with (
        NVMeDriver(nvme) as driver,
        nvme.dma.alloc(1 << 20) as source,
        nvme.dma.alloc(1 << 20) as target,
    ):
        fill(source.array, seed=4 + offset)
        for lba, count in ((0, 1), (3, 8), (5, 9), (7, 16), (1, 17), (33, 1023), (11, 1025)):
            end = offset + count * BLOCK
            driver.write_blocks(lba, count, source, offset=offset)
            target.array[:] = 0xEE
            read = driver.read_blocks(lba, count, target, offset=offset)
            assert np.array_equal(read, source.array[offset:end])
            assert np.all(target.array[:offset] == 0xEE)
            assert np.all(target.array[end : end + 8192] == 0xEE)
            del read


def test_an_error_names_status_and_command_and_the_driver_goes_on(nvme: PCIDevice) -> None:
    with NVMeDriver(nvme) as driver, nvme.dma.alloc(1 << 20) as buffer:
        with pytest.raises(NVMeError, match=f"read of 2 blocks at LBA {BLOCKS - 1}") as caught:
            driver.read(BLOCKS - 1, 2)
        assert (caught.value.status_type, caught.value.status_code) == (0, 0x80)
        assert caught.value.do_not_retry
        with pytest.raises(NVMeError, match="mystery") as caught:
            driver.submit(Command("mystery", 0x7F, nsid=1)).result()
        assert (caught.value.status_type, caught.value.status_code) == (0, 0x01)
        with pytest.raises(NVMeError, match="invalid command opcode"):
            driver.admin(Command("mystery", 0x7F))
        with pytest.raises(NVMeError, match="LBA out of range"):  # the second of two commands
            driver.write_blocks(BLOCKS - 1024, 2048, buffer)
        with pytest.raises(ValueError, match="outside of the buffer"):
            driver.submit_read(buffer, 0, 1, offset=buffer.size)
        with pytest.raises(pyvfio.UnsupportedError):
            driver.read(0, 1, nsid=2)
        assert driver.queues[0].in_flight == 0
        assert works(driver)


def test_a_reset_in_the_middle_ends_what_is_in_flight(nvme: PCIDevice) -> None:
    with NVMeDriver(nvme, queue_depth=16, io_queues=2) as driver, nvme.dma.alloc(8 << 20) as buffer:
        for _ in range(3):
            requests = [
                driver.submit_read(buffer, 0, 1024, offset=n << 19)
                for n in range(buffer.size >> 19)
            ]
            driver.reset()
            assert all(request.done for request in requests)
            assert {outcome(request) for request in requests} <= {
                None,
                (0, 0x07),
                (0, 0x08),
                (3, 0x71),
            }
            assert len(driver.queues) == 2
            assert works(driver)


def test_a_command_without_an_answer_stops_the_controller(nvme: PCIDevice) -> None:
    with NVMeDriver(nvme, timeout=0.5) as driver:
        with pytest.raises(pyvfio.VFIOTimeout, match=r"wait for events .* 0\.5 s"):
            driver.admin(Command("wait for events", ASYNCHRONOUS_EVENT_REQUEST))
        with pytest.raises(pyvfio.DeviceClosed, match=r"reset\(\)"):
            driver.read(0, 1)
        driver.timeout = 10.0
        driver.reset()
        assert works(driver)
