# SPDX-License-Identifier: BSD-3-Clause
"""What ``pyvfio migrate`` does: each verb does it, and says what there is to tell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pyvfio
from pyvfio import __version__
from pyvfio.base import VFIOBase
from pyvfio.cli.progress import ProgressBar
from pyvfio.cli.state_files import STANDARD, CheckedFile, NewFile, checked
from pyvfio.cli.tables import rounded
from pyvfio.cli.uris import as_uri
from pyvfio.errors import ConnectionLost, MigrationError, UnsupportedError, VFIOTimeout
from pyvfio.migration import Migration
from pyvfio.migration_file import StateWriter
from pyvfio.migration_states import RUNNING
from pyvfio.migration_transfer import MAX_SIZE, Transfer
from pyvfio.pci.device import PCIDevice
from pyvfio.pci.migrate import load_state, migrate, save_state
from pyvfio.pci.saved_config import SavedConfig, ids_of
from pyvfio.uapi.vfio import DeviceState

_MEANINGS = {
    DeviceState.ERROR: "an unfinished load was its last, or it has failed; a reset makes it as new",
    DeviceState.STOP: "it is whole, and waits for `pyvfio migrate resume`",
    DeviceState.RUNNING: "it works",
}


def move(args: argparse.Namespace, operands: list[str]) -> dict[str, Any]:
    """Have a device go on in another server."""
    uris = [as_uri(text) for text in operands]
    if uris[0] == uris[1]:  # whose server would not answer a second client
        raise ValueError(f"migrate: {uris[0]} cannot migrate to itself")
    with ExitStack() as stack:
        source, destination = (stack.enter_context(_opened(uri)) for uri in uris)
        with ProgressBar() as bar:
            transfer = migrate(
                source,
                destination,
                resume=args.resume,
                progress=lambda transfer: _show(bar, transfer),
                **_how(args),
            )
        if transfer.source_failure is not None:
            print(f"pyvfio: {transfer.source_failure}", file=sys.stderr)
        if args.resume:
            text = f"{destination.uri} runs, {source.uri} is stopped: {_figures(transfer)}"
            text += f"\nshould it go on at the source instead: pyvfio migrate resume {source.uri}"
        else:
            text = f"both {destination.uri} and {source.uri} are stopped: {_figures(transfer)}"
            text += f"\nto go on: pyvfio migrate resume {destination.uri}"
            text += f"\nor, instead, where it was: pyvfio migrate resume {source.uri}"
        return {
            "source": source.uri,
            "source_state": _state(source),
            "destination": destination.uri,
            "destination_state": _state(destination),
            **_measured(transfer),
            "text": text,
        }


def save(args: argparse.Namespace, operands: list[str]) -> dict[str, Any]:
    """Keep a device in a file."""
    uri, path = operands
    with _opened(uri) as dev, NewFile(path) as file, ProgressBar() as bar:
        transfer = Transfer(
            dev.migration,
            progress=lambda transfer: _show(bar, transfer),
            **_how(args),
        )
        writer = StateWriter(file.write, ids_of(dev.config), f"pyvfio {__version__}")

        def keep(config: SavedConfig) -> None:
            writer.finish(config.pack())
            file.keep()

        save_state(dev, transfer, writer.write, keep, keep_running=args.keep_running)
        state = _state(dev)
        text = f"{path} has {dev.uri}, which {_doing(state)}: {_figures(transfer)}"
        if state == DeviceState.STOP.name:
            text += f"\nto go on: pyvfio migrate resume {dev.uri}"
        return {
            "source": dev.uri,
            "source_state": state,
            "file": path,
            **_measured(transfer),
            "text": text,
            "to_stderr": path == STANDARD,
        }


def load(args: argparse.Namespace, operands: list[str]) -> dict[str, Any]:
    """Have a device take on the state in a file."""
    uri, path = operands
    max_size = MAX_SIZE if args.max_size is None else args.max_size
    with checked(path, max_size) as file, _opened(uri) as dev, ProgressBar() as bar:
        file.ids.check(ids_of(dev.config), dev.uri)
        load_state(dev, _shown(bar, file), lambda: file.config, resume=args.resume)
        state = _state(dev)
        text = f"{dev.uri} has {path}, and {_doing(state)}: {rounded(file.state_size)}"
        if state == DeviceState.STOP.name:
            text += f"\nto go on: pyvfio migrate resume {dev.uri}"
        return {
            "file": path,
            "destination": dev.uri,
            "destination_state": state,
            "total_bytes": file.state_size,
            "text": text,
        }


def resume(_: argparse.Namespace, operands: list[str]) -> dict[str, Any]:
    """Have a device run that is stopped.

    Without :class:`PCIDevice`, whose opening sets bits of the command register.
    """
    with _base(operands[0]) as base:
        migration = Migration(base)
        state = migration.state
        if state is DeviceState.ERROR:
            raise MigrationError(
                "it has failed, or an unfinished load was its last",
                op="resume",
                uri=base.uri,
                state=state,
                hint="the device is where it came from; `pyvfio reset` makes this one as new",
            )
        if state not in RUNNING:
            migration.set_state(DeviceState.RUNNING, recover=DeviceState.STOP, reset=False)
        was = "ran already" if state in RUNNING else "runs"
        return {"device": base.uri, "state": migration.state.name, "text": f"{base.uri} {was}"}


def status(_: argparse.Namespace, operands: list[str]) -> dict[str, Any]:
    """Say what a device does."""
    with _base(operands[0]) as base:
        migration = Migration(base)
        flags, state = migration.flags, migration.state
        can = [flag.name for flag in type(flags) if flag in flags]
        text = f"{base.uri} is in {state.name}: {_MEANINGS.get(state, 'it is being migrated')}"
        return {"device": base.uri, "state": state.name, "can": can, "text": text}


# Devices


def _opened(text: str) -> PCIDevice:
    """Open a device that stays as it is when this program ends."""
    dev = pyvfio.open(as_uri(text))
    try:
        _check_outlives(dev.base)
    except BaseException:
        dev.close()
        raise
    return dev


@contextmanager
def _base(text: str) -> Iterator[VFIOBase]:
    base = pyvfio.open_backend(as_uri(text), {})
    with base:
        _check_outlives(base)
        yield base


def _check_outlives(base: VFIOBase) -> None:
    if not base.device_io.state_outlives_client:
        raise UnsupportedError(
            "the kernel resets a device that is opened or closed, so there is nothing to migrate",
            op="migrate",
            uri=base.uri,
            hint="the program that drives it can: pyvfio.migrate()",
        )


def _state(dev: PCIDevice) -> str:
    """What a device is in; of one that was lost behind its migration nothing is known."""
    with suppress(ConnectionLost, VFIOTimeout):
        return dev.migration.state.name
    return "unknown"


def _doing(state: str) -> str:
    return {"STOP": "is stopped", "RUNNING": "runs"}.get(state, f"is in {state}")


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """How a state is to be read, as far as that was said; all else is left to :class:`Transfer`."""
    names = ("precopy", "precopy_seconds", "piece", "max_size")
    return {name: value for name in names if (value := getattr(args, name)) is not None}


# Figures


def _show(bar: ProgressBar, transfer: Transfer) -> None:
    what = "stopped" if transfer.stopped else f"pre-copy {len(transfer.rounds)}"
    bar.show(what, transfer.total, transfer.remaining)


def _shown(bar: ProgressBar, file: CheckedFile) -> Iterator[bytes]:
    done = 0
    for piece in file.pieces():
        yield piece
        done += len(piece)
        left = file.state_size - done
        bar.show("load", done, lambda left=left: left)  # type: ignore[misc]


def _figures(transfer: Transfer) -> str:
    text = f"{rounded(transfer.stopped_bytes)} while stopped"
    if transfer.rounds:
        rounds = len(transfer.rounds)
        passes = f"{rounds} pass{'es' if rounds > 1 else ''}"
        text = f"{rounded(sum(transfer.rounds))} in {passes} of pre-copy, {text}"
    if transfer.downtime is not None:
        return f"{text}, down for {1000 * transfer.downtime:.1f} ms"
    return f"{text}, {transfer.seconds:.3f} s"


def _measured(transfer: Transfer) -> dict[str, Any]:
    down = transfer.downtime
    return {
        "rounds": transfer.rounds,
        "precopy_bytes": sum(transfer.rounds),
        "stopped_bytes": transfer.stopped_bytes,
        "total_bytes": transfer.total,
        "ms": round(1000 * transfer.seconds, 3),
        "downtime_ms": None if down is None else round(1000 * down, 3),
    }
