# SPDX-License-Identifier: BSD-3-Clause
"""From a URI to a backend: schemes, options and their types, backends that others bring."""

from __future__ import annotations

import errno
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import pytest

import pyvfio
from pyvfio import registry
from pyvfio.base import VFIOBase
from pyvfio.errors import BackendNotFound, BackendUnavailable, UnsupportedError
from pyvfio.registry import open_backend
from pyvfio.uapi.vfio import DeviceFlags
from pyvfio.vectors import ContainerIO, DeviceInfo, DeviceIO


class Recorded(VFIOBase):
    """A backend that opens nothing and keeps what it was opened with."""

    last: Recorded

    def __init__(
        self,
        target: str,
        *,
        uri: str = "",
        seconds: float = 1.0,
        count: int = 1,
        fast: bool = False,
        name: str = "",
    ) -> None:
        super().__init__(uri)
        self.target = target
        self.options = (seconds, count, fast, name)
        self._info = DeviceInfo(DeviceFlags.PLATFORM, 9, 5)
        Recorded.last = self

    @property
    def device_io(self) -> DeviceIO:
        raise NotImplementedError

    @property
    def container_io(self) -> ContainerIO:
        raise NotImplementedError


def no_backend() -> None:
    """Something that an entry point may name by mistake."""


EntryPoints = Callable[..., None]


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> EntryPoints:
    """Have the installed packages bring backends: scheme -> ``module:attribute``."""

    def install(*pairs: tuple[str, str]) -> None:
        points = [EntryPoint(name, value, registry.ENTRY_POINTS) for name, value in pairs]

        def found(*, group: str, name: str | None = None) -> list[EntryPoint]:
            return [p for p in points if p.group == group and name in (None, p.name)]

        monkeypatch.setattr(registry, "entry_points", found)

    return install


@pytest.fixture
def recorded(entry_points: EntryPoints) -> None:
    """The scheme ``rec`` opens a :class:`Recorded`."""
    entry_points(("rec", f"{__name__}:Recorded"))


def opened(uri: str, **options: Any) -> Recorded:
    """What :class:`Recorded` was opened with."""
    base = open_backend(uri, options)
    assert isinstance(base, Recorded)
    base.close()
    return base


# Schemes


def test_the_schemes_of_the_package() -> None:
    assert "vfio-user" in registry.schemes()


def test_schemes_of_others_are_listed_too(entry_points: EntryPoints) -> None:
    entry_points(("zzz", "a:b"), ("aaa", "a:b"))
    assert registry.schemes() == sorted({*registry.BACKENDS, "aaa", "zzz"})


@pytest.mark.parametrize("uri", ["nvme:0", ":x", "VFIO-USER:/x"])
def test_an_unknown_scheme_lists_the_known_ones(uri: str) -> None:
    with pytest.raises(BackendNotFound, match=r"known: .*vfio-user") as caught:
        open_backend(uri, {})
    assert caught.value.uri == uri


@pytest.mark.parametrize("uri", ["", "edu.sock", "/run/edu.sock"])
def test_a_uri_without_a_scheme_lists_the_known_ones(uri: str) -> None:
    with pytest.raises(BackendNotFound, match=r"no scheme \(known: .*vfio-user"):
        open_backend(uri, {})


def test_an_unknown_scheme_is_a_lookup_error() -> None:
    with pytest.raises(LookupError):
        pyvfio.open("nvme:0")


# Backends of others


@pytest.mark.usefixtures("recorded")
def test_an_entry_point_is_opened_by_its_name() -> None:
    assert opened("rec:/some/where").target == "/some/where"


@pytest.mark.usefixtures("recorded")
def test_the_backend_is_told_the_whole_uri() -> None:
    assert opened("rec:there?count=2").uri == "rec:there?count=2"


@pytest.mark.usefixtures("recorded")
def test_the_target_may_hold_colons() -> None:
    assert opened("rec:0000:03:00.0").target == "0000:03:00.0"


def test_an_entry_point_does_not_replace_a_backend_of_the_package(
    entry_points: EntryPoints,
) -> None:
    entry_points(("vfio-user", f"{__name__}:Recorded"))
    with pytest.raises(FileNotFoundError):
        open_backend("vfio-user:/nowhere", {})


@pytest.mark.parametrize("value", ["no_such_module_here:Backend", f"{__name__}:NoSuchName"])
def test_a_backend_that_cannot_be_imported_is_unavailable(
    entry_points: EntryPoints, value: str
) -> None:
    entry_points(("bad", value))
    with pytest.raises(BackendUnavailable, match="cannot be loaded"):
        open_backend("bad:x", {})


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError])
def test_a_backend_whose_import_fails_is_unavailable(
    entry_points: EntryPoints, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def load(_: EntryPoint) -> object:
        raise error("its settings are wrong")

    entry_points(("bad", "a:b"))
    monkeypatch.setattr(EntryPoint, "load", load)
    with pytest.raises(BackendUnavailable, match="its settings are wrong"):
        open_backend("bad:x", {})


@pytest.mark.parametrize("value", [f"{__name__}:no_backend", "builtins:dict", f"{__name__}:errno"])
def test_an_entry_point_that_is_no_backend_is_unavailable(
    entry_points: EntryPoints, value: str
) -> None:
    entry_points(("bad", value))
    with pytest.raises(BackendUnavailable, match="is no VFIOBase"):
        open_backend("bad:x", {})


# Options


@pytest.mark.usefixtures("recorded")
def test_options_are_passed_as_they_are() -> None:
    found = opened("rec:x", seconds=2.5, count=3, fast=True, name="a")
    assert found.options == (2.5, 3, True, "a")


@pytest.mark.usefixtures("recorded")
def test_query_keys_are_converted() -> None:
    found = opened("rec:x?seconds=2.5&count=3&fast=yes&name=a%20b")
    assert found.options == (2.5, 3, True, "a b")


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    ("text", "value"),
    [("yes", True), ("TRUE", True), ("1", True), ("no", False), ("False", False), ("0", False)],
)
def test_words_for_yes_and_no(text: str, value: bool) -> None:
    assert opened(f"rec:x?fast={text}").options[2] is value


@pytest.mark.usefixtures("recorded")
def test_a_whole_number_is_taken_for_seconds() -> None:
    assert repr(opened("rec:x", seconds=2).options[0]) == "2.0"


@pytest.mark.usefixtures("recorded")
def test_an_empty_query_is_no_option() -> None:
    assert opened("rec:x?").target == "x"


@pytest.mark.usefixtures("recorded")
def test_an_option_may_be_empty() -> None:
    assert opened("rec:x?name=").options[3] == ""


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("uri", ["rec:x?speed=1", "rec:x?uri=rec:y", "rec:x?target=y"])
def test_an_unknown_query_key_lists_the_known_ones(uri: str) -> None:
    with pytest.raises(ValueError, match=r"no such option: .*known: count, fast, name, seconds"):
        open_backend(uri, {})


@pytest.mark.usefixtures("recorded")
def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no such option: speed \(known: count, fast"):
        open_backend("rec:x", {"speed": 1})


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    "options",
    [
        {"seconds": "1"},
        {"seconds": True},
        {"count": 1.0},
        {"count": "1"},
        {"count": True},
        {"fast": 1},
        {"fast": "yes"},
        {"name": 1},
        {"name": None},
    ],
    ids=str,
)
def test_an_option_of_the_wrong_type_is_refused(options: dict[str, Any]) -> None:
    (key,) = options
    with pytest.raises(ValueError, match=f"option '{key}' is no"):
        open_backend("rec:x", options)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("query", ["seconds=soon", "count=1.5", "count=", "fast=maybe", "fast="])
def test_a_query_that_cannot_be_converted_is_refused(query: str) -> None:
    with pytest.raises(ValueError, match=f"option '{query.partition('=')[0]}' is no"):
        open_backend(f"rec:x?{query}", {})


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("query", ["count", "&", "count=1&&fast=yes"])
def test_a_query_that_is_none_is_refused(query: str) -> None:
    with pytest.raises(ValueError, match="bad query field"):
        open_backend(f"rec:x?{query}", {})


@pytest.mark.usefixtures("recorded")
def test_a_query_key_is_given_once() -> None:
    with pytest.raises(ValueError, match="'count' is given twice"):
        open_backend("rec:x?count=1&count=2", {})


@pytest.mark.usefixtures("recorded")
def test_an_option_is_given_in_one_place() -> None:
    with pytest.raises(ValueError, match="'count' is given twice"):
        open_backend("rec:x?count=1", {"count": 1})


@pytest.mark.usefixtures("recorded")
def test_an_error_about_an_option_names_the_uri() -> None:
    with pytest.raises(ValueError, match=r"^open rec:x\?count=a: "):
        open_backend("rec:x?count=a", {})


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e300"])
def test_a_time_out_that_cannot_be_waited_for_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="timeout"):
        open_backend(f"vfio-user:/nowhere?timeout={text}", {})


# pyvfio.open()


@pytest.mark.usefixtures("recorded")
def test_open_refuses_what_is_no_pci_device() -> None:
    with pytest.raises(UnsupportedError, match=r"no PCI device .*PLATFORM"):
        pyvfio.open("rec:x")


@pytest.mark.usefixtures("recorded")
def test_open_closes_what_it_refuses() -> None:
    with pytest.raises(UnsupportedError):
        pyvfio.open("rec:x")
    assert Recorded.last.closed


@pytest.mark.usefixtures("recorded")
def test_open_passes_options_on() -> None:
    with pytest.raises(UnsupportedError):
        pyvfio.open("rec:x", count=9)
    assert Recorded.last.options[1] == 9


def test_open_names_the_socket_that_is_not_there() -> None:
    with pytest.raises(pyvfio.DeviceNotFound, match="is the server running") as caught:
        pyvfio.open("vfio-user:/nowhere/edu.sock")
    assert (caught.value.errno, caught.value.uri) == (
        errno.ENOENT,
        "vfio-user:/nowhere/edu.sock",
    )
