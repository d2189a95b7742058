"""Systems of atoms: structures, padded batches, levels of fields, reductions by system, observables."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if not TYPE_CHECKING:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
