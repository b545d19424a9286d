# SPDX-License-Identifier: BSD-3-Clause
"""One device, several threads: each gets the answers to its own questions."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pyvfio.pci.device import PCIDevice
from tests.conformance.devices import MEMORY, MIB, REGISTERS, SOON, Dev, fire

ROUNDS = 300


def together(jobs: Sequence[Callable[[], int]]) -> list[int]:
    """Run jobs at the same time, each in a thread; returns what they return."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], int]) -> int:
        start.wait(SOON)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def hammer(dev: PCIDevice, bar: int, offset: int) -> Callable[[], int]:
    """Write and read back a register; counts what came back wrong."""

    def run() -> int:
        registers, wrong = dev.bars[bar], 0
        for value in range(ROUNDS):
            pattern = (value * 0x0101_0101 ^ offset) & 0xFFFF_FFFF
            registers.write32(offset, pattern)
            wrong += registers.read32(offset) != pattern
        return wrong

    return run


def test_two_threads_get_their_own_registers(testdev: PCIDevice) -> None:
    jobs = [hammer(testdev, REGISTERS, register) for register in (Dev.DMA_ADDRESS, Dev.DMA_OFFSET)]
    assert together(jobs) == [0, 0]


def test_trapped_and_mapped_access_do_not_disturb_each_other(testdev: PCIDevice) -> None:
    jobs = [
        hammer(testdev, REGISTERS, Dev.SCRATCH),
        hammer(testdev, MEMORY, 0x100),
        hammer(testdev, MEMORY, 8 * MIB),
    ]
    assert together(jobs) == [0, 0, 0]


def test_config_space_and_registers_do_not_disturb_each_other(testdev: PCIDevice) -> None:
    def config() -> int:
        return sum(testdev.config.read32(0) != 0x00051B36 for _ in range(ROUNDS))

    assert together([config, hammer(testdev, REGISTERS, Dev.SCRATCH)]) == [0, 0]


def test_large_transfers_and_registers_do_not_disturb_each_other(testdev: PCIDevice) -> None:
    def bulk() -> int:
        data = os.urandom(MIB + 1)
        testdev.bars[MEMORY].write_bytes(8 * MIB, data)
        return int(testdev.bars[MEMORY].read_bytes(8 * MIB, len(data)) != data)

    assert together([bulk, hammer(testdev, REGISTERS, Dev.SCRATCH)]) == [0, 0]


def test_threads_map_and_unmap_at_the_same_time(testdev: PCIDevice) -> None:
    def churn() -> int:
        for _ in range(50):
            testdev.dma.alloc(4096).close()
        return len(testdev.dma.mappings) > 3

    assert (together([churn] * 4), testdev.dma.mappings) == ([0, 0, 0, 0], ())


def test_first_access_from_several_threads(testdev: PCIDevice) -> None:
    assert together([hammer(testdev, MEMORY, 16 * at) for at in range(4)]) == [0] * 4


def test_no_signal_is_lost_between_threads(testdev: PCIDevice) -> None:
    with testdev.msix.enable(1) as irqs:

        def send() -> int:
            for _ in range(ROUNDS):
                fire(testdev, 0)
            return 0

        def count() -> int:
            seen = 0
            while seen < 2 * ROUNDS:
                seen += irqs[0].wait(SOON)
            return seen

        assert together([send, send, count]) == [0, 0, 2 * ROUNDS]
