"""A checksum of arrays, by which data are known again."""

import hashlib
from typing import Any

import jax
import numpy as np


def fingerprint(tree: Any) -> str:
    """A checksum of all arrays and numbers in a tree, of their dtypes and shapes."""
    found = hashlib.sha256()
    for leaf in jax.device_get(jax.tree.leaves(tree)):
        array = np.ascontiguousarray(leaf)
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:16]


__all__ = ["fingerprint"]
