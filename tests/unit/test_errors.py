# SPDX-License-Identifier: BSD-3-Clause
"""The error tree: what each class is, what its text says, and what becomes of a vector's error."""

from __future__ import annotations

import errno
import inspect
import pickle

import pytest

from pyvfio import errors
from pyvfio.errors import (
    ConnectionLost,
    DMAError,
    RegionError,
    RemoteError,
    VFIOError,
    operation_error,
)

TREE: dict[type[VFIOError], tuple[type[VFIOError], type[Exception] | None]] = {
    errors.BackendError: (VFIOError, None),
    errors.BackendNotFound: (errors.BackendError, LookupError),
    errors.BackendUnavailable: (errors.BackendError, None),
    errors.OpenError: (VFIOError, None),
    errors.DeviceNotFound: (errors.OpenError, FileNotFoundError),
    errors.DeviceBusy: (errors.OpenError, None),
    errors.NotBoundError: (errors.OpenError, None),
    errors.GroupNotViable: (errors.OpenError, None),
    errors.AccessDenied: (errors.OpenError, PermissionError),
    errors.OperationError: (VFIOError, OSError),
    errors.RegionError: (errors.OperationError, OSError),
    errors.IRQError: (errors.OperationError, OSError),
    errors.ResetError: (errors.OperationError, OSError),
    errors.DMAError: (errors.OperationError, OSError),
    errors.DMABatchError: (errors.DMAError, OSError),
    errors.MigrationError: (errors.OperationError, OSError),
    errors.BindError: (errors.OperationError, OSError),
    errors.RemoteError: (errors.OperationError, OSError),
    errors.ProtocolError: (VFIOError, None),
    errors.LocalProtocolError: (errors.ProtocolError, None),
    errors.RemoteProtocolError: (errors.ProtocolError, None),
    errors.NegotiationError: (errors.ProtocolError, None),
    errors.ConnectionLost: (VFIOError, ConnectionError),
    errors.DeviceClosed: (VFIOError, ValueError),
    errors.BufferInUse: (VFIOError, BufferError),
    errors.StateError: (VFIOError, ValueError),
    errors.UnsupportedError: (VFIOError, NotImplementedError),
    errors.VFIOTimeout: (VFIOError, TimeoutError),
}
"""Class -> its parent in the tree, and the built-in exception that says the same."""

EACH = pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)


def test_the_table_has_every_class() -> None:
    defined = {
        found
        for _, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, VFIOError)
    }
    assert defined == {VFIOError, *TREE}


@EACH
def test_a_class_is_below_its_parent(kind: type[VFIOError]) -> None:
    assert issubclass(kind, TREE[kind][0])


@EACH
def test_a_class_can_be_caught_as_the_built_in_one(kind: type[VFIOError]) -> None:
    assert issubclass(kind, TREE[kind][1] or Exception)


@EACH
def test_only_what_has_a_built_in_is_an_os_error(kind: type[VFIOError]) -> None:
    assert issubclass(kind, OSError) == issubclass(TREE[kind][1] or Exception, OSError)


@EACH
def test_the_parts_can_be_asked_for(kind: type[VFIOError]) -> None:
    error = kind("broken", op="read", uri="x:y", errno=errno.EIO, hint="mend it")
    parts = (error.reason, error.op, error.uri, error.errno, error.hint)
    assert parts == ("broken", "read", "x:y", errno.EIO, "mend it")


@EACH
def test_the_text_has_every_part(kind: type[VFIOError]) -> None:
    error = kind("broken", op="read", uri="x:y", errno=errno.EIO, hint="mend it")
    assert str(error) == "read on x:y: broken [EIO] (mend it)"


@EACH
def test_the_parts_survive_a_copy_to_another_process(kind: type[VFIOError]) -> None:
    error = kind("broken", op="read", uri="x:y", errno=errno.EIO, hint="mend it")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "broken"),
        ({"op": "read"}, "read: broken"),
        ({"uri": "x:y"}, "x:y: broken"),
        ({"hint": "mend it"}, "broken (mend it)"),
        ({"errno": errno.EPERM}, "broken [EPERM]"),
        ({"errno": 4711}, "broken [4711]"),
        ({"errno": 0}, "broken [0]"),
    ],
)
def test_the_text_leaves_out_what_is_not_known(parts: dict[str, str | int], text: str) -> None:
    assert str(VFIOError("broken", **parts)) == text  # type: ignore[arg-type]


def test_a_dma_error_has_its_range() -> None:
    error = DMAError("broken", iova=0x1000, size=4096)
    assert (error.iova, error.size) == (0x1000, 4096)


def test_an_interrupt_error_tells_how_many_vectors_there_are_instead() -> None:
    error = errors.IRQError("broken", available=3)
    assert error.available == 3
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, errors.IRQError)
    assert copy.available == 3


def test_a_group_that_is_not_viable_names_what_blocks_it() -> None:
    error = errors.GroupNotViable("in use", blockers=[("0000:03:00.1", "snd_hda_intel")])
    assert error.blockers == (("0000:03:00.1", "snd_hda_intel"),)


# What a vector's error becomes


def test_an_error_of_the_kernel_becomes_one_of_the_operation() -> None:
    found = operation_error(OSError(errno.EBUSY, "?"), RegionError, op="read", uri="x:y")
    assert (type(found), found.errno, str(found)) == (
        RegionError,
        errno.EBUSY,
        "read on x:y: Device or resource busy [EBUSY]",
    )


def test_an_error_of_the_server_becomes_one_of_the_operation() -> None:
    cause = RemoteError("?", op="REGION_READ", errno=errno.EACCES)
    found = operation_error(cause, RegionError, op="read", uri="x:y")
    assert (type(found), found.errno, found.op) == (RegionError, errno.EACCES, "read")


def test_an_error_that_says_what_happened_passes_unchanged() -> None:
    cause = ConnectionLost("the peer closed the connection")
    assert operation_error(cause, RegionError, op="read", uri="x:y") is cause


def test_an_error_without_a_number_is_an_io_error() -> None:
    found = operation_error(OSError("?"), RegionError, op="read", uri="x:y")
    assert found.errno == errno.EIO


def test_a_hint_is_passed_on() -> None:
    found = operation_error(OSError(1, "?"), RegionError, op="", uri="", hint="ask root")
    assert found.hint == "ask root"
