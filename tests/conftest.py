# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of all tests: nothing may leak, and nothing may be skipped where all is required."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyvfio
from pyvfio.pci.device import PCIDevice
from tests.support import ServerProcess, eventually, open_fds, shared_segments, thread_names

EDU_URI = "PYVFIO_EDU_URI"
"""URI of an edu device that the conformance suite takes instead of a served model.  Its tests of
other devices are left out."""
DEVICES = "PYVFIO_DEVICES"
"""URIs, separated by commas, for the tests of any device, instead of the served models."""

PEERS = {"PYVFIO_QEMU": "QEMU's client", "PYVFIO_LIBVFIO_USER": "libvfio-user's servers"}
"""Environment variables that name implementations of others, whose tests are left out without."""

os.environ["PCI_IDS_PATH"] = os.devnull  # names are the package's own, whatever is installed here

REQUIRE = "PYVFIO_REQUIRE"
"""Set to ``all`` (CI does), this makes each skip a failure."""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get(REQUIRE) == "all":
        report.outcome = "failed"
        report.longrepr = f"skipped, but {REQUIRE}=all: {report.longrepr[2]}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With devices given, only those tests of the suite that take them."""
    if not os.environ.get(EDU_URI):
        return
    suite = Path(__file__).parent / "conformance"
    chosen = [
        item for item in items if not item.path.is_relative_to(suite) or _takes_what_is_given(item)
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def _takes_what_is_given(item: pytest.Item) -> bool:
    names = set(getattr(item, "fixturenames", ()))
    if "any_uri" in names:
        return True
    return "edu" in names and not names & {"testdev", "testdev_server", "edu_server", "serve"}


def pytest_configure() -> None:
    """A run in the background may be begun with signals ignored that tests send."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests ran where, for what tests have recorded of it; which peers were not there."""
    absent = [f"{what} ({name})" for name, what in PEERS.items() if not os.environ.get(name)]
    if absent and not os.environ.get(EDU_URI):
        terminalreporter.write_line(f"peers that were not given: {', '.join(absent)}")
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    suite = [r for r in reports if r.nodeid.startswith("tests/conformance/") and r.when == "call"]
    if suite and not os.environ.get(EDU_URI):
        terminalreporter.write_line(f"{len(suite)} tests of the suite ran over vfio-user")
    for report in reports:
        for where, count in getattr(report, "user_properties", ()):
            if report.when == "call":
                terminalreporter.write_line(f"{count} tests ran {where}")


def pytest_collection_finish() -> None:
    """What collection made need not be looked at again by each ``gc.collect()`` of no_leaks."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Descriptors, threads and shared memory after a test are those from before it.

    Shared memory is that of this process: another run of the tests may be under way beside it.
    """
    fds, threads, segments = open_fds(), thread_names(), shared_segments(os.getpid())
    yield
    if open_fds() != fds or not thread_names() <= threads:
        gc.collect()  # what only a cycle of references holds is no leak
    assert eventually(lambda: thread_names() <= threads), thread_names() - threads
    after = open_fds()
    leaked = {fd: name for fd, name in after.items() if fds.get(fd) != name}
    assert not leaked, f"descriptors leaked: {leaked}"
    assert shared_segments(os.getpid()) <= segments


@pytest.fixture(scope="session")
def socket_folder() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's, which may have 107 bytes in all."""
    with tempfile.TemporaryDirectory(prefix="pyvfio-") as folder:
        yield Path(folder)


_own = itertools.count()
"""Numbers of servers: one that cannot be stopped does not stand in the way of the next test."""


@pytest.fixture
def serve(socket_folder: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers of a test's own; they are stopped after it."""
    servers: list[ServerProcess] = []

    def start(model: str = "edu", *options: str) -> ServerProcess:
        path = socket_folder / f"own-{next(_own)}.sock"
        servers.append(ServerProcess(model, path, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def edu_server(socket_folder: Path) -> Iterator[ServerProcess]:
    """One server of the edu model for all tests that leave it as it was."""
    with ServerProcess("edu", socket_folder / "edu.sock") as server:
        yield server


@pytest.fixture(scope="session")
def testdev_server(socket_folder: Path) -> Iterator[ServerProcess]:
    """One server of the test device for all tests that leave it as it was."""
    with ServerProcess("testdev", socket_folder / "testdev.sock") as server:
        yield server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of any device take each that there is."""
    if "any_uri" in metafunc.fixturenames:
        given = os.environ.get(DEVICES)
        names = given.split(",") if given else ["edu", "testdev"]
        metafunc.parametrize("any_uri", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def any_uri(request: pytest.FixtureRequest) -> str:
    """The URI of one of the devices that there are."""
    name: str = request.param
    if os.environ.get(DEVICES):
        return name
    server: ServerProcess = request.getfixturevalue(f"{name}_server")
    return server.uri


@pytest.fixture(scope="session")
def edu_uri(request: pytest.FixtureRequest) -> str:
    """The edu device that the tests take."""
    given = os.environ.get(EDU_URI)
    if given:
        return given
    server: ServerProcess = request.getfixturevalue("edu_server")
    return server.uri


@pytest.fixture
def edu(edu_uri: str) -> Iterator[PCIDevice]:
    """An edu device in its power-on state."""
    with pyvfio.open(edu_uri) as dev:
        if dev.resettable:
            dev.reset()
        else:
            calm(dev)
        yield dev


def calm(edu: PCIDevice) -> None:
    """What a reset does, for an edu device that has none: QEMU's."""
    bar = edu.bars[0]
    bar.write32(0x20, 0)
    bar.write32(0x64, 0xFFFF_FFFF)
    bar.write32(0x04, 0xFFFF_FFFF)
    edu.bus_master = False


@pytest.fixture
def testdev(testdev_server: ServerProcess) -> Iterator[PCIDevice]:
    """A test device, freshly reset."""
    with pyvfio.open(testdev_server.uri) as dev:
        dev.reset()
        yield dev
