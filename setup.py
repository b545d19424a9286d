# SPDX-License-Identifier: BSD-3-Clause
"""Build and install pyvfio; the C parts are built by cffi."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "pyvfio/__init__.py").read_text(), re.M)
assert VERSION is not None

UNICORN = "unicorn>=2.1.3,<3"

setup(
    name="pyvfio",
    version=VERSION[1],
    description="Drive PCI devices from Python through VFIO: the kernel's, or a vfio-user socket's",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.11",
    packages=find_packages(include=["pyvfio", "pyvfio.*"]),
    package_data={
        "pyvfio": ["py.typed"],
        "pyvfio.emulator": ["firmware/*"],
        "pyvfio.native": ["*.c", "_native.pyi"],
    },
    cffi_modules=["pyvfio/native/build.py:ffibuilder"],
    setup_requires=["cffi>=1.15"],
    install_requires=["cffi>=1.15", "numpy>=1.24", "posix_ipc>=1.1"],
    extras_require={
        "dev": [
            "hypothesis>=6.100",
            "mypy>=1.11",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            UNICORN,
        ],
        "bench": ["matplotlib>=3.7", "setuptools>=65"],  # the latter builds another commit
        "fuzz": ["atheris>=2.3"],
        "unicorn": [UNICORN],
    },
    entry_points={"console_scripts": ["pyvfio = pyvfio.cli.main:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: System :: Hardware",
        "Typing :: Typed",
    ],
)
