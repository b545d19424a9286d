# SPDX-License-Identifier: BSD-3-Clause
"""Has a device go on elsewhere: from one server to another, to a file, from a file.

Who owns the device
===================

A migration makes a copy of the source's state in the destination, and then one change of state
decides: STOP to RUNNING of the destination.  Until then the device is the source's, from then on
the destination's.  These are the steps; where the program that makes them is killed, a server
brings what was half done to the state in the last column by itself.

=====================================  ================  ================  =======================
step                                   source            destination       killed, they are left in
=====================================  ================  ================  =======================
begin of the load                      RUNNING           RESUMING          RUNNING, ERROR
pre-copy                               PRE_COPY          RESUMING          RUNNING, ERROR
the source is stopped, the rest read   STOP_COPY         RESUMING          STOP, ERROR
the destination has checked it all     STOP_COPY         STOP              STOP, STOP
the source comes to rest               STOP              STOP              STOP, STOP
the destination runs                   STOP              RUNNING           STOP, RUNNING
=====================================  ================  ================  =======================

So at no moment two of them run, and the states tell whose the device is:

==========  ==================  ==========================================================
source      destination         the device is
==========  ==================  ==========================================================
RUNNING     any                 the source's
STOP        RUNNING             the destination's
STOP        STOP                whole in both, and runs in none; whichever is run has it
STOP        ERROR, or gone      the source's, as it was when it was stopped
gone        STOP, RUNNING       the destination's, if the migration had begun
gone        ERROR               lost with the source
==========  ==================  ==========================================================

"Gone" is a server that has ended; one that was started again is another device.  A device that dies
before all of it was copied is lost, as it would be without a migration, and what the destination
was given of it is never part of a device.

What fails while the program lives is put right by it in an order that keeps to this table: the
source goes on first, if it ran before, then the destination is reset.  A reset brings it to
RUNNING, which beside a source that does not run would look like a migration that is done; so it is
left as it is where the source was stopped before or cannot be had to run, and a server has it in
ERROR when the program has ended.  Where the destination runs, or it cannot be known whether it does
since it does not answer any more, the source stays stopped, and the error says so.

The next migration of the same two takes up from there.  RUNNING and anything: it starts over.  STOP
and STOP: the state is copied again.  STOP and ERROR: the source goes on, as it would have if the
first had failed instead of having been killed, and the destination is reset.  STOP and RUNNING is
refused: it may have been done.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator

from pyvfio.errors import MigrationError, UnsupportedError, VFIOError
from pyvfio.migration_states import RUNNING
from pyvfio.migration_stream import READ_SIZE, LoadStream, SaveStream
from pyvfio.migration_transfer import MAX_SIZE, PRECOPY_SECONDS, Progress, Transfer
from pyvfio.pci.device import PCIDevice
from pyvfio.pci.saved_config import LatestConfig, SavedConfig, ids_of
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import DeviceState

UNFINISHED = frozenset((DeviceState.ERROR, DeviceState.RESUMING))
"""What a load leaves behind that did not come to its end; a reset makes the device as new."""


def migrate(
    source: PCIDevice,
    destination: PCIDevice,
    *,
    resume: bool = False,
    precopy: bool | None = None,
    precopy_seconds: float = PRECOPY_SECONDS,
    piece: int = READ_SIZE,
    max_size: int = MAX_SIZE,
    progress: Progress | None = None,
) -> Transfer:
    """Have a device go on as another of its kind; the source is stopped then.

    A driver that goes along maps its memory for the destination at the same addresses
    (:func:`share_memory`) and enables the same interrupts there before; what was signalled until
    the source stopped is in its eventfds, the rest comes to those of the destination.  A stopped
    device refuses accesses: who works with it meanwhile makes those again at the destination, and
    posts no writes (``posted_writes=no``), whose refusal nobody would see.  Nor does it kick an
    eventfd of a register of the source's: such kicks stay there, and are no part of its state.

    :param resume: have the destination run; else it is left stopped, for
        ``destination.migration.run()``.
    :param precopy: copy most of it while the source runs; by default where it can be done.
    :param precopy_seconds: pre-copy ends after this time.
    :param piece: bytes that are asked for at a time.
    :param max_size: bytes that its state may have, pre-copy included.
    :param progress: called after every piece.
    :returns: figures.
    :raises StateError: the devices are not alike.
    :raises MigrationError: they are in no state for it, one failed, or the state is too large.
    :raises UnsupportedError: one of them cannot migrate, or has no pre-copy that was asked for.
    :raises ConnectionLost: one of them is gone.
    :raises VFIOTimeout: one of them does not answer.
    :raises ValueError: they are the same, or a time or size is none.

    See the module for what becomes of both where it fails.
    """
    transfer = Transfer(
        source.migration,
        precopy=precopy,
        precopy_seconds=precopy_seconds,
        piece=piece,
        max_size=max_size,
        progress=progress,
    )
    _check_alike(source, destination)
    runs = _make_ready(source, destination)
    _copy(source, destination, transfer, runs)
    if resume:
        _hand_over(source, destination, runs)
        transfer.runs_again()
    return transfer


def share_memory(source: PCIDevice, destination: PCIDevice) -> None:
    """Map all memory that is mapped for one device for another, at the same addresses.

    What is mapped there alike is left.  A buffer of the source's that is closed later stays mapped
    for the destination, until it is unmapped or closed; but its arrays are gone (``dma.alloc``),
    with the source at the latest, and nobody here sees what the destination does to it.  Keep the
    source open, or map a :class:`~pyvfio.memory.SharedMemory` of your own.

    :raises DMAError: an address is in use there, or cannot be mapped.
    """
    there = {entry.iova: entry for entry in destination.dma.mappings}
    with destination.dma.batch():
        for entry in source.dma.mappings:
            if there.get(entry.iova) != entry:
                destination.dma.map(
                    entry.memory,
                    iova=entry.iova,
                    offset=entry.offset,
                    size=entry.size,
                    flags=entry.flags,
                )


def save_state(
    dev: PCIDevice,
    transfer: Transfer,
    put: Callable[[Buffer], object],
    keep: Callable[[SavedConfig], None],
    *,
    keep_running: bool = False,
) -> None:
    """Give a device's state away; it is stopped then, or goes on.

    It goes on as before where anything fails until ``keep`` has returned; behind that it stays
    stopped, unless it was to be kept running: its state is to go on elsewhere.

    :param transfer: how it is read, and the figures.
    :param put: takes pieces of its state.
    :param keep: takes the end; the state is safe when it returns.
    :param keep_running: the device goes on, if it ran, as soon as its state was read.
    :raises MigrationError: it is in no state for it, or failed; says what it is in.
    """
    goes_on = keep_running and dev.migration.state in RUNNING
    config = LatestConfig(dev.config)
    try:
        with transfer.begin() as saving:
            transfer.copy(saving, put, config.look)
            config.look()
            if goes_on:
                saving.finish()
                _run(dev)
                transfer.runs_again()
            keep(config.saved)
            if not goes_on:
                _stay_stopped(dev, saving)
                transfer.ended()
    except BaseException as error:
        if goes_on and (failure := _run_on(dev)):  # its stream was at an end, and put nothing right
            error.add_note(failure)
        raise


def _stay_stopped(dev: PCIDevice, saving: SaveStream) -> None:
    try:
        saving.finish()
    except BaseException as error:
        saving.release()
        error.add_note(f"the state is kept, so {dev.uri} is left stopped")
        raise


def load_state(
    dev: PCIDevice, pieces: Iterable[Buffer], config: Callable[[], SavedConfig], *, resume: bool
) -> None:
    """Have a device take on a state; it is stopped then.  It is reset where that fails.

    :param pieces: the state.
    :param config: gives its configuration registers, when the pieces are through.
    :param resume: have it run.
    :raises MigrationError: it is in no state for it, or refused.
    """
    if dev.migration.state in UNFINISHED:
        dev.reset()
    with dev.migration.load() as loading:
        for piece in pieces:
            loading.write(piece)
        registers = config()
        loading.finish()
        registers.put(dev.config, dev.uri)
    if resume:
        _run(dev)


def _run(dev: PCIDevice) -> None:
    """Have a device run that keeps what it has where it does not."""
    dev.migration.set_state(DeviceState.RUNNING, recover=DeviceState.STOP, reset=False)


def _run_on(dev: PCIDevice) -> str:
    """The same; says why it does not, or nothing."""
    try:
        _run(dev)
    except VFIOError as error:
        return str(error)
    return ""


# Before anything is touched


def _check_alike(source: PCIDevice, destination: PCIDevice) -> None:
    if source is destination or source.uri == destination.uri:
        raise ValueError(f"{source.uri} cannot migrate to itself")
    for dev in (source, destination):
        if not dev.migration.supported:
            raise UnsupportedError("the device cannot migrate", op="migrate", uri=dev.uri)
    ids_of(source.config).check(ids_of(destination.config), destination.uri)


def _make_ready(source: PCIDevice, destination: PCIDevice) -> bool:
    """Check the states, and take up what an earlier migration has left.

    :returns: whether the source runs.
    """
    here, there = source.migration.state, destination.migration.state
    if here not in (DeviceState.STOP, *RUNNING):
        hint = "an unfinished load was its last" if here is DeviceState.ERROR else ""
        raise _refused(f"the source is in {here.name}", source, here, hint)
    if here is DeviceState.STOP and there in RUNNING:
        raise _refused(
            f"the source is stopped, and the destination {destination.uri} runs:"
            " it may have the device already",
            source,
            here,
            f"if it does not, have the source run first (`pyvfio migrate resume {source.uri}`)",
        )
    if there in UNFINISHED:
        _run(source)  # before the reset
        destination.reset()
        return True
    return here in RUNNING


def _refused(reason: str, dev: PCIDevice, state: DeviceState, hint: str) -> MigrationError:
    return MigrationError(
        reason, state=state, op="migrate", uri=dev.uri, errno=errno.EINVAL, hint=hint
    )


# The copy, and the decision


def _copy(source: PCIDevice, destination: PCIDevice, transfer: Transfer, runs: bool) -> None:
    """Both are in STOP then, and alike.

    :param runs: the source ran before.
    """
    config = LatestConfig(source.config)
    loading = destination.migration.load()
    try:
        with transfer.begin() as saving:
            transfer.copy(saving, loading.write, config.look)
            config.look()
            loading.finish()
            config.saved.put(destination.config, destination.uri)
            loading.release()  # from here on it is not reset, whatever becomes of the source
            _bring_to_rest(saving, transfer)
    except BaseException as error:
        for note in _put_right(source, loading, runs):
            error.add_note(note)
        raise
    transfer.ended()


def _bring_to_rest(saving: SaveStream, transfer: Transfer) -> None:
    """A source that fails at it does not run: the destination has all of it, and goes on."""
    try:
        saving.finish()
    except VFIOError as error:
        transfer.source_failure = error


def _put_right(source: PCIDevice, loading: LoadStream, runs: bool) -> Iterator[str]:
    """Have the source go on if it ran, and only then the destination be as new.

    :returns: what was not done.
    """
    failure = _run_on(source) if runs else f"{source.uri} was stopped before, and is not run"
    if failure:
        yield failure
        if not loading.closed:
            yield "the destination is left with an unfinished load"
            loading.release()
        return
    try:
        loading.abort()
    except VFIOError as error:
        yield str(error)


def _hand_over(source: PCIDevice, destination: PCIDevice, runs: bool) -> None:
    """Have the destination run, or, where it certainly does not, the source.

    :param runs: the source ran before.
    """
    try:
        _run(destination)
    except BaseException as error:
        error.add_note(_go_on(source, destination, runs))
        raise


def _go_on(source: PCIDevice, destination: PCIDevice, runs: bool) -> str:
    """Have the source run where it must; says what runs."""
    try:
        there = destination.migration.state
    except VFIOError:
        return f"whether {destination.uri} runs is not known, so {source.uri} is left stopped"
    if there in RUNNING:
        return f"{destination.uri} runs, {source.uri} is stopped"
    if not runs:
        return f"{source.uri} is stopped, as it was before"
    return _run_on(source) or f"{source.uri} runs on"
