"""Packages that are an index: a public name is imported when it is first used."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_index(module_name: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` (PEP 562) of a module whose names load on first use.

    The index is the `if TYPE_CHECKING:` block of the module, which editors and type checkers read too:
    each `from place import name as name` in it is a public name. Submodules of a package load on first
    use as well, and are not in `__all__`.

    Raises:
        ImportError: the source of the module is not there to be read.
    """
    module = sys.modules[module_name]
    places = _places(module)

    def __getattr__(name: str) -> Any:
        place = places.get(name, module_name)
        if place != module_name:
            value = getattr(import_module(place), name)
            setattr(module, name, value)
            return value
        if _has_submodule(module, name):
            return import_module(f"{module_name}.{name}")
        message = f"module {module_name!r} has no attribute {name!r}"
        raise AttributeError(message, name=name, obj=module)

    def __dir__() -> list[str]:
        return sorted({*vars(module), *places})

    return sorted(places), __getattr__, __dir__


def _has_submodule(module: Any, name: str) -> bool:
    if "__path__" not in vars(module) or name.startswith("_") or not name.isidentifier():
        return False
    return find_spec(f"{module.__name__}.{name}") is not None


def _places(module: Any) -> dict[str, str]:
    """The module that each public name is imported from."""
    source = module.__spec__.loader.get_source(module.__name__)
    if source is None:
        raise ImportError(f"{module.__name__} is an index that is read from its source, which is missing")
    return {
        alias.name: line.module
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for line in node.body
        if isinstance(line, ast.ImportFrom) and line.module
        for alias in line.names
    }
