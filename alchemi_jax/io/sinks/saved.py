"""Systems in memory as a tree that a checkpoint stores."""

import json
from typing import Any

import numpy as np

from alchemi_jax.io.sinks.layout import DERIVED, meta_from_text, meta_text
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import level_fields
from alchemi_jax.systems.metadata import Metadata


def batch_tree(host: HostBatch | None) -> dict[str, Any] | None:
    """The systems of a batch as numpy arrays by name, and their names, `info` and constraints as text.

    Entries of `info` that have no form in JSON become text, with a warning.
    """
    if host is None:
        return None
    fields = {name: getattr(host, name) for name, _ in level_fields(host) if name not in DERIVED}
    texts = [json.loads(meta_text(meta)) for meta in host.meta]
    return {"fields": fields, "meta": json.dumps(texts), "lost": host.meta.constrained and not texts}


def batch_from_tree(tree: dict[str, Any] | None) -> HostBatch | None:
    """The inverse of `batch_tree`."""
    if tree is None:
        return None
    fields = {
        name: {k: np.asarray(v) for k, v in value.items()} if name.endswith("_extras") else np.asarray(value)
        for name, value in tree["fields"].items()
    }
    metas = [meta_from_text(json.dumps(text).encode()) for text in json.loads(tree["meta"])]
    return HostBatch.from_fields(fields, Metadata(metas, bool(tree["lost"])))


__all__ = ["batch_from_tree", "batch_tree"]
