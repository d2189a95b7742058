"""Links to the pages of JAX, numpy, ASE and others.

Their inventories are read from their sites. Where there is no network, or SITE_OFFLINE=true, the names below
are linked: those that the pages and signatures here use most.
"""

import zlib
from pathlib import Path
from typing import Any

from sources import asked


SITES = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "jax": "https://docs.jax.dev/en/latest/",
    "equinox": "https://docs.kidger.site/equinox/",
    "optax": "https://optax.readthedocs.io/en/latest/",
    "ase": "https://ase-lib.org/",
}
_KNOWN = {
    "python": (
        "collections.abc.Callable py:class library/collections.abc.html#$",
        "collections.abc.Iterable py:class library/collections.abc.html#$",
        "collections.abc.Iterator py:class library/collections.abc.html#$",
        "collections.abc.Mapping py:class library/collections.abc.html#$",
        "collections.abc.Sequence py:class library/collections.abc.html#$",
        "pathlib.Path py:class library/pathlib.html#$",
        "typing.Any py:data library/typing.html#$",
        "enum.Enum py:class library/enum.html#$",
        "KeyError py:exception library/exceptions.html#$",
        "TypeError py:exception library/exceptions.html#$",
        "ValueError py:exception library/exceptions.html#$",
        "OSError py:exception library/exceptions.html#$",
        "bool py:class library/functions.html#$",
        "int py:class library/functions.html#$",
        "float py:class library/functions.html#$",
        "str py:class library/stdtypes.html#$",
        "dict py:class library/stdtypes.html#$",
        "list py:class library/stdtypes.html#$",
        "tuple py:class library/stdtypes.html#$",
    ),
    "numpy": (
        "numpy.ndarray py:class reference/generated/numpy.ndarray.html#$",
        "numpy.dtype py:class reference/generated/numpy.dtype.html#$",
    ),
    "jax": (
        "jax.Array py:class _autosummary/jax.Array.html#$",
        "jax.jit py:function _autosummary/jax.jit.html#$",
        "jax.vmap py:function _autosummary/jax.vmap.html#$",
        "jax.grad py:function _autosummary/jax.grad.html#$",
        "jax.lax.scan py:function _autosummary/jax.lax.scan.html#$",
        "jax.lax.while_loop py:function _autosummary/jax.lax.while_loop.html#$",
        "jax.device_get py:function _autosummary/jax.device_get.html#$",
    ),
    "equinox": (
        "equinox.Module py:class api/module/module/#$",
        "equinox.filter_jit py:function api/transformations/#$",
    ),
    "optax": ("optax.GradientTransformation py:class api/transformations.html#$",),
    "ase": ("ase.Atoms py:class ase/atoms.html#$",),
}


def mapping(folder: Path) -> dict[str, tuple[str, Any]]:
    """What `intersphinx_mapping` takes: the site, and a file with the names above beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, url in SITES.items():
        path = folder / f"{name}.inv"
        path.write_bytes(_inventory(name, _KNOWN[name]))
        found[name] = (url, str(path) if asked("SITE_OFFLINE") else (None, str(path)))
    return found


def _inventory(project: str, lines: tuple[str, ...]) -> bytes:
    """An inventory of version 2 with these names: name, role, and place in the site."""
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    rows = (f"{name} {role} 1 {place} -\n" for name, role, place in (line.split() for line in lines))
    return head.encode() + zlib.compress("".join(rows).encode())
