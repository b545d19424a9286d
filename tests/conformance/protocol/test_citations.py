# SPDX-License-Identifier: BSD-3-Clause
"""Each test cites the specification, and each part of the specification is cited by a test."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.conformance.protocol import client, server
from tests.conformance.protocol.faults import FAULTS
from tests.conformance.protocol.specification import MESSAGES, TITLES

SUITES = {"server": server, "client": client}

NOTHING_TO_SHOW = {
    "Introduction",
    "VFIO Device Model",
    "Authentication",
    "Socket Disconnection Behavior",
    "Request Retry and Response Timeout",
    "Unused VFIO ioctl() commands",
    "VFIO groups and containers",
}
"""Sections that ask nothing of a peer."""


def below(*messages: str) -> set[str]:
    """A message's section with all that is below it."""
    return {*messages, *(f"{name} / {title}" for name in messages for title in MESSAGES[name])}


FEATURE = "VFIO_USER_DEVICE_FEATURE"
DATA = below("VFIO_USER_MIG_DATA_READ", "VFIO_USER_MIG_DATA_WRITE")

LEFT_OUT = {
    "server": {
        # What a client is to do when its server is gone; ioregionfds, which need KVM.
        "Server Disconnection",
        "VFIO_USER_DEVICE_GET_REGION_IO_FDS / Sub-Region IO FD info format (ioregionfd)",
    },
    "client": {
        # What servers are to do.
        "Backend Program Conventions",
    },
}
"""Sections that a suite has no test for."""


def members(suite: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every test of a suite."""
    for module in pkgutil.iter_modules(suite.__path__):
        found = importlib.import_module(f"{suite.__name__}.{module.name}")
        for name, member in inspect.getmembers(found, inspect.isfunction):
            if name.startswith("test_") and member.__module__ == found.__name__:
                yield name, member


def citations(test: Callable[..., Any]) -> list[str]:
    """The titles that a test cites."""
    marks: list[pytest.Mark] = getattr(test, "pytestmark", [])
    return [title for mark in marks if mark.name == "spec" for title in mark.args]


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_each_test_cites_the_specification(suite: ModuleType) -> None:
    assert [name for name, test in members(suite) if not citations(test)] == []


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_what_is_cited_is_a_title_of_the_specification(suite: ModuleType) -> None:
    assert {title for _, test in members(suite) for title in citations(test)} - TITLES == set()


@pytest.mark.parametrize("name", SUITES)
def test_every_section_is_cited(name: str) -> None:
    cited = {title for _, test in members(SUITES[name]) for title in citations(test)}
    above = {title.partition(" / ")[0] for title in cited}
    assert TITLES - cited - above - NOTHING_TO_SHOW == LEFT_OUT[name]


def test_each_known_fault_is_of_a_test_that_exists() -> None:
    names = {name for suite in SUITES.values() for name, _ in members(suite)}
    assert {fault.test for fault in FAULTS} <= names
