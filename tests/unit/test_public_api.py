# SPDX-License-Identifier: BSD-3-Clause
"""What people import: the names, their documentation, and that imports go down only."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import pyvfio
from pyvfio import errors
from pyvfio.errors import VFIOError
from tests.support import ROOT

PACKAGE = ROOT / "pyvfio"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "polling"),
    ("uapi",),
    ("wire", "native"),
    ("transport", "eventfd"),
    ("core",),
    ("pci", "backends", "server"),
    ("drivers", "models", "emulator"),
    ("front door",),
    ("cli",),
)
"""The house, from the ground: a room knows itself and the floors below, not its neighbours."""

ROOMS = {
    **dict.fromkeys(
        (
            "vectors",
            "closing",
            "memory",
            "iova",
            "map_table",
            "map_checks",
            "dma_ranges",
            "integers",
            "sorted_blocks",
            "device_access",
            "dma_batch",
            "irq",
            "irq_wait",
            "io_eventfd",
            "region",
            "region_access",
            "mapped_areas",
            "device_memory",
            "posting",
            "program",
            "program_run",
            "container",
            "reconnection",
            "features",
            "dirty_bitmap",
            "dirty_sources",
            "dirty",
            "migration_states",
            "migration_control",
            "migration_stream",
            "migration",
            "migration_file",
            "migration_transfer",
            "base",
            "registry",
        ),
        "core",
    ),
    "": "front door",
    "__main__": "cli",
}
"""Files of the package that are no folder -> their room; the package itself is the front door."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

NO_BACKEND = ("backends", "server", "transport", "wire", "models", "drivers", "emulator", "cli")
"""Rooms that nobody loads who only imports the package."""


class Import(NamedTuple):
    """A module that imports another, both as names within the package."""

    importer: str
    imported: str


def module_name(path: Path) -> str:
    """``pyvfio/pci/bars.py`` -> ``pci.bars``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room(module: str) -> str:
    """The room that a module is in."""
    first = module.partition(".")[0]
    return ROOMS.get(first, first)


def is_module(name: str) -> bool:
    """Whether a name within the package is a module, and not something in one."""
    path = PACKAGE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imported_names(source: str) -> Iterator[str]:
    """What a source imports of the package, at its top, in functions and for types alike."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("."):
                yield name
            elif name.partition(".")[0] == "pyvfio":
                within = name.partition(".")[2]
                yield within if is_module(within) else within.rpartition(".")[0]


def imports(path: Path) -> Iterator[Import]:
    """The imports of one file."""
    for name in imported_names(path.read_text(encoding="utf-8")):
        yield Import(module_name(path), name)


def goes_down(found: Import) -> bool:
    """Whether an import stays in its room or goes to a lower floor."""
    above, below = room(found.importer), room(found.imported)
    return above == below or FLOOR_OF[below] < FLOOR_OF[above]


def modules() -> list[Path]:
    """The files of the package."""
    return sorted(PACKAGE.rglob("*.py"))


# Floors


def test_every_module_is_on_a_floor() -> None:
    assert {room(module_name(path)) for path in modules()} <= FLOOR_OF.keys()


def test_imports_go_down_only() -> None:
    found = [entry for path in modules() for entry in imports(path)]
    assert [entry for entry in found if not goes_down(entry)] == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("pci.bars", "backends.user.device"),
        ("pci.bars", "server.model"),
        ("server.function", "pci.config"),
        ("server.function", "backends.user.device"),
        ("backends.user.device", "pci.device"),
        ("drivers.edu", "models.edu"),
        ("drivers.edu", ""),
        ("wire.header", "native.mmio"),
        ("region", "pci.bars"),
        ("errors", "uapi.vfio"),
    ],
)
def test_an_import_that_goes_up_or_next_door_would_be_seen(importer: str, imported: str) -> None:
    assert not goes_down(Import(importer, imported))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import pyvfio.pci.bars", ["pci.bars"]),
        ("from pyvfio.pci.bars import BAR", ["pci.bars"]),
        ("from pyvfio.pci import bars", ["pci.bars"]),
        ("from pyvfio import open", [""]),
        ("def f():\n    from pyvfio import errors", ["errors"]),
        ("import os, pyvfio", [""]),
        ("from . import bars", ["..bars"]),
        ("import numpy", []),
    ],
)
def test_every_way_to_import_is_seen(source: str, names: list[str]) -> None:
    assert list(imported_names(source)) == names


def test_nothing_is_imported_relatively() -> None:
    found = [entry for path in modules() for entry in imports(path)]
    assert [entry for entry in found if entry.imported.startswith(".")] == []


def test_the_conformance_suite_knows_no_backend() -> None:
    found = {
        (path.name, name)
        for path in (ROOT / "tests/conformance").glob("*.py")
        for name in imported_names(path.read_text(encoding="utf-8"))
        if room(name) in ("backends", "server", "transport", "wire", "models")
    }
    assert found == set()


def test_importing_the_package_loads_no_backend() -> None:
    code = "import sys, pyvfio; print(*sorted(n for n in sys.modules if n.startswith('pyvfio.')))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True
    )
    loaded = {room(name.partition(".")[2]) for name in done.stdout.split()}
    assert loaded & set(NO_BACKEND) == set()


# Names


def sort_key(name: str) -> tuple[bool, bool, str]:
    """Constants, then classes, then functions."""
    return not name.isupper(), name[0].islower(), name


def test_the_names_are_sorted() -> None:
    assert pyvfio.__all__ == sorted(pyvfio.__all__, key=sort_key)


def test_no_name_stands_there_twice() -> None:
    assert len(pyvfio.__all__) == len(set(pyvfio.__all__))


def test_the_names_are_all_that_the_package_brings() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    brought = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pyvfio"):
            brought |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            brought.add(node.name)
    assert {name for name in brought if not name.startswith("_")} == set(pyvfio.__all__)


def test_every_error_is_a_public_name() -> None:
    tree = {
        name
        for name, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, VFIOError)
    }
    assert tree <= set(pyvfio.__all__)


def test_the_version_is_that_of_the_distribution() -> None:
    assert pyvfio.__version__ == importlib.metadata.version("pyvfio")


def test_type_checkers_find_the_annotations() -> None:
    assert (PACKAGE / "py.typed").exists()


# Documentation


@pytest.mark.parametrize("name", pyvfio.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    assert getattr(pyvfio, name).__doc__


def undocumented(kind: type) -> list[str]:
    """Public methods and properties of a class that neither it nor a base documents."""
    return [
        name
        for name, member in inspect.getmembers(kind)
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, property))
        and not inspect.getdoc(member)
        and not inspect.getdoc(getattr(kind, name))
    ]


CLASSES = [name for name in pyvfio.__all__ if inspect.isclass(getattr(pyvfio, name))]


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_documents_its_methods(name: str) -> None:
    assert undocumented(getattr(pyvfio, name)) == []


def test_every_module_says_what_it_is_for() -> None:
    found = [
        str(path.relative_to(ROOT))
        for path in modules()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_every_module_names_its_licence() -> None:
    found = [
        str(path.relative_to(ROOT))
        for path in modules()
        if not path.read_text(encoding="utf-8").startswith(
            "# SPDX-License-Identifier: BSD-3-Clause\n"
        )
    ]
    assert found == []
