# SPDX-License-Identifier: BSD-3-Clause
"""Batches of a container: what is asked, what a refusal leaves, on backends that tell it at once
(the kernel) and on those that tell it at the end (a server)."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio.container import Container
from pyvfio.errors import (
    ConnectionLost,
    DeviceClosed,
    DMABatchError,
    DMAError,
    RemoteError,
    VFIOTimeout,
)
from pyvfio.memory import SharedMemory
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.vectors import BatchFailure, ContainerIO, DMASource

PAGE = 4096
BASE = 0x10_0000


class FakeIO(ContainerIO):
    """An address space that refuses what it is told to.

    :ivar late: tell of refusals in commit() only, and take many in one call.
    :ivar refuse: address -> the error of its next map or unmap.
    :ivar mapped: what is really mapped: address -> size.
    """

    def __init__(self, late: bool) -> None:
        self.late = late
        self.refuse: dict[int, Exception] = {}
        self.mapped: dict[int, int] = {}
        self.asked = 0
        self.interrupt: BaseException | None = None
        self.interrupt_after = -1
        self._failures: list[BatchFailure] | None = None

    @property
    def iova_ranges(self) -> Sequence[tuple[int, int]]:
        return [(0, (1 << 64) - 1)]

    @property
    def page_sizes(self) -> int:
        return PAGE

    @property
    def max_maps(self) -> int:
        return 65535

    def begin(self) -> None:
        self._failures, self._position = [], 0

    def commit(self) -> Sequence[BatchFailure]:
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None:
            raise interrupt
        found, self._failures = self._failures, None
        assert found is not None
        return found

    def dma_map(
        self, iova: int, size: int, memory: DMASource, offset: int, flags: DMAMapFlags
    ) -> None:
        taken = any(at < iova + size and iova < at + held for at, held in self.mapped.items())
        if not self._refused(iova, OSError(errno.EEXIST, "") if taken else None):
            self.mapped[iova] = size

    def dma_unmap(self, iova: int, size: int) -> None:
        unknown = self.mapped.get(iova) != size
        if not self._refused(iova, OSError(errno.ENOENT, "") if unknown else None):
            del self.mapped[iova]

    def dma_map_many(
        self,
        memory: DMASource,
        iovas: npt.NDArray[np.uint64],
        offsets: npt.NDArray[np.uint64],
        sizes: npt.NDArray[np.uint64],
        flags: DMAMapFlags,
    ) -> bool:
        if self.late:
            if self.interrupt_after >= 0:
                raise KeyboardInterrupt
            for iova, offset, size in zip(iovas, offsets, sizes, strict=True):
                self.dma_map(int(iova), int(size), memory, int(offset), flags)
        return self.late

    def dma_unmap_many(self, iovas: npt.NDArray[np.uint64], sizes: npt.NDArray[np.uint64]) -> bool:
        if self.late:
            if self.interrupt_after >= 0:
                raise KeyboardInterrupt
            for iova, size in zip(iovas, sizes, strict=True):
                self.dma_unmap(int(iova), int(size))
        return self.late

    def _refused(self, iova: int, own: Exception | None) -> bool:
        if self.asked == self.interrupt_after:
            raise KeyboardInterrupt
        self.asked += 1
        error = self.refuse.pop(iova, own)
        if error is not None and (self._failures is None or not self.late):
            raise error
        if self._failures is not None:
            if error is not None:
                self._failures.append(BatchFailure(self._position, error))
            self._position += 1
        return error is not None

    def dma_unmap_all(self) -> None:
        self.mapped.clear()

    def close(self) -> None:
        """Nothing is owned."""


@pytest.fixture(params=[False, True], ids=["told at once", "told at the end"])
def io(request: pytest.FixtureRequest) -> FakeIO:
    return FakeIO(request.param)


@pytest.fixture
def container(io: FakeIO) -> Iterator[Container]:
    found = Container(io, "fake:x")
    yield found
    found.close()


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    with SharedMemory(PAGE) as found:
        yield found


def table(container: Container) -> dict[int, int]:
    """What the container holds for mapped: address -> size."""
    return {entry.iova: entry.size for entry in container.mappings}


def test_all_of_a_batch_is_mapped(container: Container, io: FakeIO, memory: SharedMemory) -> None:
    with container.batch():
        given = [container.map(memory) for _ in range(100)]
    assert len(set(given)) == 100
    assert table(container) == io.mapped == dict.fromkeys(given, PAGE)


def test_each_refusal_is_told_with_its_range(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    for page in (3, 7):
        io.refuse[BASE + page * PAGE] = OSError(errno.ENOMEM, "")
    with pytest.raises(DMABatchError) as caught, container.batch():
        for page in range(10):
            container.map(memory, iova=BASE + page * PAGE)
    failures = caught.value.failures
    assert all(isinstance(failure, DMAError) for failure in failures)
    assert [(failure.iova, failure.size, failure.errno) for failure in failures] == [  # type: ignore[attr-defined]
        (BASE + page * PAGE, PAGE, errno.ENOMEM) for page in (3, 7)
    ]
    assert (caught.value.iova, caught.value.errno) == (BASE + 3 * PAGE, errno.ENOMEM)
    assert "2 failed" in str(caught.value)


def test_what_was_refused_is_not_mapped_and_the_rest_is(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    io.refuse[BASE] = OSError(errno.ENOMEM, "")
    with pytest.raises(DMABatchError), container.batch():
        container.map(memory, iova=BASE)
        container.map(memory, iova=BASE + PAGE)
    assert table(container) == io.mapped == {BASE + PAGE: PAGE}
    assert container.map(memory, iova=BASE) == BASE


def test_a_buffer_whose_map_was_refused_is_closed(container: Container, io: FakeIO) -> None:
    with pytest.raises(DMABatchError), container.batch():
        first = container.alloc(PAGE)
        io.refuse[first.iova + PAGE] = OSError(errno.ENOMEM, "")
        second = container.alloc(PAGE)
    assert first.array.size == PAGE
    with pytest.raises(DeviceClosed):
        second.array  # noqa: B018


def test_a_buffer_closed_in_a_batch_is_released(container: Container, io: FakeIO) -> None:
    buffers = [container.alloc(PAGE) for _ in range(5)]
    with container.batch():
        for buffer in buffers:
            buffer.close()
            buffer.close()
    assert table(container) == io.mapped == {}
    with pytest.raises(DeviceClosed):
        buffers[0].array  # noqa: B018


def test_a_buffer_whose_unmap_was_refused_stays(container: Container, io: FakeIO) -> None:
    buffer = container.alloc(PAGE)
    io.refuse[buffer.iova] = OSError(errno.EBUSY, "")
    with pytest.raises(DMABatchError), container.batch():
        buffer.close()
    assert table(container) == io.mapped == {buffer.iova: PAGE}
    assert buffer.array.size == PAGE
    buffer.close()
    assert io.mapped == {}


def test_an_address_can_be_used_again_in_the_same_batch(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    container.map(memory, iova=BASE)
    with container.batch():
        container.unmap(BASE, PAGE)
        container.map(memory, iova=BASE)
    assert table(container) == io.mapped == {BASE: PAGE}


def test_a_map_over_a_refused_unmap_fails_with_it(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    container.map(memory, iova=BASE)
    io.refuse[BASE] = OSError(errno.EBUSY, "")
    with pytest.raises(DMABatchError) as caught, container.batch():
        container.unmap(BASE, PAGE)
        container.map(memory, iova=BASE)
    assert [failure.errno for failure in caught.value.failures] == [errno.EBUSY, errno.EEXIST]
    assert table(container) == io.mapped == {BASE: PAGE}


def test_an_unmap_of_a_refused_map_fails_with_it(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    io.refuse[BASE] = OSError(errno.ENOMEM, "")
    with pytest.raises(DMABatchError) as caught, container.batch():
        container.map(memory, iova=BASE)
        container.unmap(BASE, PAGE)
    assert [failure.errno for failure in caught.value.failures] == [errno.ENOMEM, errno.ENOENT]
    assert table(container) == io.mapped == {}


def test_a_buffer_that_came_and_went_in_a_batch_leaves_nothing(
    container: Container, io: FakeIO
) -> None:
    with container.batch():
        container.alloc(PAGE).close()
    assert table(container) == io.mapped == {}


def test_what_is_wrong_is_told_at_once(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    with container.batch():
        container.map(memory, iova=BASE)
        with pytest.raises(DMAError) as caught:
            container.map(memory, iova=BASE)
        assert caught.value.errno == errno.EEXIST
    assert io.asked == 1


def test_a_block_that_raises_has_done_what_it_asked_for(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    io.refuse[BASE + PAGE] = OSError(errno.ENOMEM, "")
    with pytest.raises(KeyError) as caught, container.batch():
        container.map(memory, iova=BASE)
        container.map(memory, iova=BASE + PAGE)
        raise KeyError
    assert table(container) == io.mapped == {BASE: PAGE}
    assert "ENOMEM" in caught.value.__notes__[0]


def test_an_inner_block_ends_with_the_outer_one(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    io.refuse[BASE] = OSError(errno.ENOMEM, "")
    with pytest.raises(DMABatchError), container.batch():
        with container.batch():
            container.map(memory, iova=BASE)
        container.map(memory, iova=BASE + PAGE)
    assert table(container) == io.mapped == {BASE + PAGE: PAGE}


def test_everything_cannot_be_unmapped_in_a_batch(container: Container) -> None:
    with container.batch(), pytest.raises(ValueError, match="within a batch"):
        container.unmap_all()


def test_an_empty_batch_is_nothing(container: Container, io: FakeIO) -> None:
    with container.batch():
        pass
    assert io.asked == 0


def test_the_loss_of_the_device_is_told_as_such(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    buffer = container.alloc(PAGE)
    io.refuse = {BASE: ConnectionLost("gone"), buffer.iova: ConnectionLost("gone")}
    with pytest.raises(ConnectionLost, match="batch of 2"), container.batch():
        buffer.close()
        container.map(memory, iova=BASE)
    assert table(container) == {}


def test_unmaps_are_quiet_where_the_device_is_gone(container: Container, io: FakeIO) -> None:
    buffers = [container.alloc(PAGE) for _ in range(3)]
    io.refuse = {buffer.iova: ConnectionLost("gone") for buffer in buffers}
    with container.batch():
        for buffer in buffers:
            buffer.close()
    assert table(container) == {}


def test_an_address_whose_map_was_not_answered_stays_taken(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    io.refuse[BASE] = VFIOTimeout("no reply")
    with pytest.raises(DMABatchError) as caught, container.batch():
        container.map(memory, iova=BASE)
    assert isinstance(caught.value.failures[0], VFIOTimeout)
    assert table(container) == {}
    with pytest.raises(DMAError) as refused:
        container.map(memory, iova=BASE)
    assert refused.value.errno == errno.EBUSY


def test_an_unmap_that_was_not_answered_may_be_repeated(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    container.map(memory, iova=BASE)
    io.refuse[BASE] = VFIOTimeout("no reply")
    with pytest.raises(DMABatchError), container.batch():
        container.unmap(BASE, PAGE)
    assert table(container) == {BASE: PAGE}
    io.mapped.clear()  # it was carried out all the same
    with container.batch():
        container.unmap(BASE, PAGE)
    assert table(container) == {}


def test_an_interrupt_at_the_end_leaves_a_table_that_is_right(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    buffer = container.alloc(PAGE)
    io.refuse[BASE] = OSError(errno.ENOMEM, "")
    io.interrupt = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), container.batch():
        container.map(memory, iova=BASE)
        container.map(memory, iova=BASE + PAGE)
        buffer.close()
    assert table(container) == io.mapped == {BASE + PAGE: PAGE}
    with pytest.raises(DeviceClosed):
        buffer.array  # noqa: B018


def test_a_close_in_a_batch_ends_it(io: FakeIO) -> None:
    container = Container(io, "fake:x")
    with container.batch():
        container.alloc(PAGE)
        container.close()


@pytest.mark.parametrize("error", [VFIOTimeout("no reply"), OSError(errno.EIO, "")])
def test_a_map_that_was_made_takes_the_place_of_what_was_not_unmapped(error: Exception) -> None:
    io = FakeIO(late=True)
    container = Container(io, "fake:x")
    with SharedMemory(4 * PAGE) as memory:
        container.map(memory, iova=BASE)
        io.refuse[BASE] = error
        with pytest.raises(DMABatchError) as caught, container.batch():
            container.unmap(BASE, 4 * PAGE)
            io.mapped.clear()  # it was carried out all the same
            container.map(memory, iova=BASE + PAGE, size=PAGE)
        assert len(caught.value.failures) == 1
        assert table(container) == io.mapped == {BASE + PAGE: PAGE}
        container.map(memory, iova=BASE, size=PAGE)
        container.close()


def pages(*numbers: int) -> list[int]:
    """Addresses."""
    return [BASE + number * PAGE for number in numbers]


def test_many_are_refused_each_by_itself(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    container.map(memory, iova=BASE + 8 * PAGE)
    io.refuse = {iova: OSError(errno.ENOMEM, "") for iova in pages(2, 3)}
    with pytest.raises(DMABatchError, match="batch of 4") as caught:
        container.map_many(memory, pages(3, 0, 2, 1), 0, PAGE)
    assert [getattr(failure, "iova", None) for failure in caught.value.failures] == pages(3, 2)
    assert table(container) == io.mapped == dict.fromkeys(pages(0, 1, 8), PAGE)
    io.refuse = {BASE: OSError(errno.EBUSY, "")}
    with pytest.raises(DMABatchError, match="batch of 3"):
        container.unmap_many(pages(8, 0, 1), PAGE)
    assert table(container) == io.mapped == {BASE: PAGE}


def test_a_vector_that_takes_none_of_many_has_each_refused(
    container: Container, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise OSError(errno.EMFILE, "")

    monkeypatch.setattr(FakeIO, "dma_map_many", fail)
    with pytest.raises(DMABatchError) as caught:
        container.map_many(memory, pages(0, 1), 0, PAGE)
    assert [failure.errno for failure in caught.value.failures] == 2 * [errno.EMFILE]
    assert table(container) == {}
    assert container.map(memory, iova=BASE) == BASE


def test_an_interrupt_among_many_leaves_a_table_that_is_right(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    for verb in ("map", "unmap"):
        io.interrupt_after = io.asked + 3
        with pytest.raises(KeyboardInterrupt):
            if verb == "map":
                container.map_many(memory, pages(5, 4, 3, 2, 1), 0, PAGE)
            else:
                container.unmap_many(pages(1, 2, 3, 4, 5), PAGE)
        assert table(container) == io.mapped
        io.interrupt_after = -1
        container.map_many(
            memory, [iova for iova in pages(*range(1, 6)) if iova not in io.mapped], 0, PAGE
        )
        assert len(io.mapped) == 5


def test_no_more_are_mapped_together_than_there_may_be(
    container: Container, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeIO, "max_maps", 3)
    container.map(memory, iova=BASE)
    with pytest.raises(DMAError, match="1 of 3 maps are in use, 3 are asked for") as caught:
        container.map_many(memory, pages(1, 2, 3), 0, PAGE)
    assert caught.value.errno == errno.ENOSPC
    container.map_many(memory, pages(1, 2), 0, PAGE)
    assert len(table(container)) == 3


def test_addresses_of_an_unanswered_map_are_not_among_many(
    container: Container, io: FakeIO, memory: SharedMemory
) -> None:
    io.refuse[BASE + PAGE] = VFIOTimeout("no reply")
    with pytest.raises(DMABatchError):
        container.map_many(memory, pages(0, 1, 2), 0, PAGE)
    assert table(container) == dict.fromkeys(pages(0, 2), PAGE)
    with pytest.raises(DMAError) as refused:
        container.map_many(memory, pages(3, 1), 0, PAGE)
    assert (refused.value.iova, refused.value.errno) == (BASE + PAGE, errno.EBUSY)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["map", "unmap", "map many", "unmap many"]),
        st.integers(0, 5),
        st.booleans(),
    ),
    max_size=30,
)


def act(container: Container, verb: str, memory: SharedMemory, page: int) -> None:
    """What hypothesis has chosen."""
    many = pages(page + 1, page, page + 2)
    match verb:
        case "map":
            container.map(memory, iova=BASE + page * PAGE)
        case "unmap":
            container.unmap(BASE + page * PAGE, PAGE)
        case "map many":
            container.map_many(memory, many, 0, PAGE)
        case "unmap many":
            container.unmap_many(many, PAGE)


@given(late=st.booleans(), batches=st.lists(ACTIONS, max_size=4))
@settings(max_examples=200, deadline=None)
def test_the_table_is_what_is_mapped_after_any_batches(
    late: bool, batches: list[list[tuple[str, int, bool]]]
) -> None:
    io = FakeIO(late)
    container = Container(io, "fake:x")
    with SharedMemory(PAGE) as memory:
        for batch in batches:
            try:
                with container.batch():
                    for verb, page, refused in batch:
                        iova = BASE + page * PAGE
                        if refused:
                            io.refuse[iova] = RemoteError("no", errno=errno.ENOMEM)
                        try:
                            act(container, verb, memory, page)
                        except DMAError:
                            io.refuse.pop(iova, None)  # a check of the container's own
            except DMABatchError:
                pass
            assert table(container) == io.mapped
        container.close()
