# SPDX-License-Identifier: BSD-3-Clause
"""The device models that come with the package, by the name that ``pyvfio serve`` takes."""

from __future__ import annotations

import importlib

from pyvfio.errors import BackendNotFound
from pyvfio.server.model import DeviceModel

MODELS = {
    "edu": "pyvfio.models.edu:Edu",
    "testdev": "pyvfio.models.testdev:TestDevice",
}


def make(name: str) -> DeviceModel:
    """A new model.

    :param name: a name of :data:`MODELS`, or ``module:Class`` of one's own.
    :raises BackendNotFound: there is no such model, or it is no model.
    """
    module, colon, attribute = MODELS.get(name, name).partition(":")
    if not colon:
        raise BackendNotFound(
            "no such model", op="serve", uri=name, hint=f"known: {', '.join(MODELS)}, module:Class"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BackendNotFound(str(error), op="serve", uri=name) from error
    if not (isinstance(found, type) and issubclass(found, DeviceModel)):
        raise BackendNotFound("not a DeviceModel", op="serve", uri=name)
    return found()
