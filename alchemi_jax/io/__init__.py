"""Files and streams: sinks, trajectories, sources of structures."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if TYPE_CHECKING:
    from alchemi_jax.io.parts import part_paths as part_paths
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
