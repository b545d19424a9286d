# SPDX-License-Identifier: BSD-3-Clause
"""From a URI to a backend: ``scheme:target?option=value``.

Backends are named by module and class, and imported when their scheme is first opened.  Others add
themselves with an entry point of the group ``pyvfio.backends``, named after their scheme.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, get_type_hints
from urllib.parse import parse_qsl

from pyvfio.base import VFIOBase
from pyvfio.errors import BackendNotFound, BackendUnavailable

ENTRY_POINTS = "pyvfio.backends"

BACKENDS = {
    "vfio": "pyvfio.backends.ioctl.device:KernelDevice",
    "vfio-user": "pyvfio.backends.user.device:UserDevice",
}
"""Scheme -> ``module:class`` of the backends that come with the package."""


def schemes() -> list[str]:
    """The schemes that can be opened, sorted."""
    return sorted({*BACKENDS, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def open_backend(uri: str, options: Mapping[str, Any]) -> VFIOBase:
    """Open the device that ``uri`` names.

    :param options: typed options of the backend; query keys of the URI are converted to the same
        types and must not name one of them again.
    :raises BackendNotFound: no such scheme.
    :raises BackendUnavailable: the backend cannot be imported.
    :raises ValueError: an option is unknown, given twice, or of the wrong type.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon:
        raise BackendNotFound(
            "no scheme", op="open", uri=uri, hint=f"known: {', '.join(schemes())}"
        )
    backend = _load(scheme, uri)
    target, _, query = rest.partition("?")
    return backend(target, uri=uri, **_options(backend, options, query, uri))


def _load(scheme: str, uri: str) -> Callable[..., VFIOBase]:
    points = entry_points(group=ENTRY_POINTS, name=scheme)
    if scheme not in BACKENDS and not points:
        raise BackendNotFound(
            f"no backend for {scheme!r}",
            op="open",
            uri=uri,
            hint=f"known: {', '.join(schemes())}",
        )
    try:
        if scheme in BACKENDS:
            module, _, name = BACKENDS[scheme].partition(":")
            found = getattr(importlib.import_module(module), name)
        else:
            found = next(iter(points)).load()
    except Exception as error:  # a third party's module may fail in any way while it is imported
        raise BackendUnavailable(
            f"the backend for {scheme!r} cannot be loaded: {error}", op="open", uri=uri
        ) from error
    if not (inspect.isclass(found) and issubclass(found, VFIOBase)):
        raise BackendUnavailable(f"{found!r} is no VFIOBase", op="open", uri=uri)
    return found


def _options(
    backend: Callable[..., VFIOBase], given: Mapping[str, Any], query: str, uri: str
) -> dict[str, Any]:
    """The options of a backend are the keyword-only parameters of its constructor."""
    parameters = inspect.signature(backend).parameters.values()
    known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"uri"}
    types = get_type_hints(getattr(backend, "__init__"))  # noqa: B009
    found = {key: _typed(key, value, types.get(key), uri) for key, value in given.items()}
    for key, text in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)):
        if key in found:
            raise ValueError(f"open {uri}: option {key!r} is given twice")
        found[key] = _converted(key, text, types.get(key), uri)
    unknown = set(found) - known
    if unknown:
        raise ValueError(
            f"open {uri}: no such option: {', '.join(sorted(unknown))}"
            f" (known: {', '.join(sorted(known))})"
        )
    return found


def _typed(key: str, value: Any, kind: Any, uri: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and (
        not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    ):
        raise ValueError(f"open {uri}: option {key!r} is no {kind.__name__}: {value!r}")
    return value


def _converted(key: str, text: str, kind: Any, uri: str) -> Any:
    words = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    try:
        if kind is bool:
            return words[text.lower()]
        if kind in (int, float):
            return kind(text)
    except (KeyError, ValueError):
        raise ValueError(f"open {uri}: option {key!r} is no {kind.__name__}: {text!r}") from None
    return text
