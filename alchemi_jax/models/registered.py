"""Entries by name: of this package and of others, which register theirs by entry points. Imports no JAX."""

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder
from typing import Any

from alchemi_jax.models.entries import ENTRIES, ModelEntry
from alchemi_jax.spelling import did_you_mean


#: The group of entry points by which other packages add models.
GROUP = "alchemi_jax.models"


def find(name: str) -> ModelEntry | None:
    """The entry of a name, of this package or another; None if there is none.

    Raises:
        ValueError: naming the package, if its entry cannot be used.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    points = _points().get(name, ())
    if len(points) > 1:
        packages = ", ".join(sorted(_package(point) for point in points))
        raise ValueError(f"{name} is registered by several packages, {packages}: uninstall all but one")
    return _entry_from(points[0]) if points else None


def known_names() -> list[str]:
    """All names, without importing what other packages register."""
    return sorted({*ENTRIES, *_points()})


def entries() -> list[ModelEntry]:
    """All entries: those of this package, then those of others that can be used."""
    return [*ENTRIES.values(), *(entry for entry, _ in _others() if entry is not None)]


def problems() -> list[str]:
    """What is wrong with models that other packages register, a sentence each."""
    return [problem for _, problem in _others() if problem]


def _others() -> Iterator[tuple[ModelEntry | None, str]]:
    for name in sorted(_points()):
        if name in ENTRIES:
            yield None, f"{_package(_points()[name][0])} registers {name}, which is a name of alchemi_jax."
            continue
        try:
            yield find(name), ""
        except ValueError as e:
            yield None, f"{e}."


@cache
def _points() -> dict[str, tuple[Any, ...]]:
    """name -> entry points of other packages. A package that is found twice, in two folders, counts once."""
    from importlib import metadata

    found: dict[str, dict[Any, Any]] = {}
    for point in metadata.entry_points(group=GROUP):
        found.setdefault(point.name, {})[(_package(point), point.value)] = point
    return {name: tuple(points.values()) for name, points in found.items()}


def _package(point: Any) -> str:
    return point.dist.name if point.dist is not None else point.value


def _entry_from(point: Any) -> ModelEntry:
    try:
        found = point.load()
    except Exception as e:
        text = " ".join(str(e).split()) or type(e).__name__
        raise ValueError(
            f"{point.name} is registered by {_package(point)}, whose {point.value} cannot be imported: {text}"
        ) from None
    if isinstance(found, ModelEntry):
        return dataclasses.replace(found, name=point.name)
    if not callable(found):
        raise ValueError(
            f"{point.name} is registered by {_package(point)}, whose {point.value} is neither a ModelEntry "
            "nor a function or class that returns a model"
        )
    first = (found.__doc__ or "").strip().split("\n")[0].rstrip(".")
    meta = point.dist.metadata if point.dist is not None else {}
    return ModelEntry(
        point.name,
        first or "a model of another package",
        point.value,
        "text",
        covers="as the model says",
        licence=meta.get("License-Expression") or meta.get("License") or "",
        source=f"the package {_package(point)}",
    )


def is_installed(entry: ModelEntry, version: str = "") -> bool:
    """Whether the packages and weights that the entry needs are on this machine."""
    module = entry.place.partition(":")[0]
    ours = module.startswith("alchemi_jax.")
    if ours and importlib.util.find_spec(module) is None:
        return False
    if any(not has_module(name, None) for name in entry.modules):
        return False
    if not entry.fetched:
        return True
    try:
        return bool(resolve(entry.fetched)(version or entry.versions[0]))
    except ImportError:
        return False


# -- modules -------------------------------------------------------------------------------------------


def has_module(name: str, folder: str | None) -> bool:
    """Whether the outermost package of a module is there; nothing is imported."""
    top = name.partition(".")[0]
    if top in sys.modules:
        return True
    try:
        if folder is not None and PathFinder.find_spec(top, [folder]) is not None:
            return True
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def resolve(place: str) -> Any:
    """What stands at `module:name`.

    Raises:
        ImportError: naming what is missing.
    """
    module, _, names = place.partition(":")
    try:
        found = import_module(module)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{module}.".startswith(f"{e.name}."):
            raise
        ours = ", in this version of alchemi_jax" if module.startswith("alchemi_jax.") else ""
        raise ImportError(f"there is no module {module}{ours}") from None
    for name in names.split("."):
        if not hasattr(found, name):
            where = getattr(found, "__name__", module)
            near = did_you_mean(name, [n for n in dir(found) if not n.startswith("_")])
            raise ImportError(f"{where} has no {name}{near}")
        found = getattr(found, name)
    return found


__all__ = ["GROUP", "entries", "find", "has_module", "is_installed", "known_names", "problems", "resolve"]
